from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.analyses.controls.matching import (
    find_most_separating,
    joint_bins,
    match_bins,
    match_nearest,
    standardised_difference,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 3), st.integers(4, 80))
def test_every_joint_bin_is_balanced_and_nothing_more_could_be_kept(seed: int, bins: int, m: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, m)).round(1)
    positive = rng.random(n) < 0.4
    keep = match_bins(values, positive, bins, rng)
    code = joint_bins(values, bins)
    for c in np.unique(code):
        in_bin = code == c
        smaller = min((in_bin & positive).sum(), (in_bin & ~positive).sum())
        assert (keep & in_bin & positive).sum() == (keep & in_bin & ~positive).sum() == smaller


def test_joint_bins_are_shared_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 2))
    code = joint_bins(values, 4)
    assert code.max() == 15
    inner = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    slow = [tuple(int((v >= inner[:, j]).sum()) for j, v in enumerate(row)) for row in values]
    assert len(set(zip(slow, code.tolist(), strict=True))) == 16


def test_binning_takes_a_planted_difference_away() -> None:
    rng = np.random.default_rng(1)
    positive = np.repeat([False, True], 500)
    values = rng.normal(size=(1000, 2)) + positive[:, None] * [0.8, -0.5]
    before = standardised_difference(values, positive)
    keep = match_bins(values, positive, 8, rng)
    after = standardised_difference(values[keep], positive[keep])
    assert (before > 0.4).all()
    assert (after < 0.15).all()


def test_nearest_neighbours_are_as_near_as_an_exhaustive_greedy_search() -> None:
    rng = np.random.default_rng(2)
    positive = np.repeat([False, True], [60, 40])
    values = rng.normal(size=(100, 1)) + positive[:, None] * 0.7
    keep = match_nearest(values, positive, np.random.default_rng(5), caliper=0.2)
    # The log odds are linear in one statistic, so both have the same distances in standard deviations.
    reach = 0.2 * values.std()
    free = set(np.flatnonzero(~positive).tolist())
    expected = set()
    for row in np.random.default_rng(5).permutation(np.flatnonzero(positive)).tolist():
        best = min(free, key=lambda other: abs(values[other, 0] - values[row, 0]))
        if abs(values[best, 0] - values[row, 0]) <= reach:
            free.remove(best)
            expected |= {row, best}
    assert set(np.flatnonzero(keep).tolist()) == expected
    assert standardised_difference(values[keep], positive[keep])[0] < 0.1


def test_the_separating_statistic_is_found() -> None:
    positive = np.repeat([False, True], 50)
    values = np.random.default_rng(0).normal(size=(100, 3))
    values[:, 1] = -1.0 * positive
    assert find_most_separating(values, positive) == (1, 1.0)
    assert standardised_difference(np.ones((4, 1)), np.array([0, 1, 0, 1], bool))[0] == 0
