"""Held-out projection: the geometry against brute force, planted order found, nulls calibrated, nothing leaks."""

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
    """For every split which entities are shown, made the way project makes them."""
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
    """The definitions of the contract, literally, for one split, in float64."""
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
    found = project(ds, axis=axis, holdout=holdout, repeats=repeats, seed=3, **QUICK)
    units, g = clusters(ds), groups(ds, "trained_stage")
    labels = np.zeros(units.max() + 1, int)
    labels[units] = g.codes
    # The layout of project is by entities in the order of their codes.
    sides = splits(labels, holdout, repeats, 3)
    ends = (0, 5) if axis is None else (1, 4)
    for t in range(2):
        x = ds.resid_post.values[0, 0, :, t].astype(np.float64)
        each = [brute(x, units, g.codes, side, *ends) for side in sides]
        for name in each[0]:
            expected = np.mean([e[name] for e in each], axis=0)
            np.testing.assert_allclose(found[name].values[0, 0, t], expected, atol=2e-4, err_msg=name)


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
    """Huge entity offsets make any leak look like perfect order; without one there is none."""
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
    found = project(ds, **QUICK)
    ends = found.coordinate.sel(component="w1").isel(group=[0, -1]).diff("group")
    spread = np.abs(found.coordinate.sel(component="w1")).mean()
    assert abs(float(ends.mean())) < float(spread), "the ends of the axis are apart only by chance"
    leaky = project(ds.assign_coords(entity_id=ds.entity), **QUICK)  # rows taken for entities: what must not happen
    leak = leaky.coordinate.sel(component="w1").isel(group=[0, -1]).diff("group")
    assert float(leak.mean()) > 5 * abs(float(ends.mean()))


def test_planted_order_is_found_where_it_was_planted() -> None:
    ds = planted(stages=2, layers=2, groups=6, per_group=60, effect=1.5)
    found = project(ds, permutations=199, bootstrap=100, progress=False)
    there = found.isel(stage=-1, layer=-1)
    for name in ("r2", "rank_correlation", "kendall", "inner_rank_correlation", "exact_order"):
        assert (there[f"{name}_p"] <= 0.01).all(), name
        assert (there[name] >= there[f"{name}_low"]).all()
        assert (there[name] <= there[f"{name}_high"]).all()
        assert (there[name] > there[f"{name}_null"]).all()
    assert (there.r2 > 0.8).all()
    assert (there.exact_order > 0.9).all()
    untrained = found.isel(stage=0)
    assert (untrained.rank_correlation_p > 0.01).all(), "nothing was planted at the first stage"
    assert (untrained.r2 < untrained.r2_null + 0.15).all()
    coordinate = there.coordinate.sel(component="w1")
    assert (coordinate.diff("group") > 0).all()
    steps = coordinate.diff("group").mean()
    assert abs(float(steps) - 1.5) < 0.3, "steps along w1 are as long as planted"
    assert found.exposure.isel(stage=0).max() < 0, "the first stage is marked as not yet trained"
    assert found.attrs["site"] == "resid_post"
    assert found.attrs["hook"] == "blocks.{layer}.hook_resid_post"


def test_only_the_ends_apart_is_not_order() -> None:
    """First and last differ, the groups between do not: Spearman over all is large, over the inner ones it is not."""
    ds = planted(stages=1, layers=8, groups=6, per_group=40, effect=0.0, tokens=("t",), d=8, chunked=False)
    x = ds.resid_post.values
    x[..., ds.trained_stage.values == "s1", :, 0] -= 3
    x[..., ds.trained_stage.values == "s6", :, 0] += 3
    found = project(ds, permutations=99, bootstrap=0, progress=False)
    assert (found.rank_correlation_p <= 0.05).mean() > 0.7
    assert (found.inner_rank_correlation_p <= 0.05).mean() < 0.4


@pytest.mark.parametrize(("rows_per_entity", "entity_noise"), [(1, 0.0), (3, 3.0)])
def test_p_values_are_uniform_without_an_effect(rows_per_entity: int, entity_noise: float) -> None:
    layers = 100
    ds = planted(
        stages=1, layers=layers, groups=5, per_group=12, tokens=("t",), d=10, effect=0.0, seed=5,
        rows_per_entity=rows_per_entity, chunked=False,
    )  # fmt: skip
    if entity_noise:  # its own for every layer, so that layers are independent
        rng = np.random.default_rng(0)
        units = clusters(ds)
        ds.resid_post.values[0] += entity_noise * rng.standard_normal((layers, units.max() + 1, 1, 10))[
            :, units
        ].astype("f4")
    found = project(ds, permutations=99, bootstrap=0, seed=1, progress=False)
    for name in ("r2", "rank_correlation"):
        p = found[f"{name}_p"].values.ravel()
        assert kstest(p, "uniform").pvalue > 0.001, name
        assert (p <= 0.05).sum() <= binom.ppf(0.999, layers, 0.05)
    assert abs(float(found.rank_correlation_null.mean())) < 0.03
    # The line through few noisy centroids is no small R2: the null's mean says how large it is.
    assert abs(float((found.r2 - found.r2_null).mean())) < 0.03
    assert float(found.r2_null.mean()) > 0.3


def test_permutations_are_uniform_and_bootstrap_keeps_cells() -> None:
    labels = np.repeat(np.arange(3), [240, 240, 240])
    parts = halves(0.5, 40, np.random.default_rng(0))
    slots = Slots(labels, 3, parts, np.random.default_rng(1))
    sums = np.eye(len(labels), dtype=np.float32)  # so that a slot sum names its members
    where = []
    for batch in slots.permuted(sums, 60, np.random.default_rng(2)):
        assert set(np.unique(batch)) == {0.0, 1.0}
        np.testing.assert_array_equal(batch.sum(axis=2), 1)  # each entity in one slot of every division
        np.testing.assert_array_equal(batch.sum(axis=3), np.broadcast_to(slots.slot_sizes, batch.shape[:3]))
        group = batch.reshape(len(batch), 2, 3, parts.cells, -1).sum(axis=3).argmax(axis=2)
        np.testing.assert_array_equal(group[:, 0], group[:, 1])  # one labelling, two divisions into cells
        where.append(group[:, 0])
    group = np.concatenate(where)
    share = np.stack([(group == g).mean(axis=0) for g in range(3)])  # (group, entity)
    expected = slots.sizes[:, None] / slots.sizes.sum()
    z = (share - expected) / np.sqrt(expected * (1 - expected) / len(group))
    assert abs(z.mean()) < 0.1
    assert 0.8 < z.std() < 1.2
    order = slots.orders[0]
    for batch in slots.bootstrap(sums, 20, np.random.default_rng(3)):
        for s, (a, z_) in enumerate(itertools.pairwise(slots.starts)):
            inside = np.zeros(len(labels), bool)
            inside[order[a:z_]] = True
            assert (batch[:, 0, s][:, ~inside] == 0).all()
        totals = batch[:, 0].reshape(len(batch), 3, parts.cells, -1).sum(axis=(2, 3))
        np.testing.assert_array_equal(totals, np.broadcast_to(slots.sizes, totals.shape))


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
    found = centroids(ds, progress=False)
    assert found.centroid.dims == ("stage", "layer", "token", "group", "d_model")
    assert found["count"].dims == ("stage", "group")
    for g in found.group.values:
        rows = np.flatnonzero(ds.trained_stage.values == g)
        expected = ds.resid_post.values[:, :, rows].astype(np.float64).mean(axis=2)
        np.testing.assert_allclose(found.centroid.sel(group=g), expected, atol=1e-6)
        assert (found["count"].sel(group=g) == len(rows)).all()


def test_head_sites_keep_their_feature_dims() -> None:
    ds = planted(d=12, stages=5)
    z = xr.DataArray(
        ds.resid_post.values.reshape(5, 2, 160, 2, 3, 4),
        dims=("stage", "layer", "entity", "token", "head", "d_head"), coords=ds.resid_post.coords, name="z",
    )  # fmt: skip
    found = centroids(z, progress=False).centroid
    assert found.dims == ("stage", "layer", "token", "group", "head", "d_head")
    plain = centroids(ds, progress=False).centroid.values
    np.testing.assert_allclose(found.values.reshape(plain.shape), plain, atol=1e-6)
    xr.testing.assert_allclose(project(z, **QUICK).r2, project(ds, **QUICK).r2)


def test_constant_places_are_nan_and_constant_data_is_refused() -> None:
    ds = planted(chunked=False)
    ds.resid_post.values[0, 0] = ds.resid_post.values[0, 0, 0]
    found = project(ds, permutations=19, bootstrap=19, progress=False)
    assert np.isnan(found.r2[0, 0]).all()
    assert np.isnan(found.r2_p[0, 0]).all()
    assert np.isfinite(found.r2[1:]).all()
    ds.resid_post.values[:] = 1
    with pytest.raises(InputError, match="same in all rows"):
        project(ds, permutations=19, bootstrap=19, progress=False)


def test_bad_input_is_refused_with_what_mends_it() -> None:
    ds = planted(chunked=False)
    with pytest.raises(InputError, match="at least 3"):
        project(ds, order=["s1", "s2"])
    with pytest.raises(InputError, match="no group 's9'"):
        project(ds, axis=("s1", "s9"))
    with pytest.raises(InputError, match="two different groups"):
        project(ds, axis=("s1", "s1"))
    with pytest.raises(InputError, match="holdout"):
        project(ds, holdout=1.0, **QUICK)
    with pytest.raises(InputError, match="several groups"):
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
    for verb in (centroids, project):
        with pytest.raises(NonFiniteError, match=r"stage s2, layer 1.*entity r00004, token last"):
            verb(ds, progress=False)


def test_groups_so_small_that_a_resample_can_leave_a_half_empty():
    """Four entities a group: some bootstrap samples have no row in a half; they are left out of the interval."""
    rng = np.random.default_rng(3)
    codes = np.repeat(np.arange(3), 4)
    values = rng.normal(size=(12, 1, 5)) + 3.0 * codes[:, None, None]
    data = xr.DataArray(
        values.astype(np.float32),
        dims=("entity", "token", "d_model"),
        coords={"group": ("entity", np.array(["a", "b", "c"], dtype=object)[codes])},
    )
    found = project(data, "group", order=["a", "b", "c"], permutations=20, progress=False)
    assert bool(found.rank_correlation == 1)
    assert np.isfinite(found.rank_correlation_low).all()
    assert bool((found.r2_low <= found.r2).all())
