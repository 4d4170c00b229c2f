"""What one store records: sites, positions, dtypes and statistics, as variables and as provenance.

A recipe is made once, from the first model, and every further stage is held
against it. It knows nothing of hooks (tap.py) or of files (stratalens.store).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.models import site_resolution as site_names
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.sites import SiteSelection
from stratalens.plugin.prompts import positions as named_positions
from stratalens.plugin.prompts.positions import ResolvedPositions
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts
from stratalens.store.errors import InputError, MismatchError, suggest
from stratalens.store.format import schema

SITE_STATISTICS = tuple(schema.STATISTICS)


OUTPUT_STATISTICS = schema.OUTPUT_STATISTICS


STORE_DTYPES = ("float32", "bfloat16", "float16", "int8")


NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}


@dataclass(frozen=True, eq=False)
class CaptureSpec:
    """Everything that decides what a row of the store holds.

    Attributes:
        selection: sites and layers.
        tokenized: token ids of every row.
        positions: token index of every row and position.
        dtypes: storage dtype of every site.
        site_statistics: statistics recorded beside every site.
        outputs: output statistics recorded, `answer_loss` among them.
        nonfinite: "raise" or "keep".
        entities: prompt ids, for messages.
        processing: TransformerLens processing flags of the models.
        model: architecture and sizes, the same at every stage.
    """

    selection: SiteSelection
    tokenized: TokenizedPrompts
    positions: ResolvedPositions
    dtypes: Mapping[str, str]
    site_statistics: tuple[str, ...]
    outputs: tuple[str, ...]
    nonfinite: str
    entities: NDArray[Any]
    processing: Mapping[str, Any]
    model: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...] | tuple[int, ...]:
        """Values of the token coordinate."""
        return self.positions.labels

    @property
    def index(self) -> NDArray[np.int64]:
        """Token index (row, token), -1 = missing."""
        return self.positions.index

    @property
    def runs_answers(self) -> bool:
        """Whether the answers are run behind the prompts."""
        return "answer_loss" in self.outputs

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens that are run for every row."""
        return self.tokenized.total_lengths if self.runs_answers else self.tokenized.lengths

    def variables(self) -> list[schema.Variable]:
        """The arrays of the store."""
        found: list[schema.Variable] = []
        for site in self.selection.sites:
            variable = schema.site_variable(
                site.name, site.feature_dims, site.feature_shape, self.dtypes[site.name], site.hook
            )
            found.append(variable)
            found += [v for v in schema.statistic_variables(variable) if v.attrs["statistic"] in self.site_statistics]
        found += [v for v in schema.output_variables() if v.name in self.outputs]
        return found + ([schema.answer_variable()] if self.runs_answers else [])

    @cached_property
    def variables_by_name(self) -> dict[str, schema.Variable]:
        """`variables()` by name."""
        return {v.name: v for v in self.variables()}

    def provenance(self) -> dict[str, Any]:
        """What refuses on mismatch, beside the weights, the labels and each variable's dtype and hook name."""
        return {
            "tokenizer_fingerprint": self.tokenized.tokenizer_fingerprint,
            "token_ids_digest": self.tokenized.digest,
            "processing": dict(self.processing),
            "architecture": dict(self.model),
            "padding": "right, length planned per block",
        }

    def check_model(self, adapter: Adapter, selection: SiteSelection, stage: str) -> None:
        """Raise MismatchError unless another stage's model fits this recipe."""
        pairs: list[tuple[str, Any, Any]] = [
            ("processing flags", dict(self.processing), adapter.processing),
            ("model", dict(self.model), describe_model(adapter)),
        ]
        for old, new in zip(self.selection.sites, selection.sites, strict=True):
            pairs.append((f"site {old.name!r}", _shape(old), _shape(new)))
        for what, held, given in pairs:
            if held != given:
                raise MismatchError(
                    f"stage {stage!r}: {what} differ from what this store records: {held} there, {given} here. "
                    "Load every stage in the same way, or record this one to a store of its own."
                )


def _shape(site: Any) -> tuple[Any, ...]:
    return (site.hook, site.feature_dims, site.feature_shape, str(site.dtype))


def describe_model(adapter: Adapter) -> dict[str, Any]:
    """Architecture, sizes and dtype: equal at every stage of one training run."""
    hf = adapter.weights_module
    sizes = {name: adapter.size(name) for name in ("d_model", "d_vocab", "n_heads", "d_head")}
    return {
        "architecture": type(hf).__name__,
        "n_layers": adapter.n_layers,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        **{k: v for k, v in sizes.items() if v is not None},
    }


def choose_statistics(
    statistics: bool | str | Sequence[str], answers: bool, has_logits: bool, kind: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(statistics beside every site, output statistics) from what the caller asked for.

    Args:
        statistics: True = all, False = none, or names.
        answers: whether the prompts have answers.
        has_logits: whether the model's forward pass ends in logits.
        kind: kind of model, for messages.

    Raises:
        InputError: an unknown name, or one that this model or table cannot give.
    """
    if isinstance(statistics, bool):
        if not statistics:
            return (), ()
        outputs = tuple(n for n in OUTPUT_STATISTICS if answers or n != "answer_loss") if has_logits else ()
        return SITE_STATISTICS, outputs
    names = [statistics] if isinstance(statistics, str) else list(statistics)
    valid = (*SITE_STATISTICS, *OUTPUT_STATISTICS)
    for name in names:
        if name not in valid:
            raise InputError(f"unknown statistic {name!r}: {suggest(str(name), valid, limit=40)}, True or False.")
        if name in OUTPUT_STATISTICS and not has_logits:
            raise InputError(
                f"statistic {name!r} needs logits (batch, position, vocab), which the forward pass of this {kind} "
                "does not return. Pass forward=, a function that returns them, or leave the statistic out."
            )
        if name == "answer_loss" and not answers:
            raise InputError("statistic 'answer_loss' needs a column 'answer' in the prompt table.")
    return tuple(n for n in SITE_STATISTICS if n in names), tuple(n for n in OUTPUT_STATISTICS if n in names)


def storage_dtypes(dtype: str, selection: SiteSelection) -> dict[str, str]:
    """Storage dtype of every site: the model's own there, or the one asked for."""
    if dtype != "auto" and dtype not in STORE_DTYPES:
        raise InputError(f"dtype={dtype!r}: {suggest(str(dtype), ('auto', *STORE_DTYPES))}")
    chosen = {}
    for site in selection.sites:
        own = NAMES.get(site.dtype)
        if dtype == "auto" and own is None:
            raise InputError(
                f"site {site.name!r} has dtype {site.dtype}. Pass dtype= one of {', '.join(STORE_DTYPES)}."
            )
        chosen[site.name] = own if dtype == "auto" and own is not None else dtype
    return chosen


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
) -> CaptureSpec:
    """What a store of this model on this table would record; nothing is written.

    Arguments and errors are those of `create_store`.
    """
    if not isinstance(table, PromptTable):
        raise InputError(
            f"the table is {type(table).__name__}, not a PromptTable. "
            "Read it first: stratalens.PromptTable.read('prompts.csv'), or .from_dataframe(df)."
        )
    if nonfinite not in ("raise", "keep"):
        raise InputError(f"nonfinite={nonfinite!r}: {suggest(str(nonfinite), ('raise', 'keep'))}")
    if dtype == "int8" and nonfinite == "keep":
        raise InputError("nonfinite='keep' and dtype='int8': int8 has no NaN or infinity; choose another dtype")
    tokenized = table.tokenize(tokenizer if tokenizer is not None else adapter.tokenizer, max_length=adapter.max_length)
    resolved = named_positions.resolve(positions, table, tokenized, missing)
    ids = sample_ids(tokenized.ids)
    selection = site_names.resolve(adapter, sites, layers, ids)
    site_statistics, outputs = choose_statistics(
        statistics, tokenized.answer_ids is not None, adapter.dry_run_result is not None, adapter.kind
    )
    return CaptureSpec(
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


def sample_ids(rows: Sequence[NDArray[np.int64]]) -> Tensor:
    """Token ids that are certainly valid, for tiny forward passes: the first eight of the table."""
    ids = np.concatenate([*rows[:8]])[:8]
    return torch.from_numpy(np.resize(ids, 8).astype(np.int64))
