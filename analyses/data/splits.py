"""Splits over entities, stratified by group: folds, halves, and the check that no entity is on both sides."""

from __future__ import annotations

import numpy as np

from stratalens.analyses.data.array_types import Codes, Mask
from stratalens.analyses.data.groups import Groups
from stratalens.store.errors import InputError


def entity_folds(codes: Codes, units: Codes, folds: int = 5, seed: int = 0) -> Codes:
    """Assign every row to a fold: stratified, shuffled, whole entities only.

    A stratum is the set of groups that an entity has rows in. The entities of each stratum are dealt to the folds in
    turn, so that a stratum's share of two folds differs by at most one entity. The result depends on the seed and on
    the order of the entities, not on NumPy's threads.

    Args:
        codes: int64 array of shape (entity,), group of each row, -1 = in no group.
        units: int64 array of shape (entity,), entity of each row.
        folds: number of folds, at least 2.
        seed: of the shuffle.

    Returns:
        int64 array of shape (entity,), from 0 to folds - 1. A row in no group has the fold of its entity, so that a
        probe that never saw the entity can score it.

    Raises:
        InputError: fewer than 2 folds.

    Example:
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
        start += len(members)  # the next stratum continues with the next fold, which keeps folds equally large
    return fold[_compact(units)]


def entity_halves(codes: Codes, units: Codes, repeats: int, holdout: float = 0.5, seed: int = 0) -> Mask:
    """Split rows repeatedly into training and held-out rows: whole entities, stratified by group.

    Args:
        codes: int64 array of shape (entity,), group of each row, -1 = in no group.
        units: int64 array of shape (entity,), entity of each row.
        repeats: number of splits.
        holdout: share of the entities of every stratum to hold out, in (0, 1). A stratum of two or more entities has
            at least one on each side.
        seed: of the shuffles.

    Returns:
        bool array of shape (repeats, entity), True = held out.

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
    held_out = np.zeros((repeats, len(strata)), dtype=bool)
    for row in held_out:
        for stratum in members:
            n = len(stratum)
            # A share that is no whole number is rounded up or down at random.
            take = int(np.floor(holdout * n + rng.random()))
            if n >= 2:
                take = min(max(take, 1), n - 1)
            row[rng.choice(stratum, take, replace=False)] = True
    result: Mask = held_out[:, _compact(units)]
    return result


def entity_strata(codes: Codes, units: Codes) -> Codes:
    """Stratum of each entity: the set of groups that it has rows in.

    Returns:
        int64 array of shape (units,), in the order of the sorted unit codes.
    """
    unit = _compact(units)
    n_units = int(unit.max(initial=-1)) + 1
    n_groups = int(codes.max(initial=-1)) + 2
    if len(unit) == n_units:  # one row an entity: its group is its stratum
        out = np.empty(n_units, dtype=np.int64)
        out[unit] = codes
        return out
    has_rows = np.zeros((n_units, n_groups), dtype=bool)
    has_rows[unit, codes + 1] = True
    _, strata = np.unique(has_rows, axis=0, return_inverse=True)
    return np.asarray(strata, dtype=np.int64).ravel()


def require_folds(groups: Groups, units: Codes, folds: int) -> None:
    """Refuse groups with fewer entities than folds.

    Raises:
        InputError: names every group that is too small, with its number of entities.
    """
    numbers = "Merge rare numbers into wider classes, for example with pandas.cut; pairs='ordinal' uses their order"
    groups.require(2, folds, units, f"{folds} folds of whole entities", numbers)


def assert_disjoint(units: Codes, train: Mask, test: Mask) -> None:
    """Refuse a split that has an entity on both sides.

    Raises:
        InputError: says how many entities leak, and the first rows of one of them.
    """
    shared = np.intersect1d(units[train], units[test])
    if len(shared):
        rows = np.flatnonzero(units == shared[0])[:6].tolist()
        raise InputError(
            f"{len(shared)} entities are in the training and in the test rows (e.g. rows {rows}); a score on rows of "
            f"a training entity is not meaningful. Split by entity_id"
        )


def _compact(units: Codes) -> Codes:
    """Codes 0 .. n - 1 without gaps, in sorted order."""
    if len(units) == 0:
        raise InputError("there are no rows to split")
    _, compact = np.unique(units, return_inverse=True)
    return np.asarray(compact, dtype=np.int64).ravel()
