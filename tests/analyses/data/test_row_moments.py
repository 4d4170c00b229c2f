"""Sums of parts join to those of all rows, in any order and around any centre; so does the sample of entities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.analyses.data.norm_sketch import ACCURACY, BUCKETS, LOG_GAMMA, LOG_LOWEST, sketch_quantiles
from stratalens.analyses.data.row_moments import RowMoments, join, pack, unpack
from stratalens.analyses.data.row_sample import NO_LIMIT, RowSample, draw_numbers, join_samples
from stratalens.analyses.estimators.closed_form import fit_closed_form
from stratalens.analyses.estimators.moment_probes import fit_from_moments

NAMES = ("first", "second", "third", "fourth", "scatter", "cross", "squares")


def assert_same(a: RowMoments, b: RowMoments, scale: float = 1.0) -> None:
    b = b.around(a.centre)
    assert a.count == b.count
    for name in NAMES:
        x, y = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9 * scale, err_msg=name)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 9), min_size=2, max_size=5),
    st.floats(-30, 30),
    st.permutations(range(5)),
)
def test_parts_join_in_any_order(seed: int, sizes: list[int], offset: float, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(n, 3)) * rng.uniform(0.1, 3) + offset for n in sizes]
    scale = 1 + abs(offset) ** 4 * sum(sizes)  # of the sums before they are moved
    parts = [RowMoments.of_rows(x).around(rng.normal(size=3) + offset) for x in rows]
    total = RowMoments.of_rows(np.concatenate(rows))
    assert_same(total, join([parts[i] for i in order if i < len(parts)]), scale)
    nested = parts[0] + join(parts[1:]) if len(parts) > 2 else parts[1] + parts[0]
    assert_same(total, nested, scale)
    rest = total.without(parts[0])
    assert_same(RowMoments.of_rows(np.concatenate(rows[1:])), rest, scale)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(0, 12),
    st.permutations(range(4)),
)
def test_the_sample_does_not_depend_on_the_division_into_parts(
    rows: list[tuple[int, int]], size: int, order: list[int]
) -> None:
    """Each row has an entity and a part; an entity may have rows in several parts."""
    entity = draw_numbers([e for e, _ in rows], 3)
    part = np.array([p for _, p in rows])
    number = np.arange(len(rows))

    def drawn(chosen: np.ndarray) -> RowSample:
        all_rows = RowSample(entity[chosen], number[chosen], np.zeros(chosen.sum(), int), NO_LIMIT, number[chosen])
        return all_rows.ordered(size)[0]

    whole = drawn(part >= 0)
    a, b, c, d = (drawn(part == p) for p in order)
    for joined in (
        join_samples([a, b, c, d], size),
        join_samples([join_samples([c, a], size), join_samples([d, b], size)], size),
        join_samples([join_samples([join_samples([d, c], size), b], size), a], size),
    ):
        assert joined.limit == whole.limit
        assert joined.values is not None
        np.testing.assert_array_equal(joined.values, whole.values)
    assert len(whole.entity) <= size
    for name in np.unique(whole.entity):  # whole entities
        assert (whole.entity == name).sum() == (entity == name).sum()


@pytest.mark.parametrize("method", ["ridge", "lda", "diffmeans"])
@pytest.mark.parametrize(("n", "d"), [(90, 7), (24, 40)])
def test_probes_from_sums_are_those_from_rows(method: str, n: int, d: int) -> None:
    """Also with a feature that is constant, one that is far from zero, and a class of several groups."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 5
    x[:, 0], x[:, 1] = 3.0, x[:, 1] + 1e3
    group = rng.integers(0, 4, n)
    signs = np.array([-1, 1, 1, 0], dtype=np.int8)
    moments = [RowMoments.of_rows(x[group == g][:5]) + RowMoments.of_rows(x[group == g][5:]) for g in range(4)]
    for standardize in (False, True) if method != "lda" else (False,):
        fit = fit_closed_form(x, signs[group][:, None, None], group, method, standardize=standardize)
        coef, intercept = fit_from_moments(moments, signs, method, standardize=standardize)
        # The rows are shifted by a mean that rounds; features far from zero lose digits in the intercept.
        np.testing.assert_allclose(coef, fit.coef[0], rtol=1e-6, atol=1e-8 * abs(fit.coef).max())
        assert intercept == pytest.approx(fit.intercept[0], abs=1e-6 * (1 + abs(coef[1]) * 1e3))


def test_packed_matrices_and_quantiles() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(5, 5))
    matrix += matrix.T
    np.testing.assert_array_equal(unpack(pack(matrix), 5), matrix)
    values = np.exp(rng.normal(size=999) * 3)
    counts = np.bincount(((np.log(values) - LOG_LOWEST) / LOG_GAMMA).astype(int), minlength=BUCKETS)
    q = [0, 0.01, 0.5, 0.9, 1]
    np.testing.assert_allclose(
        sketch_quantiles(counts, q), np.quantile(values, q, method="lower"), rtol=1.01 * ACCURACY
    )
    assert np.isnan(sketch_quantiles(np.zeros(BUCKETS, int), q)).all()
