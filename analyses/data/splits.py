"""Splits that never put one entity on both sides: folds, halves, and the check that they do not leak.

Every split of the analyses is made here, over entities and stratified by group. What is fitted
and scored on them lives in the verbs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data.groups import Groups
from stratalens.store.errors import InputError

Codes = npt.NDArray[np.int64]


def entity_folds(codes: Codes, units: Codes, folds: int = 5, seed: int = 0) -> Codes:
    """A fold for every row: stratified, shuffled, whole entities only.

    Entities are dealt out like cards, stratum by stratum (a stratum is the set of groups an entity
    has rows in), so that each fold holds the same share of every group to within one entity a
    stratum. The result depends on the seed and on the order of the entities, not on NumPy's threads.

    Args:
        codes: [array-like, shape: (entity,)] group of each row, -1 = in no group.
        units: [array-like, shape: (entity,)] entity of each row.
        folds: number of folds, at least 2.
        seed: of the shuffle.

    Returns:
        [shape: (entity,)] fold of each row, 0 .. folds - 1. Rows in no group have one as well
        (that of their entity), so that they can be scored by a probe that never saw their entity.

    Raises:
        InputError: fewer than 2 folds.

    >>> fold = entity_folds(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]), folds=2)
    >>> sorted(fold[:2].tolist()), sorted(fold[2:].tolist())
    ([0, 1], [0, 1])
    """
    if folds < 2:
        raise InputError(f"folds={folds}; at least 2 are needed to score rows that a probe never saw")
    rng = np.random.default_rng(seed)
    strata = entity_strata(codes, units)
    fold = np.zeros(len(strata), dtype=np.int64)
    start = 0
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        fold[members] = (start + np.arange(len(members))) % folds
        start += len(members)  # the next stratum goes on where this one ended, so that folds stay level
    return fold[_compact(units)]


def entity_halves(
    codes: Codes, units: Codes, repeats: int, holdout: float = 0.5, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Repeated splits into rows to fit on and rows held out, whole entities, stratified by group.

    Args:
        codes: [array-like, shape: (entity,)] group of each row, -1 = in no group.
        units: [array-like, shape: (entity,)] entity of each row.
        repeats: number of splits.
        holdout: share of the entities of every stratum that is held out, in (0, 1); where a stratum has
            two entities or more, at least one lands on each side.
        seed: of the shuffles.

    Returns:
        [shape: (repeats, entity)] True = held out.

    Raises:
        InputError: a share outside (0, 1), or no repeats.
    """
    if not 0 < holdout < 1:
        raise InputError(f"holdout={holdout}; it is the share of entities held out, between 0 and 1, e.g. 0.5")
    if repeats < 1:
        raise InputError(f"repeats={repeats}; at least one split is needed")
    rng = np.random.default_rng(seed)
    strata = entity_strata(codes, units)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    held = np.zeros((repeats, len(strata)), dtype=bool)
    for row in held:
        for stratum in members:
            n = len(stratum)
            # Where the share is no whole number, chance decides which way it is rounded.
            take = int(np.floor(holdout * n + rng.random()))
            if n >= 2:
                take = min(max(take, 1), n - 1)
            row[rng.choice(stratum, take, replace=False)] = True
    result: npt.NDArray[np.bool_] = held[:, _compact(units)]
    return result


def entity_strata(codes: Codes, units: Codes) -> Codes:
    """Stratum of each entity: which groups it has rows in.

    Returns:
        [shape: (number of different units,)] in the order of the sorted unit codes.
    """
    unit = _compact(units)
    n_units = int(unit.max(initial=-1)) + 1
    n_groups = int(codes.max(initial=-1)) + 2
    if len(unit) == n_units:  # one row an entity: the group itself
        out = np.empty(n_units, dtype=np.int64)
        out[unit] = codes
        return out
    present = np.zeros((n_units, n_groups), dtype=bool)
    present[unit, codes + 1] = True
    _, strata = np.unique(present, axis=0, return_inverse=True)
    return np.asarray(strata, dtype=np.int64).ravel()


def require_folds(groups: Groups, units: Codes, folds: int) -> None:
    """Refuse groups with fewer entities than folds.

    Raises:
        InputError: naming every group that is too small, with its number of entities.
    """
    groups.require(2, folds, units, f"{folds} folds that never part an entity")


def assert_disjoint(units: Codes, train: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_]) -> None:
    """Refuse a split that has an entity on both sides.

    Raises:
        InputError: how many entities leak, and the first rows of one of them.
    """
    shared = np.intersect1d(units[train], units[test])
    if len(shared):
        rows = np.flatnonzero(units == shared[0])[:6].tolist()
        raise InputError(
            f"{len(shared)} entities are in the training and in the test rows (e.g. rows {rows}); "
            f"a score on rows of an entity that was trained on means nothing. Split by entity_id"
        )


def _compact(units: Codes) -> Codes:
    """Codes 0 .. n - 1 without gaps, in sorted order."""
    if len(units) == 0:
        raise InputError("there are no rows to split")
    _, compact = np.unique(units, return_inverse=True)
    return np.asarray(compact, dtype=np.int64).ravel()
