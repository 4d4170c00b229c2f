"""Labels of crowded points overlap nothing, stay inside the frame and are reproducible."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.analyses.plots.label_placement import label_positions, leader_lines

LIMITS = (-1.0, 2.0, 0.0, 5.0)
PIXEL = np.array([3.0 / 480, 5.0 / 340])  # of the nominal page, in units of the axes


def boxes_overlap(a: np.ndarray, b: np.ndarray, half: np.ndarray) -> bool:
    return bool((np.abs(a - b) < half - 1e-6 * PIXEL).all())


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0.1, 0.9), st.floats(0.15, 0.85)), min_size=1, max_size=6),
    st.floats(0.01, 1.0),
)
def test_labels_of_up_to_six_points_do_not_overlap(points: list[tuple[float, float]], crowd: float) -> None:
    share = 0.5 + (np.array(points) - 0.5) * crowd
    xy = np.array([LIMITS[0], LIMITS[2]]) + share * np.array([3.0, 5.0])
    names = [f"s{i}" for i in range(len(xy))]
    at = label_positions(xy[:, 0], xy[:, 1], names, LIMITS)
    for i in range(len(xy)):
        for j in range(i):
            assert not boxes_overlap(at[i], at[j], np.array([16.0, 15.0]) * PIXEL)
    assert ((at > [LIMITS[0], LIMITS[2]]) & (at < [LIMITS[1], LIMITS[3]])).all()
    np.testing.assert_array_equal(at, label_positions(xy[:, 0], xy[:, 1], names, LIMITS))


def test_a_distant_label_has_a_line_to_its_point() -> None:
    x, y = np.array([0.5] * 9 + [1.5]), np.full(10, 2.5)
    at = label_positions(x, y, list("abcdefghij"), LIMITS)
    lines = leader_lines(x, y, at, LIMITS)
    assert 1 <= len(lines["x0"]) < 9
    assert set(lines["x0"]) == {0.5}


def test_a_missing_point_has_no_label_and_no_line() -> None:
    x, y = np.array([np.nan, 1.0]), np.array([1.0, 1.0])
    at = label_positions(x, y, ["a", "b"], LIMITS)
    assert np.isnan(at[0]).all()
    assert np.isfinite(at[1]).all()
    assert len(leader_lines(x, y, at, LIMITS)["x0"]) == 0
    assert label_positions(np.empty(0), np.empty(0), [], LIMITS).shape == (0, 2)
