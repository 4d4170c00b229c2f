"""Cosines, agreement, drift and steps against their definitions; generalisation to other groups."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import stratalens as sl
from stratalens.analyses.centroids.centroids import centroids
from stratalens.analyses.directions.directions import agreement, cosines, drift, steps
from stratalens.analyses.probes.generalise import generalise
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError
from support.planted import planted

PAIRS = [("s1", "s2"), ("s1", "s4"), ("s2", "s4")]


def probe_like(ds: xr.Dataset, seed: int = 0, features: tuple[str, ...] = ("d_model",)) -> xr.Dataset:
    """Differences of means of pairs as a probe result, with scores of all rows (no folds)."""
    x = ds.resid_post.values.astype(np.float64)
    label = ds.trained_stage.values
    mean = {g: x[:, :, label == g].mean(2) for g in np.unique(label)}
    coef = np.stack([mean[b] - mean[a] for a, b in PAIRS], axis=3)
    middle = np.stack([(mean[b] + mean[a]) / 2 for a, b in PAIRS], axis=3)
    intercept = -(coef * middle).sum(-1)
    score = np.einsum("slntd,sltpd->sltpn", x, coef) + intercept[..., None]
    place = ("stage", "layer", "token", "pair")
    return xr.Dataset(
        {"coef": ((*place, "d_model"), coef), "intercept": (place, intercept), "score": ((*place, "entity"), score)},
        coords={
            **{k: ds[k] for k in ("stage", "layer", "token", "entity", "entity_id", "trained_stage")},
            "pair": [f"{a} v {b}" for a, b in PAIRS],
            "pair_first": ("pair", [a for a, _ in PAIRS]),
            "pair_second": ("pair", [b for _, b in PAIRS]),
        },
        attrs={"site": "resid_post", "target": "trained_stage", "method": "diffmeans", "normalize": 0},
    )


@pytest.mark.parametrize("over", ["pair", "layer", "stage", "token"])
def test_cosines_equal_the_definition(over: str) -> None:
    probes = probe_like(planted())
    result = cosines(probes, over=over)
    assert result.dims[-2:] == (over, f"{over}_other")
    a = result.isel({over: 0, f"{over}_other": 1})
    w = probes.coef
    first, second = w.isel({over: 0}, drop=True), w.isel({over: 1}, drop=True)
    norm = lambda v: np.sqrt((v**2).sum("d_model"))  # noqa: E731
    expected = (first * second).sum("d_model") / norm(first) / norm(second)
    np.testing.assert_allclose(a.values, expected.transpose(*a.dims).values, atol=1e-12)
    diagonal = np.diagonal(result.values, axis1=-2, axis2=-1)
    np.testing.assert_allclose(diagonal, 1, atol=1e-12)
    assert result.attrs["site"] == "resid_post"
    if over == "pair":
        assert result.pair_first_other.dims == ("pair_other",)


def test_random_directions_have_the_cosines_that_the_attribute_says() -> None:
    w = xr.DataArray(np.random.default_rng(0).standard_normal((200, 8, 32)), dims=("pair", "head", "d_head"))
    result = cosines(w)
    off = result.values[np.triu_indices(200, 1)]
    assert off.std() == pytest.approx(result.attrs["random_sd"], rel=0.05)


def noise_with_spectrum(layers: int = 1, groups: int = 4, d: int = 64, share: float = 0.0) -> xr.DataArray:
    """Noise whose variances fall as 1 / k; layers have the share `share` of it in common."""
    rng = np.random.default_rng(0)
    n = 60 * groups
    common = rng.standard_normal((1, n, 1, d))
    x = np.sqrt(share) * common + np.sqrt(1 - share) * rng.standard_normal((layers, n, 1, d))
    x *= np.arange(1, d + 1) ** -0.5
    names = np.array([f"g{g}" for g in range(groups)], object)
    labels = names[rng.permutation(np.repeat(np.arange(groups), 60))]
    coords = {"layer": np.arange(layers), "x": ("entity", labels)}
    return xr.DataArray(x.astype("f4"), dims=("layer", "entity", "token", "d_model"), coords=coords)


def test_chance_cosines_come_from_shuffled_labels_of_the_same_data() -> None:
    data = noise_with_spectrum()
    fit = {"order": ["g0", "g1", "g2", "g3"], "method": "diffmeans", "progress": False}
    probes = sl.probe(data, "x", folds=2, resamples=1, **fit)
    null = sl.shuffled_probes(data, "x", draws=60, **fit)
    assert null.coef.dims == ("draw", "layer", "token", "pair", "d_model")
    result = cosines(probes, null=null)
    a, b = np.random.default_rng(1).standard_normal((2, 4000, 64)) * np.arange(1, 65) ** -0.5
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert result.attrs["random_sd"] == pytest.approx(np.sqrt((expected**2).mean()), rel=0.15)
    assert result.attrs["random_from"] == "shuffled labels"
    assert cosines(probes).attrs["random_sd"] == 1 / 8 < 0.75 * result.attrs["random_sd"]
    place = result.random_mean.isel(layer=0, token=0)
    assert float(place.sel(pair="g0 v g1", pair_other="g0 v g2")) == pytest.approx(0.5, abs=0.1)
    assert float(place.sel(pair="g0 v g1", pair_other="g1 v g2")) == pytest.approx(-0.5, abs=0.1)
    assert float(place.sel(pair="g0 v g1", pair_other="g2 v g3")) == pytest.approx(0, abs=0.1)
    np.testing.assert_allclose(result.values, cosines(probes).values)


def test_layers_that_share_their_noise_are_alike_by_chance() -> None:
    data = noise_with_spectrum(layers=2, groups=2, share=0.9)
    fit = {"order": ["g0", "g1"], "progress": False}
    probes, null = sl.probe(data, "x", folds=2, **fit), sl.shuffled_probes(data, "x", draws=6, **fit)
    result = cosines(probes, "layer", null)
    assert float(result.random_mean.isel(layer=0, layer_other=1).item()) > 0.7
    with pytest.raises(InputError, match="other directions"):
        cosines(probes, "layer", null.isel(layer=[0]))
    with pytest.raises(InputError, match="'draw'"):
        cosines(probes, "layer", probes)
    with pytest.raises(InputError, match="two shuffles"):
        sl.shuffled_probes(data, "x", draws=1, **fit)


def test_zero_directions_are_nan_and_bad_dims_refused() -> None:
    w = xr.DataArray(np.eye(2), dims=("pair", "d_model"))
    w[0] = 0
    assert np.isnan(cosines(w)[0]).all()
    for bad in ("d_model", "layers"):
        with pytest.raises(InputError, match="over="):
            cosines(w, over=bad)
    with pytest.raises(InputError, match="coef"):
        cosines(xr.Dataset({"a": w}))


def test_agreement_is_one_with_itself_and_needs_equal_labels() -> None:
    probes = probe_like(planted())
    np.testing.assert_allclose(agreement(probes, probes.assign(coef=2 * probes.coef)), 1)
    with pytest.raises(InputError, match="labels"):
        agreement(probes, probes.isel(pair=[0, 1]))


def test_drift_of_a_turning_direction() -> None:
    angle = np.linspace(0, np.pi / 2, 5)
    w = xr.DataArray(2 * np.stack([np.cos(angle), np.sin(angle)], 1), dims=("stage", "d_model"))
    last, before = drift(w), drift(w, reference="previous")
    np.testing.assert_allclose(last.cosine, np.cos(np.pi / 2 - angle), atol=1e-12)
    np.testing.assert_allclose(before.cosine[1:], np.cos(np.pi / 8), atol=1e-12)
    assert np.isnan(before.distance[0])
    np.testing.assert_allclose(last.length, 2)
    moved = drift(centroids(planted(stages=3), progress=False), reference="first")
    assert moved.distance.dims == ("stage", "layer", "token", "group")
    np.testing.assert_allclose(moved.distance[0], 0, atol=1e-6)
    with pytest.raises(InputError, match="two entries"):
        drift(w.isel(stage=[0]))


def test_generalise_shows_the_order_of_groups_outside_the_pair() -> None:
    ds = planted(stages=2, groups=6, per_group=60, effect=1.0)
    probes = probe_like(ds)
    result = generalise(probes, ds, draws=200)
    assert result.dims == ("stage", "layer", "token", "pair", "group")
    there = result.isel(stage=-1, layer=-1)
    assert (there.order_kept == 1).all()
    assert (there.low < there).all()
    assert (there < there.high).all()
    expected = probes.score.isel(entity=np.flatnonzero(ds.trained_stage.values == "s3")).mean("entity")
    np.testing.assert_allclose(result.sel(group="s3").values, expected.values, atol=1e-9)


def test_generalise_applies_probes_to_new_entities_only() -> None:
    ds = planted(stages=2, groups=6, per_group=40, effect=1.0)
    half = np.isin(ds.entity_id.values, np.unique(ds.entity_id.values)[::2])
    old, new = ds.isel(entity=np.flatnonzero(half)), ds.isel(entity=np.flatnonzero(~half))
    probes = probe_like(old)
    result = generalise(probes, new, draws=100, progress=False)
    x = new.resid_post.values[1, 1, :, 1].astype(np.float64)
    score = x @ probes.coef.values[1, 1, 1, 1] + probes.intercept.values[1, 1, 1, 1]
    expected = [score[new.trained_stage.values == g].mean() for g in result.group.values]
    np.testing.assert_allclose(result.isel(stage=1, layer=1, token=1, pair=1), expected, atol=1e-4)
    mixed = generalise(probes, ds, draws=100, progress=False)
    xr.testing.assert_allclose(mixed, result)
    with pytest.raises(InputError, match="seen every entity"):
        generalise(probes, old.isel(entity=slice(0, 30)))
    with pytest.raises(InputError, match="layer 1 of the probes is missing from the data"):
        generalise(probes, new.isel(layer=[0]))


def test_generalise_is_not_fooled_by_as_many_rows() -> None:
    ds = planted(stages=1, layers=1, groups=3, per_group=20, tokens=("t",)).drop_vars(["entity", "entity_id"])
    probes = probe(ds, progress=False)
    other = ds.isel(entity=np.random.default_rng(0).permutation(ds.sizes["entity"]))
    generalise(probes, ds, draws=20)
    with pytest.raises(InputError, match="cannot tell which entities"):
        generalise(probes, other, draws=20, progress=False)


def test_probes_of_one_place_are_applied_at_that_place() -> None:
    ds = planted(stages=2, groups=6, per_group=40, effect=2.0)
    half = np.isin(ds.entity_id.values, np.unique(ds.entity_id.values)[::2])
    old, new = ds.isel(entity=np.flatnonzero(half)), ds.isel(entity=np.flatnonzero(~half))
    probes, place = probe_like(old), {"stage": 1, "layer": 1}
    result = generalise(probes.isel(place), new, draws=20, progress=False)
    whole = generalise(probes, new, draws=20, progress=False).isel(place)
    np.testing.assert_allclose(result, whole, atol=1e-6)
    nameless = probes.isel(place).drop_vars(["stage", "layer"])
    with pytest.raises(InputError, match="number of stages: the probes have 1, the data has 2"):
        generalise(nameless, new, draws=20, progress=False)


def test_steps_of_a_line_a_corner_and_of_noise() -> None:
    rng = np.random.default_rng(0)
    line = np.outer(np.arange(5), rng.standard_normal(300)) + 10
    noise = rng.standard_normal((2000, 300))
    result = steps(xr.DataArray(line, dims=("group", "d_model")))
    np.testing.assert_allclose(result.turn[1:-1], 0, atol=1e-6)
    np.testing.assert_allclose(result.distance[1:], np.linalg.norm(line[1] - line[0]), rtol=1e-9)
    assert np.isnan(result.turn[[0, -1]]).all()
    turns = steps(xr.DataArray(noise, dims=("group", "d_model")))
    assert abs(float(turns.turn.mean()) - turns.turn_random) < 0.01
    with pytest.raises(InputError, match="two entries"):
        steps(xr.DataArray(line[:1], dims=("group", "d_model")))


def test_steps_of_centroids_know_their_place_and_groups() -> None:
    ds = planted(groups=4, per_group=200, effect=5.0)
    result = steps(centroids(ds, progress=False))
    assert result.distance.dims == ("stage", "layer", "token", "group")
    assert result.group.values.tolist() == ["s1", "s2", "s3", "s4"]
    assert result.site == "resid_post"
    last = result.isel(stage=-1, layer=-1)
    assert (last.turn[:, 1:-1] < 0.3).all()
    assert (result.isel(stage=0).turn[..., 1:-1] > 1.5).all(), "without an effect the path is a random walk"
