"""Order is tested as order: random orders of groups that differ pass at the level of the test, and not more often."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binom, spearmanr

from stratalens.analyses.centroids.centroids import project
from stratalens.analyses.centroids.order_test import MOST_ORDERS, order_p

FAST = {"permutations": 0, "bootstrap": 0, "progress": False}


def at_points(points: np.ndarray, per_group: int = 12, noise: float = 1.0, seed: int = 0) -> xr.DataArray:
    """Activations of groups at given points (layer, group, feature), in random order of rows."""
    rng = np.random.default_rng(seed)
    layers, groups, d = points.shape
    codes = rng.permutation(np.repeat(np.arange(groups), per_group))
    x = points[:, codes] + noise * rng.standard_normal((layers, len(codes), d))
    names = np.array([f"g{i}" for i in range(groups)], object)
    return xr.DataArray(
        x[:, :, None].astype(np.float32),
        dims=("layer", "entity", "token", "d_model"),
        coords={"layer": np.arange(layers), "x": ("entity", names[codes])},
    )


def names(groups: int) -> list[str]:
    return [f"g{i}" for i in range(groups)]


def test_random_orders_of_separable_groups_are_no_order() -> None:
    """The permutation of labels calls these groups different, which they are; only the other test is about order."""
    layers, groups = 100, 8
    points = 4 * np.random.default_rng(1).standard_normal((layers, groups, 10))
    result = project(at_points(points, per_group=6), "x", order=names(groups), **FAST | {"permutations": 39})
    assert float((result.rank_correlation_p <= 0.05).mean()) > 0.5
    p = result.inner_rank_correlation_p.values.ravel()
    assert (p <= 0.05).sum() <= binom.ppf(0.9999, layers, 0.05)
    assert (p <= 0.5).mean() > 0.3
    assert result.attrs["orders"] == 720
    assert float(result.inner_rank_correlation_p_max.min()) > 0.01


def test_every_order_of_four_groups_is_without_a_claim() -> None:
    """Four groups have two orders of the inner ones: half of all orders have p = .5, the others p = 1."""
    points = 5 * np.random.default_rng(0).standard_normal((1, 4, 10))
    data = at_points(points)
    p = []
    for order in itertools.permutations(names(4)):
        if order[0] < order[-1]:
            result = project(data, "x", order=list(order), **FAST)
            p.append(float(result.inner_rank_correlation_p.item()))
            assert result.attrs["least_p"] == 0.5
    assert sorted(p) == [0.5] * 6 + [1.0] * 6


def test_groups_on_a_line_are_in_order() -> None:
    points = np.zeros((3, 8, 10))
    points[1:, :, 0] = 2 * np.arange(8)
    result = project(at_points(points, noise=0.7), "x", order=names(8), **FAST)
    np.testing.assert_allclose(result.inner_rank_correlation_p.values[1:].ravel(), 1 / 720, atol=3 / 720)
    assert float(result.inner_rank_correlation_p[0].item()) > 0.02
    assert (result.inner_rank_correlation_p_max >= result.inner_rank_correlation_p).all()
    assert float(result.inner_rank_correlation_p_max[1].item()) < 0.02
    np.testing.assert_allclose(result.inner_rank[1, 0, 1:-1], np.arange(1, 7), atol=0.1)
    inner = result.inner_rank.values[1, 0, 1:-1]
    assert float(result.inner_rank_correlation[1].item()) == pytest.approx(np.corrcoef(inner, range(6))[0, 1], abs=0.02)


def test_p_values_of_orders_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    ranks = np.stack([1.0 + rng.permutation(5) for _ in range(4)])
    ranks[2] = np.nan
    p, p_max, orders = order_p(ranks)
    assert orders == 120
    known = [0, 1, 3]
    null = np.array(
        [[spearmanr(ranks[k], order).statistic for k in known] for order in itertools.permutations(range(5))]
    )
    observed = np.array([spearmanr(ranks[k], np.arange(5)).statistic for k in known])
    np.testing.assert_allclose(p[known], (null >= observed - 1e-9).mean(axis=0))
    np.testing.assert_allclose(p_max[known], (null.max(axis=1)[:, None] >= observed - 1e-9).mean(axis=0))
    assert np.isnan(p[2])
    assert np.isnan(p_max[2])
    p, _, orders = order_p(np.arange(1.0, 13.0)[None], seed=1)
    assert orders == MOST_ORDERS
    assert p[0] == pytest.approx(1 / MOST_ORDERS)
    assert order_p(np.ones((2, 1)))[2] == 0


def test_three_groups_have_no_inner_order() -> None:
    result = project(at_points(5 * np.eye(3, 6)[None]), "x", order=names(3), **FAST)
    assert np.isnan(result.inner_rank_correlation_p).all()
    assert (result.attrs["orders"], result.attrs["least_p"]) == (0, 1.0)


def test_groups_without_an_order_have_principal_components_and_no_numbers_of_order() -> None:
    """Points of a square around the origin: both held-out components show it, at every layer."""
    square = np.zeros((2, 4, 30))
    square[:, :, :2] = [[-3, -2], [3, 2], [-3, 2], [3, -2]]
    data = at_points(square, per_group=40)
    result = project(data, "x", permutations=19, bootstrap=60, progress=False)
    assert result.attrs["ordered"] is False
    assert result.attrs["plane"] == "principal components"
    for name in ("rank_correlation", "kendall", "inner_rank_correlation", "exact_order"):
        for end in ("", "_low", "_high", "_p", "_null"):
            assert np.isnan(result[name + end]).all(), name + end
    assert np.isfinite(result.r2_p).all()
    points = result.coordinate.isel(token=0).sel(group=names(4)).values
    lengths = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    true = np.linalg.norm(square[0, :, None] - square[0, None], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(true, lengths.shape), atol=0.8)
    assert (result.coordinate_low <= result.coordinate + 1e-9).all()
    assert (result.coordinate_high >= result.coordinate - 1e-9).all()
    assert float((result.coordinate_high - result.coordinate_low).max()) < 2.5, "components keep their signs"
    chosen = project(data, "x", axis=("g0", "g1"), **FAST)
    assert chosen.attrs["plane"] == "order"
    assert np.isnan(chosen.rank_correlation).all()


def test_held_out_components_do_not_separate_noise() -> None:
    noise = at_points(np.zeros((12, 5, 200)), per_group=10)
    result = project(noise, "x", **FAST)
    spread = float(np.sqrt((result.coordinate**2).sum(["group", "component"]).mean()))
    in_sample = noise.groupby("x").mean().transpose("layer", "x", ...).values[:, :, 0]
    centred = in_sample - in_sample.mean(axis=1, keepdims=True)
    assert spread < 0.4 * np.sqrt((np.linalg.svd(centred, compute_uv=False)[:, :2] ** 2).sum(axis=1).mean())
