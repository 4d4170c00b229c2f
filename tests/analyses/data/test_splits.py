"""Splits keep entities whole and are stratified by group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.analyses.data.splits import assert_disjoint, entity_folds, entity_halves, entity_strata
from stratalens.store.errors import InputError


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(4, 60))
    units = np.array(draw(st.lists(st.integers(0, 12), min_size=n, max_size=n)))
    codes = np.array(draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
    return codes, units


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(2, 6), st.integers(0, 3))
def test_no_entity_is_in_two_folds(data: tuple[np.ndarray, np.ndarray], folds: int, seed: int) -> None:
    codes, units = data
    fold = entity_folds(codes, units, folds, seed)
    assert fold.min() >= 0
    assert fold.max() < folds
    for unit in np.unique(units):
        assert len(np.unique(fold[units == unit])) == 1


@settings(max_examples=60, deadline=None)
@given(rows(), st.floats(0.1, 0.9))
def test_no_entity_is_on_both_sides_of_a_half(data: tuple[np.ndarray, np.ndarray], holdout: float) -> None:
    codes, units = data
    held_out = entity_halves(codes, units, 3, holdout)
    for split in held_out:
        for unit in np.unique(units):
            assert len(np.unique(split[units == unit])) == 1


def test_folds_hold_the_same_share_of_every_group() -> None:
    codes = np.repeat([0, 1, 2], [50, 35, 20])
    fold = entity_folds(codes, np.arange(len(codes)), 5, seed=3)
    table = np.array([np.bincount(fold[codes == g], minlength=5) for g in range(3)])
    assert (table == np.array([[10], [7], [4]])).all()


def test_halves_are_stratified_and_have_entities_on_both_sides() -> None:
    codes = np.repeat([0, 1], [40, 2])
    held_out = entity_halves(codes, np.arange(42), 20, 0.2, seed=0)
    assert (held_out[:, codes == 0].sum(axis=1) == 8).all()
    assert (held_out[:, codes == 1].sum(axis=1) == 1).all()
    assert len({row.tobytes() for row in held_out}) > 10


def test_strata_of_entities_with_rows_in_several_groups() -> None:
    strata = entity_strata(np.array([0, 1, 0, 1, 1]), np.array([0, 0, 1, 2, 2]))
    assert len(set(strata.tolist())) == 3


def test_folds_depend_on_the_seed_alone() -> None:
    codes, units = np.repeat([0, 1], 30), np.arange(60)
    assert (entity_folds(codes, units, 5, 1) == entity_folds(codes, units, 5, 1)).all()
    assert (entity_folds(codes, units, 5, 1) != entity_folds(codes, units, 5, 2)).any()


def test_invalid_splits_are_refused() -> None:
    codes, units = np.array([0, 1]), np.array([0, 0])
    with pytest.raises(InputError, match="at least 2"):
        entity_folds(codes, units, 1)
    with pytest.raises(InputError, match="holdout"):
        entity_halves(codes, units, 1, 1.5)
    with pytest.raises(InputError, match="1 entities are in the training and in the test rows"):
        assert_disjoint(units, np.array([True, False]), np.array([False, True]))
