"""Targets of probes: pairs of groups, one group against the rest, the order of the groups, or all groups at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data.array_types import Codes, Mask, Signs
from stratalens.analyses.data.groups import Groups
from stratalens.store.errors import InputError, suggest

Pairs = str | Sequence[tuple[object, object]]
Integers = TypeVar("Integers", bound=np.integer[Any])

REST = "rest"
ORDINAL = "ordinal"
MULTICLASS = "multiclass"
PAIR_KEYWORDS = ("all", REST, ORDINAL, MULTICLASS)


@dataclass(frozen=True)
class Contrasts:
    """Targets of the probes of one call.

    Attributes:
        kind: "binary", "ordinal" (regression on the position in the order) or "multiclass".
        names: label of each probe along the dim `pair`.
        first: name of the negative class of each probe; "rest" for one against the rest.
        second: name of the positive class of each probe: the later group.
        signs: int8 array of shape (entity, pair): +1, -1, or 0 where a row is in neither class. Ordinal and
            multiclass targets mark the rows in use by +1.
    """

    kind: str
    names: list[str]
    first: list[str]
    second: list[str]
    signs: Signs


def contrasts(groups: Groups, pairs: Pairs = "all") -> Contrasts:
    """Build the targets for `pairs`.

    Args:
        groups: ordered groups of the rows.
        pairs: "all", "rest" (each group against all others), "ordinal", "multiclass", or a list of
            (name, name); the later group of a pair is always the positive class.

    Raises:
        InputError: an unknown word or group.

    Example:
        >>> g = Groups("by", np.array(["a", "b"], object), np.array([0, 1, -1]), "order")
        >>> targets = contrasts(g)
        >>> targets.names, targets.signs[:, 0].tolist()
        (['a v b'], [-1, 1, 0])
    """
    names = [str(name) for name in groups.names]
    used = (groups.codes >= 0).astype(np.int8)[:, None]
    if isinstance(pairs, str):
        if pairs not in PAIR_KEYWORDS:
            raise InputError(
                f"pairs={pairs!r}: {suggest(pairs, PAIR_KEYWORDS)}, or a list of pairs of group names such as "
                f"[({names[0]!r}, {names[-1]!r})]"
            )
        if pairs in (ORDINAL, MULTICLASS):
            return Contrasts(pairs, [pairs], [names[0]], [names[-1]], used)
        if pairs == REST:
            own = groups.codes[:, None] == np.arange(len(names))
            signs = np.where(own, 1, -1).astype(np.int8) * used
            return Contrasts("binary", [f"{n} v {REST}" for n in names], [REST] * len(names), names, signs)
    chosen = groups.pairs(pairs)
    first = np.array([a for a, _ in chosen])
    second = np.array([b for _, b in chosen])
    signs = (groups.codes[:, None] == second).astype(np.int8) - (groups.codes[:, None] == first).astype(np.int8)
    return Contrasts(
        "binary",
        [f"{names[a]} v {names[b]}" for a, b in chosen],
        [names[a] for a in first],
        [names[b] for b in second],
        signs,
    )


def training_signs(signs: Signs, fold: Codes, folds: int, trainable: Mask | None = None) -> Signs:
    """Targets of every fit: for each probe one fit without each fold, then one refit on all rows.

    Args:
        signs: int8 array of shape (n, pair).
        fold: int64 array of shape (n,).
        folds: number of folds.
        trainable: bool array of shape (n,), rows that may be trained on; None = all.

    Returns:
        int8 array of shape (n, pair, folds + 1), the refit last.
    """
    inside = np.ones((len(fold), folds + 1), dtype=np.int8)
    inside[np.arange(len(fold)), fold] = 0
    if trainable is not None:
        inside *= trainable.astype(np.int8)[:, None]
    return signs[:, :, None] * inside[:, None, :]


def shuffled_labels(
    labels: npt.NDArray[Integers], fold: Codes, units: Codes, seed: np.random.SeedSequence | int
) -> npt.NDArray[Integers]:
    """Move labels between entities, column by column, inside each fold.

    Whole entities swap labels, so that rows of one entity keep a common label. Shuffling inside the folds keeps their
    balance, so that the null differs in the labels alone.

    Where an entity has rows with several labels, the shuffle has three steps. Entities of the same size swap their
    label vectors. Entities with a most frequent label then swap this label, whatever their sizes. A row with another
    label keeps its distance from it, in the cyclic order of the labels. Last, each entity shuffles its labels over
    its rows. The draws are uniform over all label tables that these steps can reach. A permutation test is exact if
    the labels are as likely as any other table of this set when they have no relation to the data (Hemerik and
    Goeman, 2018, "Exact testing with random permutations"). That holds where entities of a fold are exchangeable, and
    the rows inside an entity too.

    Args:
        labels: integer array of shape (n, columns), 0 = outside, which stays outside.
        fold: int64 array of shape (n,).
        units: int64 array of shape (n,), entity of each row.
        seed: of the shuffle.
    """
    rng = np.random.default_rng(seed)
    out = np.zeros_like(labels)
    for column in range(labels.shape[1]):
        rows = np.flatnonzero(labels[:, column])
        label, fold_of_row = labels[rows, column], fold[rows]
        _, first, unit = np.unique(units[rows], return_index=True, return_inverse=True)
        if (label == label[first][unit]).all():
            out[rows, column] = _shuffle_within(label[first], fold_of_row[first], rng)[unit]
        else:
            out[rows, column] = _shuffle_vectors(label, fold_of_row[first], unit, rng)
    return out


def _shuffle_vectors(
    label: npt.NDArray[Integers], fold: Codes, unit: Codes, rng: np.random.Generator
) -> npt.NDArray[Integers]:
    """Shuffle labels (n,) between entities that may have several; `fold` has the shape (units,)."""
    names, code = np.unique(label, return_inverse=True)
    n_units, n_names = len(fold), len(names)
    count = np.bincount(unit * n_names + code, minlength=n_units * n_names).reshape(n_units, n_names)
    largest = count.max(axis=1)
    main = np.where((count == largest[:, None]).sum(axis=1) == 1, count.argmax(axis=1), -1)  # -1 = none
    size = count.sum(axis=1)
    source = _shuffle_within(np.arange(n_units), fold * (size.max() + 1) + size, rng)
    order = np.argsort(unit, kind="stable")
    start = np.cumsum(size) - size
    owner = unit[order]
    moved = code[order][start[source[owner]] + np.arange(len(order)) - start[owner]]
    # Entities that now have a vector with a most frequent label swap this label.
    old = main[source]
    swapping = np.flatnonzero(old >= 0)
    shift = np.zeros(n_units, dtype=np.int64)
    shift[swapping] = _shuffle_within(old[swapping], fold[swapping], rng) - old[swapping]
    moved = (moved + shift[owner]) % n_names
    out = np.empty_like(label)
    out[order] = _shuffle_within(names[moved], owner, rng)
    return out


def _shuffle_within(values: npt.NDArray[Integers], strata: Codes, rng: np.random.Generator) -> npt.NDArray[Integers]:
    order = np.argsort(strata, kind="stable")
    shuffled = np.lexsort((rng.random(len(values)), strata))
    out = np.empty_like(values)
    out[order] = values[shuffled]
    return out
