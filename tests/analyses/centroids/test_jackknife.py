"""Intervals of the held-out geometry: against a written-out jackknife, and how often they cover."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.centroids.centroids import project
from stratalens.analyses.centroids.jackknife import Jackknife, correlation_bounds, share_bounds, smallest_step
from stratalens.analyses.centroids.projection import gram, inner_products, statistics
from stratalens.analyses.centroids.resampling import Slots, halves


def data(seed: int, sets: int, sizes: tuple[int, ...], step: float) -> xr.DataArray:
    """So many data sets, one a layer, of groups in a line."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=(sets, len(group), 1, 6))
    x[..., 0] += step * group[:, None]
    names = np.array([f"g{g}" for g in group], object)
    return xr.DataArray(x, dims=("layer", "entity", "token", "d_model"), coords={"x": ("entity", names)})


def test_the_error_is_that_of_the_written_out_jackknife() -> None:
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(4), (8, 9, 10, 11))
    values = rng.normal(size=(len(codes), 5)) + codes[:, None] * 0.5
    table = np.concatenate([values, np.ones((len(codes), 1))], axis=1).astype(np.float32)
    splits = halves(0.5, 20, np.random.default_rng(1))
    slots = Slots(codes, 4, splits, np.random.default_rng(2))

    def measure(slot_sums: np.ndarray) -> np.ndarray:
        flat = slot_sums[:, 0]
        return statistics(inner_products(gram(flat[..., :5]), flat[..., -1].astype(float), splits), 0, 3)["r2"]

    jackknife = slots.jackknife(1000, rng)
    assert jackknife.weights.shape == (38, 38)
    replicates = np.concatenate([measure(batch) for batch in slots.weighted(table, jackknife.weights)])
    expected = 0.0
    for g in range(4):
        without = []
        for row in np.flatnonzero(codes == g):
            shortened = table.copy()
            shortened[row] = 0
            without.append(measure(slots.observed(shortened)[None])[0])
        expected += (len(without) - 1) / len(without) * np.sum((np.array(without) - np.mean(without)) ** 2)
    assert jackknife.standard_error(replicates) == pytest.approx(np.sqrt(expected), rel=1e-5)


def test_blocks_and_halves_of_entities_give_the_same_error_of_a_mean() -> None:
    rng = np.random.default_rng(3)
    values, strata = rng.normal(size=1000), np.repeat([0, 1], 500)
    for share, replicates in ((1.0, 1000), (1.0, 200), (0.5, 1000)):
        jackknife = Jackknife.of(strata, replicates, share, rng)
        assert len(jackknife.weights) == replicates
        means = [
            (jackknife.weights @ np.where(strata == s, values, 0)) / (jackknife.weights @ (strata == s)) for s in (0, 1)
        ]
        error = jackknife.standard_error((means[1] - means[0])[:, None])[0]
        assert error == pytest.approx(np.sqrt(2 / 500), rel=0.15)


def test_a_stratum_of_one_entity_joins_the_others() -> None:
    jackknife = Jackknife.of(np.array([0, 1, 1, 1]), 10, 1.0, np.random.default_rng(0))
    assert (jackknife.weights == 0).sum(axis=1).tolist() == [1, 1, 1, 1]


def test_an_interval_has_a_length_where_no_replicate_differs() -> None:
    one, zero = np.array([1.0, -1.0]), np.zeros(2)
    low, high = correlation_bounds(one, zero, smallest_step("rank_correlation", 6), 12)
    assert (low[0] < 0.99, high[0], low[1], high[1] > -0.99) == (True, 1.0, -1.0, True)
    low, high = share_bounds(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.1, 0.0]))
    assert low[0] == 0
    assert high[2] == 1
    assert low[1] < 0.5 < high[1]


@pytest.mark.parametrize(("sizes", "step"), [((12,) * 5, 0.0), ((12,) * 5, 0.5), ((30, 8, 8, 15), 0.6)])
def test_intervals_cover_the_expected_value(sizes: tuple[int, ...], step: float) -> None:
    """Bootstrap intervals of r2 held it in 70 to 85 % of such data sets."""
    order = [f"g{g}" for g in range(len(sizes))]
    result = project(data(5, 40, sizes, step), "x", order=order, permutations=0, bootstrap=60, progress=False)
    for name in ("r2", "rank_correlation", "kendall"):
        truth = float(result[name].mean())
        covered = (result[f"{name}_low"] <= truth) & (truth <= result[f"{name}_high"])
        assert float(covered.mean()) >= 0.9, name


def test_the_corrected_straightness_is_that_of_the_expected_centroids() -> None:
    """R2 of held-out centroids on a perfect line is .69 here, because their deviation across it is noise."""
    order = [f"g{g}" for g in range(6)]
    straight = data(6, 12, (60,) * 6, 0.45)
    bend = xr.DataArray(0.15 * (np.array([int(name[1:]) for name in straight.x.values]) - 2.5) ** 2, dims="entity")
    bent = straight + bend * xr.DataArray(np.eye(6)[1], dims="d_model")
    means = np.stack([0.45 * np.arange(6), 0.15 * (np.arange(6) - 2.5) ** 2])
    values = np.linalg.eigvalsh(np.cov(means))
    for x, expected in ((straight, 1.0), (bent.transpose(*straight.dims), values[-1] / values.sum())):
        result = project(x, "x", order=order, permutations=0, bootstrap=60, progress=False)
        assert float(result.r2_corrected.mean()) == pytest.approx(expected, abs=0.05)
        assert float(result.r2.mean()) < expected - 0.08
        covered = (result.r2_corrected_low <= expected + 1e-9) & (expected <= result.r2_corrected_high + 1e-9)
        assert float(covered.mean()) >= 0.8
    noise = project(data(7, 4, (12,) * 6, 0.1), "x", order=order, permutations=0, bootstrap=60, progress=False)
    assert np.isnan(noise.r2_corrected).all()
    assert np.isnan(noise.r2_corrected_low).all()
