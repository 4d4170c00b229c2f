"""What a summary adds up: the group of every token, the sampled rows, and the facts that a resumption must match."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from stratalens.analyses.data.groups import factorize_labels, groups, label_column
from stratalens.analyses.data.row_moments import ORDERS
from stratalens.analyses.data.row_sample import NO_LIMIT, RowSample, draw_numbers
from stratalens.analyses.data.summary import POOLED
from stratalens.analyses.data.training_order import label_text
from stratalens.analyses.estimators.moment_probes import NEEDS
from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.stage import Stage
from stratalens.store.errors import InputError, join_names, suggest

TokenClasses = Mapping[str, Sequence[int | str]]  # class name -> token ids, or texts of single tokens


@dataclass(frozen=True, eq=False)
class SummaryPlan:
    """Groups and sampled rows of one table.

    Attributes:
        spec: sites, positions and tokens.
        by: label column, "token class", or "" for one group of all rows.
        names: names of the groups, in order.
        ordering: source of the order, as in `Groups`.
        row_group: int64 array of shape (rows,), group of every row; -1 = none. None where token ids decide.
        id_group: int64 array of shape (vocabulary,), group of every token id; None where rows decide.
        order: order of the sums: "vectors", "scatter" or "squares".
        samples: sampled rows by (token, group); `values` are (row, column) pairs.
        mixed: whether an entity has rows in several groups.
        digest: of the groups and entities of all rows.
    """

    spec: CaptureSpec
    by: str
    names: list[Any]
    ordering: str
    row_group: NDArray[np.int64] | None
    id_group: NDArray[np.int64] | None
    order: str
    samples: dict[tuple[int, int], RowSample]
    mixed: bool
    digest: str

    @property
    def pooled(self) -> bool:
        """Whether all tokens of a prompt count together, instead of each position separately."""
        return self.spec.positions.is_all

    @property
    def tokens(self) -> list[str]:
        """Values of the token coordinate."""
        return [POOLED] if self.pooled else [str(label) for label in self.spec.labels]

    def groups_of(self, rows: NDArray[np.int64], index: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the group of every recorded position of some rows.

        Args:
            rows: table rows, int64 array of shape (rows,).
            index: token index of every position, int64 array of shape (rows, tokens); -1 = missing.
            ids: token ids, int64 array of shape (rows, positions).

        Returns:
            int64 array of shape (rows, tokens); -1 = in no group or missing.
        """
        if self.row_group is not None:
            group = np.broadcast_to(self.row_group[rows][:, None], index.shape)
        else:
            assert self.id_group is not None
            group = self.id_group[np.take_along_axis(ids, np.maximum(index, 0), axis=1)]
        return np.where(index >= 0, group, -1)


def needed_order(probes: Sequence[str] | None, by: str | TokenClasses | None) -> str:
    """Choose the order of the sums that the probes need; all three probes with groups, the scatter without.

    Raises:
        InputError: an unknown probe.
    """
    if probes is None:
        return "squares" if by is not None else "scatter"
    names = [probes] if isinstance(probes, str) else list(probes)
    for name in names:
        if name not in NEEDS:
            raise InputError(f"probes={probes!r}: {suggest(str(name), NEEDS)}, or () for means and moments alone")
    return max((NEEDS[name] for name in names), key=ORDERS.index, default="vectors")


def make_plan(
    table: PromptTable,
    spec: CaptureSpec,
    stages: Sequence[Stage],
    by: str | TokenClasses | None,
    order: Sequence[object] | None,
    probes: Sequence[str] | None,
    sample: int,
    seed: int,
    rows: NDArray[np.int64],
) -> SummaryPlan:
    """Decide groups and sampled rows before anything runs.

    Args:
        table: the prompts.
        spec: sites and positions of the first model.
        stages: the stages, which order the groups of `trained_stage`.
        by: label column, {class: token ids or texts}, or None.
        order: groups wanted, in order; some may have no row in this table.
        probes: methods that the sums must allow.
        sample: most sampled rows of each token and group.
        seed: of the sample.
        rows: table rows of this process.

    Raises:
        InputError: an argument is invalid, or the label has a single group.
    """
    if not _is_count(sample):
        raise InputError(f"sample={sample!r} is not valid. Pass the number of rows to keep, from 0.")
    labels = table.labels()
    row_group: NDArray[np.int64] | None = None
    id_group: NDArray[np.int64] | None = None
    names: list[Any]
    if by is None:
        name, names, ordering = "", ["all"], "first appearance"
        row_group = np.zeros(len(table), dtype=np.int64)
    elif isinstance(by, Mapping):
        name, ordering = "token class", "first appearance"
        names, id_group = _token_classes(by, spec)
    else:
        name = str(by)
        names, ordering, row_group = _label_groups(labels, name, stages, order, table.label_orders)
    entity = draw_numbers(labels["entity_id"], seed)
    plan = SummaryPlan(
        spec=spec,
        by=name,
        names=names,
        ordering=ordering,
        row_group=row_group,
        id_group=id_group,
        order=needed_order(probes, by),
        samples={},
        mixed=False,
        digest=_digest(names, row_group, id_group, entity),
    )
    samples, mixed = _draw(plan, rows, entity, draw_numbers(labels["entity"], 0), sample)
    return SummaryPlan(**{**vars(plan), "samples": samples, "mixed": mixed})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _label_groups(
    labels: Mapping[str, NDArray[Any]],
    by: str,
    stages: Sequence[Stage],
    order: Sequence[object] | None,
    label_orders: Mapping[str, Any],
) -> tuple[list[Any], str, NDArray[np.int64]]:
    """Names, source of the order, and group of every row."""
    data = xr.Dataset(coords={name: ("entity", values) for name, values in labels.items()})
    data = data.assign_coords(stage=[s.name for s in stages], stage_order=("stage", [s.order for s in stages]))
    for column, categories in label_orders.items():
        if column in data.coords:
            data[column].attrs["ordered_categories"] = list(categories)
    if order is not None and not isinstance(order, str):
        # A shard of a corpus may have no row of a group, so that only unknown columns are refused.
        codes, present = factorize_labels(label_column(data, by), by)
        wanted = {label_text(group): number for number, group in enumerate(order)}
        rank = np.array([*(wanted.get(label_text(group), -1) for group in present), -1], dtype=np.int64)
        if not wanted or (rank < 0).all():
            raise InputError(f"order={list(order)!r}: no row of {by!r} has one of these labels: {join_names(present)}")
        return list(order), "order", rank[codes]
    label_groups = groups(data, by, order)
    if len(label_groups) < 2:
        raise InputError(
            f"{by!r} has one group ({join_names(label_groups.names)}). Choose another label with by=, pass by=None to "
            "summarize all rows together, or name the groups of all shards with order=[...]."
        )
    return label_groups.names.tolist(), label_groups.ordering, label_groups.codes


def _token_classes(by: TokenClasses, spec: CaptureSpec) -> tuple[list[Any], NDArray[np.int64]]:
    """Names of the classes, and the class of every token id."""
    if not by:
        raise InputError("by={} names no token class. Pass {class: token ids or texts}, a label column, or None.")
    size = 1 + max(int(np.max(spec.tokenized.ids[row], initial=0)) for row in range(len(spec.tokenized)))
    ids_of = {name: [_token_id(name, token, spec) for token in tokens] for name, tokens in by.items()}
    size = max(size, 1 + max((i for ids in ids_of.values() for i in ids), default=0))
    group = np.full(size, -1, dtype=np.int64)
    for number, (name, ids) in enumerate(ids_of.items()):
        for token in ids:
            if group[token] not in (-1, number):
                raise InputError(f"token {token} is in two classes: {list(by)[group[token]]!r} and {name!r}.")
            group[token] = number
    return [str(name) for name in by], group


def _token_id(name: str, token: int | str, spec: CaptureSpec) -> int:
    if isinstance(token, int | np.integer) and not isinstance(token, bool) and token >= 0:
        return int(token)
    if isinstance(token, str):
        ids = spec.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            return int(ids[0])
        raise InputError(f"class {name!r}: {token!r} is {len(ids)} tokens. Pass texts of one token, or token ids.")
    raise InputError(f"class {name!r}: {token!r} is not a token. Pass token ids from 0, or texts of one token.")


def _draw(
    plan: SummaryPlan, rows: NDArray[np.int64], entity: NDArray[np.int64], prompt: NDArray[np.int64], size: int
) -> tuple[dict[tuple[int, int], RowSample], bool]:
    """Sample of every token and group, and whether an entity has rows in several groups."""
    index = plan.spec.index[rows]
    if plan.row_group is not None:
        group = np.where(index >= 0, plan.row_group[rows][:, None], -1)
    else:
        assert plan.id_group is not None
        group = np.full(index.shape, -1, dtype=np.int64)
        for i, row in enumerate(rows):
            there = index[i] >= 0
            group[i, there] = plan.id_group[plan.spec.tokenized.ids[row][index[i, there]]]
    samples = {}
    for token in range(len(plan.tokens)):
        for g in range(len(plan.names)):
            columns = slice(None) if plan.pooled else slice(token, token + 1)
            row, column = np.nonzero(group[:, columns] == g)
            column = column if plan.pooled else np.full_like(row, token)
            position = index[row, column]
            places = np.stack([rows[row], column], axis=1)
            drawn = RowSample(entity[rows[row]], prompt[rows[row]], position, NO_LIMIT, places)
            samples[token, g] = drawn.ordered(size)[0]
    row, column = np.nonzero(group >= 0)
    pairs = np.unique(np.stack([entity[rows[row]], group[row, column]]), axis=1)
    return samples, len(np.unique(pairs[0])) < pairs.shape[1]


def _digest(names: Sequence[Any], *arrays: NDArray[np.int64] | None) -> str:
    digest = hashlib.sha256(repr([str(name) for name in names]).encode())
    for array in arrays:
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
