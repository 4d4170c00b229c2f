"""Directions from every kind of result: unit vectors with their place, labels and scale; files give them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import stratalens as sl
from stratalens.store.errors import InputError
from support.planted import planted


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    data = planted(groups=3, stages=2, per_group=20)
    return data.assign_coords(weights_fingerprint=("stage", np.array(["aa", "bb"], object)))


@pytest.fixture(scope="module")
def probes(ds: xr.Dataset) -> xr.Dataset:
    return sl.probe(ds, target="trained_stage", method="diffmeans", progress=False, resamples=10, folds=3)


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_directions_of_probes(probes: xr.Dataset) -> None:
    directions = sl.directions(probes)
    assert directions.site == "resid_post"
    assert directions.stage == ("s0", "s3")
    assert directions.layer == (0, 1)
    assert directions.fingerprints == {"s0": "aa", "s3": "bb"}
    assert directions.names[:2] == ("s1 v s2 at entity_last", "s1 v s3 at entity_last")
    coef = probes.coef.sel(stage="s3", layer=1, pair="s1 v s3", token="last").values
    own = directions.sel(direction="s1 v s3 at last")
    np.testing.assert_allclose(own.at("s3", 1)[0], unit(coef), rtol=1e-6)
    assert float(own.scale.sel(stage="s3", layer=1)[0]) == pytest.approx(np.linalg.norm(coef))
    assert own.token == ("last",)
    assert own.data.pair_second.values.tolist() == ["s3"]
    assert directions.data.attrs["method"] == "diffmeans"


def test_one_position_leaves_the_names_of_the_pairs(probes: xr.Dataset) -> None:
    directions = sl.directions(probes.sel(token="last", stage="s3"))
    assert directions.names == ("s1 v s2", "s1 v s3", "s2 v s3")
    assert directions.stage == ("s3",)
    assert directions.fingerprints == {"s3": "bb"}
    assert sl.directions(probes.sel(token="last")).sel(token="last").names == directions.names


def test_directions_of_centroids_are_differences(ds: xr.Dataset) -> None:
    centroids = sl.centroids(ds, by="trained_stage", progress=False).sel(token=["last"])
    directions = sl.directions(centroids, pairs=[("s3", "s1")])
    c = centroids.centroid.sel(stage="s3", layer=1, token="last")
    expected = (c.sel(group="s1") - c.sel(group="s3")).values
    np.testing.assert_allclose(directions.at("s3", 1)[0], unit(expected), rtol=1e-5)
    assert float(directions.scale.sel(stage="s3", layer=1)[0]) == pytest.approx(np.linalg.norm(expected), rel=1e-6)
    assert directions.names == ("s3 v s1",)
    assert len(sl.directions(centroids)) == 3


def test_directions_of_principal_components(ds: xr.Dataset) -> None:
    result = sl.pca(ds, components=2, progress=False).sel(token="last")
    directions = sl.directions(result)
    assert directions.names == ("component 0", "component 1")
    np.testing.assert_allclose(directions.scale.values, np.sqrt(result.variance.values))


def test_names_of_the_callers_coordinate_stay() -> None:
    x = xr.DataArray(
        np.eye(4)[:2] * 3, dims=("direction", "d_model"), coords={"direction": ["causal", "merely correlated"]}
    )
    directions = sl.directions(x.expand_dims(layer=[2, 5]), site="resid_mid")
    assert directions.names == ("causal", "merely correlated")
    assert directions.layer == (2, 5)
    assert directions.stage == ()
    assert directions.scale.values.tolist() == [[3.0, 3.0]] * 2
    assert sl.directions(x.rename(d_model="features"), site="resid_mid").feature_shape == (4,)
    assert sl.directions(directions) is directions


def test_two_feature_dims() -> None:
    x = xr.DataArray(np.ones((2, 3, 4)), dims=("layer", "head", "d_head"), coords={"layer": [0, 1]}, name="z")
    directions = sl.directions(x, name="mean")
    assert directions.site == "z"
    assert directions.feature_shape == (3, 4)
    np.testing.assert_allclose((directions.at(None, 1) ** 2).sum(-1), 1, rtol=1e-6)


def test_a_vector_without_length_is_nan() -> None:
    directions = sl.directions(xr.DataArray([[0.0, 0.0], [0.0, 2.0]], dims=("direction", "d_model")), site="embed")
    assert np.isnan(directions.at(None, None)[0]).all()
    assert directions.at(None, None)[1].tolist() == [0, 1]
    assert directions.layer == ()


@pytest.mark.parametrize("file", ["axis.zarr", "axis.safetensors"])
def test_files_give_everything_back(probes: xr.Dataset, tmp_path: Path, file: str) -> None:
    directions = sl.directions(probes, entities=["e2", "e1"])
    for _ in range(2):  # the second replaces the first
        directions.save(tmp_path / file)
    loaded = sl.directions(tmp_path / file)
    xr.testing.assert_equal(loaded.data, directions.data)
    assert loaded.data.attrs == directions.data.attrs
    assert loaded.entities == {"e1", "e2"}
    assert loaded.fingerprints == directions.fingerprints
    assert repr(loaded) == repr(directions)
    assert [p.name for p in tmp_path.iterdir()] == [file]


def test_the_files_are_labelled_for_others(probes: xr.Dataset, tmp_path: Path) -> None:
    from safetensors import safe_open

    directions = sl.directions(probes)
    directions.save(tmp_path / "a.safetensors")
    directions.save(tmp_path / "a.zarr")
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        header = json.loads(file.metadata()["stratalens"])
        assert header["dims"] == ["stage", "layer", "direction", "d_model"]
        assert header["attrs"]["site"] == "resid_post"
        assert file.get_tensor("vector").shape == directions.vectors.shape
    assert xr.open_zarr(tmp_path / "a.zarr", consolidated=False).attrs["dims"] == header["dims"]


def test_what_is_no_directions_is_refused(probes: xr.Dataset, ds: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass site="):
        sl.directions(xr.DataArray([1.0], dims="d_model"))
    with pytest.raises(InputError, match="no feature dim"):
        sl.directions(xr.DataArray([1.0], dims="direction"), site="embed")
    with pytest.raises(InputError, match="no group: did you mean 's1'"):
        sl.directions(sl.centroids(ds, by="trained_stage", progress=False), pairs=[("s1x", "s2")])
    with pytest.raises(InputError, match="did you mean 's1 v s2 at last'"):
        sl.directions(probes).sel(direction="s1 v s2 at lost")
    with pytest.raises(InputError, match="layer=9 is not among"):
        sl.directions(probes).sel(layer=9)
    with pytest.raises(InputError, match="does not exist"):
        sl.directions(tmp_path / "nothing.zarr")
    (tmp_path / "a.safetensors").write_text("x")
    for call in (sl.directions, sl.directions(probes).save):
        with pytest.raises(InputError, match="does not contain directions"):
            call(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_text() == "x"
    with pytest.raises(InputError, match="two directions are called"):
        sl.directions(
            xr.DataArray(np.eye(2), dims=("direction", "d_model"), coords={"direction": ["a", "a"]}), site="embed"
        )
    with pytest.raises(InputError, match="got dict"):
        sl.directions({})  # type: ignore[arg-type]
