"""Centroids and held-out projection: geometry against brute force, planted order, calibrated nulls, no leaks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binom, kendalltau, kstest, spearmanr

from stratalens.analyses.centroids.centroids import centroids, project
from stratalens.analyses.centroids.resampling import Slots, halves
from stratalens.analyses.data.groups import clusters, groups
from stratalens.store.errors import InputError, NonFiniteError, NotRecordedError
from support.planted import planted

QUICK = {"permutations": 0, "bootstrap": 0, "progress": False}


def splits(labels: np.ndarray, holdout: float, repeats: int, seed: int) -> list[np.ndarray]:
    """Held-out entities of every split, chosen as project chooses them."""
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0])
    parts = halves(holdout, repeats, rng)
    slots = Slots(labels, int(labels.max()) + 1, parts, rng)
    out = []
    for order in slots.orders:
        cell = np.empty(len(labels), int)
        for s, (a, z) in enumerate(itertools.pairwise(slots.starts)):
            cell[order[a:z]] = s % parts.cells
            assert (labels[order[a:z]] == s // parts.cells).all()
        out += [parts.shown[h][cell] == 1 for h in range(len(parts.shown))]
    return out


def brute(x: np.ndarray, rows_of: np.ndarray, codes: np.ndarray, shown: np.ndarray, first: int, last: int) -> dict:
    """The definitions of the statistics for one split, in float64."""
    G = codes.max() + 1
    a, s = (np.stack([x[(codes == g) & side[rows_of]].mean(0) for g in range(G)]) for side in (~shown, shown))
    w1 = a[last] - a[first]
    w1 /= np.linalg.norm(w1)
    centred = a - a.mean(0)
    rest = centred - np.outer(centred @ w1, w1)
    w2 = np.linalg.svd(rest)[2][0]
    w2 *= np.sign((rest @ w2)[[(G - 1) // 2, G // 2]].sum())
    points = s - s.mean(0)
    direction = np.linalg.svd(points)[2][0]
    residual = points - np.outer(points @ direction, direction)
    along = points @ w1
    inner = [g for g in range(G) if g not in (first, last)]
    return {
        "r2": 1 - (residual**2).sum() / (points**2).sum(),
        "rank_correlation": spearmanr(along, np.arange(G))[0],
        "kendall": kendalltau(along, np.arange(G))[0],
        "inner_rank_correlation": spearmanr(along[inner], np.arange(len(inner)))[0],
        "exact_order": float((np.diff(along) > 0).all()),
        "coordinate": np.stack([along, points @ w2], -1),
    }


@pytest.mark.parametrize(
    ("axis", "holdout", "repeats", "rows_per_entity"),
    [(None, 0.5, 20, 1), (("s2", "s5"), 0.5, 7, 3), (None, 0.2, 9, 2), (None, 0.5, 40, 1)],
)
def test_geometry_equals_brute_force(axis: tuple | None, holdout: float, repeats: int, rows_per_entity: int) -> None:
    ds = planted(
        stages=1, layers=1, groups=6, per_group=17, rows_per_entity=rows_per_entity, tokens=("a", "b"), effect=0.4
    )
    result = project(ds, axis=axis, holdout=holdout, repeats=repeats, seed=3, **QUICK)
    units, g = clusters(ds), groups(ds, "trained_stage")
    labels = np.zeros(units.max() + 1, int)
    labels[units] = g.codes
    # project orders entities by their codes.
    sides = splits(labels, holdout, repeats, 3)
    ends = (0, 5) if axis is None else (1, 4)
    for t in range(2):
        x = ds.resid_post.values[0, 0, :, t].astype(np.float64)
        each = [brute(x, units, g.codes, side, *ends) for side in sides]
        for name in each[0]:
            expected = np.mean([e[name] for e in each], axis=0)
            np.testing.assert_allclose(result[name].values[0, 0, t], expected, atol=2e-4, err_msg=name)


def test_every_split_parts_entities_and_keeps_groups_whole() -> None:
    for holdout in (0.2, 0.5, 0.7):
        least = halves(holdout, 30, np.random.default_rng(0)).least
        labels = np.repeat(np.arange(3), [least, least + 3, 30])
        for side in splits(labels, holdout, 30, 1):
            for g in range(3):
                assert 0 < side[labels == g].sum() < (labels == g).sum()
        shares = [side.mean() for side in splits(labels, holdout, 30, 1)]
        assert abs(np.mean(shares) - holdout) < 0.06


def test_an_axis_is_never_scored_on_the_entities_it_was_made_from() -> None:
    """Large entity offsets turn any leak into perfect order; without a leak there is no order."""
    ds = planted(
        stages=1,
        layers=30,
        groups=4,
        per_group=8,
        rows_per_entity=4,
        effect=0.0,
        entity_noise=30.0,
        d=200,
        tokens=("t",),
    )
    result = project(ds, **QUICK)
    ends = result.coordinate.sel(component="w1").isel(group=[0, -1]).diff("group")
    spread = np.abs(result.coordinate.sel(component="w1")).mean()
    assert abs(float(ends.mean())) < float(spread), "the distance between the ends of the axis is random"
    leaky = project(ds.assign_coords(entity_id=ds.entity), **QUICK)  # rows as entities, which must leak
    leak = leaky.coordinate.sel(component="w1").isel(group=[0, -1]).diff("group")
    assert float(leak.mean()) > 5 * abs(float(ends.mean()))


def test_planted_order_is_found_where_it_was_planted() -> None:
    ds = planted(stages=2, layers=2, groups=6, per_group=60, effect=1.5)
    result = project(ds, permutations=199, bootstrap=100, progress=False)
    there = result.isel(stage=-1, layer=-1)
    for name in ("r2", "rank_correlation", "kendall", "inner_rank_correlation", "exact_order"):
        assert (there[name] > there[f"{name}_null"]).all()
        if name == "inner_rank_correlation":
            np.testing.assert_allclose(there[f"{name}_p"], 1 / 24)
        else:
            assert (there[f"{name}_p"] <= 0.01).all(), name
            assert there[f"{name}_p"].attrs["null"].startswith("no difference between groups")
        if name == "exact_order":
            assert np.isnan(there.exact_order_low).all()
            assert np.isnan(there.exact_order_high).all()
        else:
            assert (there[name] >= there[f"{name}_low"]).all()
            assert (there[name] <= there[f"{name}_high"]).all()
    assert result.attrs["ordered"] is True
    assert result.attrs["plane"] == "order"
    assert (result.attrs["orders"], result.attrs["least_p"]) == (24, 1 / 24)
    np.testing.assert_allclose(there.inner_rank.isel(token=0), [np.nan, 1, 2, 3, 4, np.nan], atol=0.05)
    assert (there.r2 > 0.8).all()
    assert (there.exact_order > 0.9).all()
    untrained = result.isel(stage=0)
    assert (untrained.rank_correlation_p > 0.01).all(), "nothing was planted at the first stage"
    assert (untrained.r2 < untrained.r2_null + 0.15).all()
    coordinate = there.coordinate.sel(component="w1")
    assert (coordinate.diff("group") > 0).all()
    steps = coordinate.diff("group").mean()
    assert abs(float(steps) - 1.5) < 0.3, "steps along w1 are as long as planted"
    assert result.exposure.isel(stage=0).max() < 0, "the first stage is marked as not yet trained"
    assert result.attrs["site"] == "resid_post"
    assert result.attrs["hook"] == "blocks.{layer}.hook_resid_post"


def test_groups_that_differ_only_at_the_ends_are_not_in_order() -> None:
    """Only the first and the last group differ: Spearman is large over all groups, not over the inner ones."""
    ds = planted(stages=1, layers=8, groups=6, per_group=40, effect=0.0, tokens=("t",), d=8, chunked=False)
    x = ds.resid_post.values
    x[..., ds.trained_stage.values == "s1", :, 0] -= 3
    x[..., ds.trained_stage.values == "s6", :, 0] += 3
    result = project(ds, permutations=99, bootstrap=0, progress=False)
    assert (result.rank_correlation_p <= 0.05).mean() > 0.7
    assert (result.inner_rank_correlation_p <= 0.05).mean() < 0.4


@pytest.mark.parametrize(("rows_per_entity", "entity_noise"), [(1, 0.0), (3, 3.0)])
def test_p_values_are_uniform_without_an_effect(rows_per_entity: int, entity_noise: float) -> None:
    layers = 100
    ds = planted(
        stages=1, layers=layers, groups=5, per_group=12, tokens=("t",), d=10, effect=0.0, seed=5,
        rows_per_entity=rows_per_entity, chunked=False,
    )  # fmt: skip
    if entity_noise:  # independent in every layer
        rng = np.random.default_rng(0)
        units = clusters(ds)
        ds.resid_post.values[0] += entity_noise * rng.standard_normal((layers, units.max() + 1, 1, 10))[
            :, units
        ].astype("f4")
    result = project(ds, permutations=99, bootstrap=0, seed=1, progress=False)
    for name in ("r2", "rank_correlation"):
        p = result[f"{name}_p"].values.ravel()
        assert kstest(p, "uniform").pvalue > 0.001, name
        assert (p <= 0.05).sum() <= binom.ppf(0.999, layers, 0.05)
    assert abs(float(result.rank_correlation_null.mean())) < 0.03
    # Few noisy centroids have a large R2; the mean of the null shows how large.
    assert abs(float((result.r2 - result.r2_null).mean())) < 0.03
    assert float(result.r2_null.mean()) > 0.3


def test_normalised_activations_lose_their_norms() -> None:
    ds = planted(stages=1, layers=1, groups=4, per_group=30, effect=0.0, chunked=False)
    x = ds.resid_post.values
    x += 5
    scale = 1 + 0.5 * groups(ds, "trained_stage").codes
    x *= scale[None, None, :, None, None]
    plain, unit = (project(ds, normalize=n, permutations=99, bootstrap=0, progress=False) for n in (False, True))
    assert (plain.rank_correlation_p <= 0.05).all()
    assert (unit.rank_correlation_p > 0.05).all()
    each = centroids(ds, normalize="centroids", progress=False)
    np.testing.assert_allclose((each.centroid**2).sum("d_model"), 1, rtol=1e-5)
    shapes = project(ds, normalize="centroids", **QUICK)
    assert np.isfinite(shapes.r2).all()


def test_centroids_equal_means_in_float64() -> None:
    ds = planted(rows_per_entity=2)
    result = centroids(ds, progress=False)
    assert result.centroid.dims == ("stage", "layer", "token", "group", "d_model")
    assert result["count"].dims == ("stage", "group")
    for g in result.group.values:
        rows = np.flatnonzero(ds.trained_stage.values == g)
        expected = ds.resid_post.values[:, :, rows].astype(np.float64).mean(axis=2)
        np.testing.assert_allclose(result.centroid.sel(group=g), expected, atol=1e-6)
        assert (result["count"].sel(group=g) == len(rows)).all()


def test_head_sites_keep_their_feature_dims() -> None:
    ds = planted(d=12, stages=5)
    z = xr.DataArray(
        ds.resid_post.values.reshape(5, 2, 160, 2, 3, 4),
        dims=("stage", "layer", "entity", "token", "head", "d_head"), coords=ds.resid_post.coords, name="z",
    )  # fmt: skip
    result = centroids(z, progress=False).centroid
    assert result.dims == ("stage", "layer", "token", "group", "head", "d_head")
    plain = centroids(ds, progress=False).centroid.values
    np.testing.assert_allclose(result.values.reshape(plain.shape), plain, atol=1e-6)
    xr.testing.assert_allclose(project(z, **QUICK).r2, project(ds, **QUICK).r2)


def test_constant_places_are_nan_and_constant_data_is_refused() -> None:
    ds = planted(chunked=False)
    ds.resid_post.values[0, 0] = ds.resid_post.values[0, 0, 0]
    result = project(ds, permutations=19, bootstrap=19, progress=False)
    assert np.isnan(result.r2[0, 0]).all()
    assert np.isnan(result.r2_p[0, 0]).all()
    assert np.isfinite(result.r2[1:]).all()
    ds.resid_post.values[:] = 1
    with pytest.raises(InputError, match="same in all rows"):
        project(ds, permutations=19, bootstrap=19, progress=False)


def test_bad_input_is_refused_with_a_remedy() -> None:
    ds = planted(chunked=False)
    with pytest.raises(InputError, match="at least 3"):
        project(ds, order=["s1", "s2"])
    with pytest.raises(InputError, match="no group 's9'"):
        project(ds, axis=("s1", "s9"))
    with pytest.raises(InputError, match="two different groups"):
        project(ds, axis=("s1", "s1"))
    with pytest.raises(InputError, match="holdout"):
        project(ds, holdout=1.0, **QUICK)
    with pytest.raises(InputError, match="too few entities"):
        project(ds.assign_coords(entity_id=("entity", ["one"] * 160)), order=["s1", "s2", "s3"])
    rows = np.concatenate([np.flatnonzero(ds.trained_stage == g)[: 2 if g == "s1" else 9] for g in ("s1", "s2", "s3")])
    with pytest.raises(InputError, match=r"too few entities.*s1 \(2\)"):
        project(ds.isel(entity=rows))
    with pytest.raises(InputError, match="normalize"):
        centroids(ds, normalize="rows")  # type: ignore[arg-type]
    ds["recorded"][1, 4] = False
    with pytest.raises(NotRecordedError, match="s2"):
        project(ds)
    assert int(project(ds, skip_missing=True, **QUICK).entities[1].sum()) == 159
    ds["recorded"][1, 4] = True
    ds.resid_post.values[1, 1, 4, 1, 0] = np.inf
    for analysis in (centroids, project):
        with pytest.raises(NonFiniteError, match=r"stage s2, layer 1.*entity r00004, token last"):
            analysis(ds, progress=False)


def test_groups_so_small_that_a_resample_can_leave_a_half_empty() -> None:
    """With four entities a group, bootstrap samples without rows in one half do not count in the interval."""
    rng = np.random.default_rng(3)
    codes = np.repeat(np.arange(3), 4)
    values = rng.normal(size=(12, 1, 5)) + 3.0 * codes[:, None, None]
    data = xr.DataArray(
        values.astype(np.float32),
        dims=("entity", "token", "d_model"),
        coords={"group": ("entity", np.array(["a", "b", "c"], dtype=object)[codes])},
    )
    result = project(data, "group", order=["a", "b", "c"], permutations=20, progress=False)
    assert bool(result.rank_correlation == 1)
    assert np.isfinite(result.rank_correlation_low).all()
    assert bool((result.r2_low <= result.r2).all())
