"""What a capture will cost, before anything is written: bytes, files, tokens, memory, time.

Sizes are exact (the geometry of the store decides them); time is measured on
one real batch of the first stage's model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from stratalens.plugin.capture.spec import make_recipe
from stratalens.plugin.capture.store import store_size
from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.plugin.stages.stage import Stage, loaded_model

if TYPE_CHECKING:
    from stratalens.plugin.prompts.table import PromptTable


_SAMPLE = 32  # rows of the timed batch


def forecast(
    stages: Sequence[Stage],
    table: PromptTable,
    *,
    sites: Sequence[str] | str = ("resid_post",),
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | str = ("last",),
    dtype: str = "auto",
    statistics: bool | Sequence[str] = True,
    device: str | None = None,
    rows: int | None = None,
) -> dict[str, Any]:
    """Forecast a capture from its first stage's model; nothing is written.

    With `rows`, the table is a sample: the forecast is of a table of so many rows like these.

    Returns:
        bytes, files, rows, tokens (of all stages), memory_bytes (of the two block buffers), rows_per_block,
        seconds (of all forward passes, without loading; from one timed batch of at most 32 rows, so two runs
        differ; to two digits).

    Raises:
        InputError: as `capture`.
    """
    with loaded_model(stages[0], None, device) as model:
        adapter = adapt(model, None)
        recipe = make_recipe(
            table, adapter, sites=sites, layers=layers, positions=positions, dtype=dtype, statistics=statistics
        )
        lengths = recipe.lengths
        timed = lengths.argsort()[len(lengths) // 2 :][:_SAMPLE]  # of median length and above
        width = int(lengths[timed].max())
        ids, mask = recipe.tokenized.batch(timed, width, answers=recipe.runs_answers)
        wanted: Literal["none", "logits"] = "logits" if recipe.outputs else "none"
        with torch.no_grad(), evaluation_mode(adapter.model):
            start = time.perf_counter()
            adapter.run(
                torch.from_numpy(ids).to(adapter.device), torch.from_numpy(mask).to(adapter.device), wanted, None
            )
            seconds = time.perf_counter() - start
    size = store_size(recipe, stages=len(stages), rows=rows)
    tokens = round(int(lengths.sum()) * (1 if rows is None else rows / len(lengths)))
    return {
        "bytes": size.nbytes,
        "files": size.files,
        "rows": size.rows,
        "tokens": tokens * len(stages),
        "memory_bytes": size.memory,
        "rows_per_block": size.block_size,
        "seconds": two_digits(seconds / (width * len(timed)) * tokens * len(stages)),
    }


def two_digits(seconds: float) -> float:
    """A forecast time as far as one timed batch tells it; a short one does not become none at all.

    >>> two_digits(0.04321), two_digits(12345.6)
    (0.043, 12000.0)
    """
    return float(f"{seconds:.2g}")
