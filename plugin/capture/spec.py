"""The specification of one store that the options of a capture give for a model and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.capture.options import CaptureOptions
from stratalens.plugin.capture.store_defaults import (
    recorded_names,
    recorded_statistics,
    warn_about_statistics,
)
from stratalens.plugin.capture.tokens import tokenize_table
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.processing import differing_flags
from stratalens.plugin.models.site_resolution import resolve as resolve_sites
from stratalens.plugin.models.sites import Site, SiteSelection
from stratalens.plugin.prompts.positions import ResolvedPositions, tokens_of_spans
from stratalens.plugin.prompts.positions import resolve as resolve_positions
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts, fit_vocabulary
from stratalens.store.errors import InputError, MismatchError, suggest
from stratalens.store.format import schema
from stratalens.store.state.manifest import Store

SITE_STATISTICS = tuple(schema.STATISTICS)
OUTPUT_STATISTICS = schema.OUTPUT_STATISTICS
BY_REQUEST = ("running_loss",)  # it needs the output layer at every token, a fifth of a forward pass
STORE_DTYPES = ("float32", "bfloat16", "float16", "int8")
DTYPE_NAMES = {getattr(torch, name): name for name in ("float32", "bfloat16", "float16", "float64")}


@dataclass(frozen=True, eq=False)
class CaptureSpec:
    """Everything that decides the values of a row of the store.

    The first model decides it; the models of all further stages must fit it.

    Attributes:
        selection: sites and layers.
        tokenized: token ids of every row.
        positions: token index of every row and position.
        dtypes: storage dtype of every site.
        site_statistics: statistics recorded with every site.
        outputs: output statistics recorded, `answer_loss` and `entity_loss` among them.
        entity_tokens: token index of the first token of the entity and after its last one in every row, int64 array
            of shape (rows, 2), both 0 where a row has no entity; None if the table or the tokenizer has no spans.
        repeats: number of the first row with the same prompt and answer, int64 array of shape (rows,); None if all rows
            differ.
        options: the options of the capture.
        entities: prompt ids, for messages.
        processing: TransformerLens processing flags of the first model.
        known_processing: the same, with the flags that later models could answer and the first one could not.
        model: architecture and sizes, the same at every stage.
        tokenizer: the tokenizer of the ids.
    """

    selection: SiteSelection
    tokenized: TokenizedPrompts
    positions: ResolvedPositions
    dtypes: Mapping[str, str]
    site_statistics: tuple[str, ...]
    outputs: tuple[str, ...]
    entity_tokens: NDArray[np.int64] | None
    options: CaptureOptions
    entities: NDArray[Any]
    processing: Mapping[str, Any]
    model: Mapping[str, Any]
    known_processing: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    repeats: NDArray[np.int64] | None = None

    @classmethod
    def from_model(
        cls, table: PromptTable, adapter: Adapter, options: CaptureOptions, existing: Store | None = None
    ) -> Self:
        """Decide what a store of this model on this table records; nothing is written.

        Args:
            table: the prompts.
            adapter: the model of the first stage.
            options: the choices of the caller.
            existing: the store that is there already. `statistics=True` and `prepend_bos=None` mean what it records.

        Raises:
            InputError: an option does not fit the model or the table.
        """
        if not isinstance(table, PromptTable):
            raise InputError(
                f"the table is {type(table).__name__}, not a PromptTable. "
                "Read it first: stratalens.PromptTable.read('prompts.csv'), or .from_dataframe(df)."
            )
        if options.nonfinite not in ("raise", "keep"):
            raise InputError(f"nonfinite={options.nonfinite!r}: {suggest(str(options.nonfinite), ('raise', 'keep'))}")
        if options.dtype == "int8" and options.nonfinite == "keep":
            raise InputError("nonfinite='keep' and dtype='int8': int8 has no NaN or infinity. Choose another dtype.")
        tokenized, tokenizer = tokenize_table(table, adapter, options, existing)
        tokenized = fit_vocabulary(tokenized, adapter.embedding_rows)
        positions = resolve_positions(options.positions, table, tokenized, options.missing)
        ids = sample_ids(tokenized.ids)
        selection = resolve_sites(adapter, options.sites, options.layers, ids, recorded_names(existing))
        adapter.confirm_logits()
        has_logits = adapter.dry_run_result is not None
        entity_tokens = tokens_of_entities(table, tokenized)
        extend = options.statistics is True and existing is not None
        site_statistics, outputs = choose_statistics(
            "all" if extend else options.statistics,
            has_logits=has_logits,
            answers=tokenized.answer_ids is not None,
            entities=entity_tokens is not None,
            no_logits=adapter.no_logits,
        )
        if extend and existing is not None:
            recorded = recorded_statistics(existing)
            missing = [name for name in (*site_statistics, *outputs) if name not in (*recorded, *BY_REQUEST)]
            warn_about_statistics(existing, missing)
            site_statistics = tuple(name for name in site_statistics if name in recorded)
            outputs = tuple(name for name in outputs if name in recorded)
        return cls(
            selection=selection,
            tokenized=tokenized,
            positions=positions,
            dtypes=storage_dtypes(options.dtype, selection),
            site_statistics=site_statistics,
            outputs=outputs,
            entity_tokens=entity_tokens if "entity_loss" in outputs else None,
            options=options,
            entities=table.labels()["entity"],
            processing=adapter.processing,
            model=describe_model(adapter),
            known_processing=dict(adapter.processing),
            tokenizer=tokenizer,
            repeats=table.repeated_prompts(),
        )

    @property
    def labels(self) -> tuple[str, ...] | tuple[int, ...]:
        """Values of the token coordinate."""
        return self.positions.labels

    @property
    def index(self) -> NDArray[np.int64]:
        """Token index of every position, int64 array of shape (rows, tokens); -1 = missing."""
        return self.positions.index

    @property
    def runs_answers(self) -> bool:
        """Whether the model runs the answer after each prompt."""
        return "answer_loss" in self.outputs

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens that the model runs for every row, int64 array of shape (rows,)."""
        return self.tokenized.total_lengths if self.runs_answers else self.tokenized.lengths

    def variables(self) -> list[schema.Variable]:
        """List the arrays of the store."""
        variables: list[schema.Variable] = []
        for site in self.selection.sites:
            variable = schema.site_variable(
                site.name, site.feature_dims, site.feature_shape, self.dtypes[site.name], site.hook
            )
            statistics = schema.statistic_variables(variable)
            variables.append(variable)
            variables += [v for v in statistics if v.attrs["statistic"] in self.site_statistics]
        variables += [v for v in schema.output_variables() if v.name in self.outputs]
        if self.runs_answers:
            variables.append(schema.answer_variable())
        if "entity_loss" in self.outputs:
            variables.append(schema.entity_variable())
        return variables

    @cached_property
    def variables_by_name(self) -> dict[str, schema.Variable]:
        """`variables()` by name."""
        return {v.name: v for v in self.variables()}

    def provenance(self) -> dict[str, Any]:
        """Collect the facts that a later capture must match.

        The store compares weights, labels, and the dtype and hook name of each variable separately.
        """
        return {
            "tokenizer_fingerprint": self.tokenized.tokenizer_fingerprint,
            "token_ids_digest": self.tokenized.digest,
            "processing": dict(self.processing),
            "architecture": dict(self.model),
            "padding": "right, length planned per block",
        }

    def check_model(self, adapter: Adapter, selection: SiteSelection, stage: str) -> None:
        """Check that the model of another stage fits.

        Args:
            adapter: the model.
            selection: the sites of this specification, resolved on that model.
            stage: name of the stage, for the message.

        Raises:
            MismatchError: processing flags, architecture or a site differ.
        """
        pairs: list[tuple[str, Any, Any]] = [("architecture or sizes", dict(self.model), describe_model(adapter))]
        if differing_flags(self.known_processing, adapter.processing):
            pairs.insert(0, ("processing flags", dict(self.known_processing), adapter.processing))
        self.known_processing.update({**adapter.processing, **self.known_processing})
        for site, other in zip(self.selection.sites, selection.sites, strict=True):
            pairs.append((f"hook, shape or dtype of site {site.name!r}", _describe_site(site), _describe_site(other)))
        for subject, expected, actual in pairs:
            if expected != actual:
                raise MismatchError(
                    f"stage {stage!r}: {subject} differ. The store records {expected}, this model has {actual}. "
                    "Load every stage in the same way, or record this stage into another store."
                )


def _describe_site(site: Site) -> tuple[Any, ...]:
    return (site.hook, site.feature_dims, site.feature_shape, str(site.dtype))


def describe_model(adapter: Adapter) -> dict[str, Any]:
    """Describe architecture, sizes and dtype, which are equal at every stage of one training run."""
    sizes = {name: adapter.size(name) for name in ("d_model", "d_vocab", "n_heads", "d_head")}
    return {
        "architecture": type(adapter.weights_module).__name__,
        "n_layers": adapter.n_layers,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        **{name: size for name, size in sizes.items() if size is not None},
    }


def tokens_of_entities(table: PromptTable, tokenized: TokenizedPrompts) -> NDArray[np.int64] | None:
    """Find the tokens of every row's entity.

    Returns:
        int64 array of shape (rows, 2), [first, stop), (0, 0) where a row has no entity; None if no row has one, or if
        the tokenizer does not report the characters of its tokens.
    """
    spans = table.spans.get("entity")
    if spans is None or tokenized.offsets is None or not (spans[:, 0] >= 0).any():
        return None
    edges = tokens_of_spans(tokenized.offsets, spans)
    return np.where(edges >= 0, edges + np.array([0, 1]), 0)


def choose_statistics(
    statistics: bool | str | Sequence[str], *, has_logits: bool, answers: bool, entities: bool, no_logits: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check the statistics that the caller asks for.

    Args:
        statistics: True = all but `running_loss`, "all" = all, False = none, or names.
        has_logits: whether the model's forward pass ends in logits.
        answers: whether the prompts have answers.
        entities: whether the tokens of entities are known.
        no_logits: why the model has no logits, for messages.

    Returns:
        Names of the statistics of every site, and names of the output statistics.

    Raises:
        InputError: a name is unknown, or this model or table cannot provide the statistic.
    """
    if isinstance(statistics, bool) or statistics == "all":
        if not statistics:
            return (), ()
        known = {"answer_loss": answers, "entity_loss": entities, **dict.fromkeys(BY_REQUEST, statistics == "all")}
        return SITE_STATISTICS, tuple(n for n in OUTPUT_STATISTICS if has_logits and known.get(n, True))
    names = [statistics] if isinstance(statistics, str) else list(statistics)
    valid = (*SITE_STATISTICS, *OUTPUT_STATISTICS)
    for name in names:
        if name not in valid:
            raise InputError(
                f"unknown statistic {name!r}: {suggest(str(name), valid, limit=10)}, 'all', True or False."
            )
        if name in OUTPUT_STATISTICS and not has_logits:
            raise InputError(
                f"statistic {name!r} needs logits of the next token, but {no_logits}. "
                "Pass forward=, a function that returns them, or leave the statistic out."
            )
        if name == "answer_loss" and not answers:
            raise InputError("statistic 'answer_loss' needs a column 'answer' in the prompt table.")
        if name == "entity_loss" and not entities:
            raise InputError(
                "statistic 'entity_loss' needs a column 'entity' in the prompt table, and a tokenizer that reports the "
                "characters of its tokens (a fast one)."
            )
    return tuple(n for n in SITE_STATISTICS if n in names), tuple(n for n in OUTPUT_STATISTICS if n in names)


def storage_dtypes(dtype: str, selection: SiteSelection) -> dict[str, str]:
    """Choose the storage dtype of every site: the model's own there, or the requested one."""
    if dtype != "auto":
        if dtype not in STORE_DTYPES:
            raise InputError(f"dtype={dtype!r}: {suggest(str(dtype), ('auto', *STORE_DTYPES))}")
        return {site.name: dtype for site in selection.sites}
    for site in selection.sites:
        if site.dtype not in DTYPE_NAMES:
            raise InputError(
                f"site {site.name!r} has dtype {site.dtype}. Pass dtype= one of {', '.join(STORE_DTYPES)}."
            )
    return {site.name: DTYPE_NAMES[site.dtype] for site in selection.sites}


def sample_ids(rows: Sequence[NDArray[np.int64]]) -> Tensor:
    """Take eight valid token ids from the first rows of a table, for dry runs."""
    ids = np.concatenate([*rows[:8]])[:8]
    return torch.from_numpy(np.resize(ids, 8).astype(np.int64))
