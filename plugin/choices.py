"""From what the caller asks for to a recipe: sites, positions, statistics and dtypes, checked against one model.

What a recipe is and how further stages are held against it is in recipe.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens import positions as named_positions
from stratalens import sites as site_names
from stratalens.models import Adapter
from stratalens.prompts import PromptTable
from stratalens.recipe import Recipe, choose_statistics, describe_model, storage_dtypes
from stratalens.store.errors import InputError, near

Positions = Sequence[str] | str


def make_recipe(
    table: PromptTable,
    adapter: Adapter,
    *,
    sites: Sequence[str] | str,
    layers: Sequence[int] | None,
    positions: Positions,
    dtype: str,
    statistics: bool | Sequence[str],
    tokenizer: Any = None,
    missing: Literal["raise", "nan"] = "raise",
    nonfinite: Literal["raise", "keep"] = "raise",
) -> Recipe:
    """What a store of this model on this table would record; nothing is written.

    Arguments and errors are those of `create_store`.
    """
    if not isinstance(table, PromptTable):
        raise InputError(
            f"the table is {type(table).__name__}, not a PromptTable. "
            "Read it first: stratalens.PromptTable.read('prompts.csv'), or .from_dataframe(df)."
        )
    if nonfinite not in ("raise", "keep"):
        raise InputError(f"nonfinite={nonfinite!r}: {near(str(nonfinite), ('raise', 'keep'))}")
    if dtype == "int8" and nonfinite == "keep":
        raise InputError("nonfinite='keep' and dtype='int8': int8 has no NaN or infinity; choose another dtype")
    tokenized = table.tokenize(tokenizer if tokenizer is not None else adapter.tokenizer, max_length=adapter.max_length)
    resolved = named_positions.resolve(positions, table, tokenized, missing)
    ids = probe_ids(tokenized.ids)
    selection = site_names.resolve(adapter, sites, layers, ids)
    site_statistics, outputs = choose_statistics(
        statistics, tokenized.answer_ids is not None, adapter.probed is not None, adapter.kind
    )
    return Recipe(
        selection=selection,
        tokenized=tokenized,
        positions=resolved,
        dtypes=storage_dtypes(dtype, selection),
        site_statistics=site_statistics,
        outputs=outputs,
        nonfinite=nonfinite,
        entities=table.labels()["entity"],
        processing=adapter.processing,
        model=describe_model(adapter),
    )


def probe_ids(rows: Sequence[NDArray[np.int64]]) -> Tensor:
    """Token ids that are certainly valid, for tiny forward passes: the first eight of the table."""
    ids = np.concatenate([*rows[:8]])[:8]
    return torch.from_numpy(np.resize(ids, 8).astype(np.int64))
