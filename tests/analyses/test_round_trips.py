"""Datasets and results that were pickled, written, joined or indexed again work in every analysis and plot."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import xarray as xr

import stratalens as sl
from stratalens.analyses.plots.spec import FigureSpec
from stratalens.store.errors import InputError
from support.planted import planted
from support.stores import make_store

# A pandas index of text is fixed-width text for zarr, which warns about it.
pytestmark = pytest.mark.filterwarnings("ignore:The data type:zarr.errors.UnstableSpecificationWarning")

QUIET: dict[str, Any] = {"progress": False, "workers": 1, "cache": False}
FEW: dict[str, Any] = {**QUIET, "resamples": 10}
STATISTICS = ("l2", "loss")


def with_statistics(ds: xr.Dataset) -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape = (ds.sizes["stage"], ds.sizes["entity"])
    values = {name: (("stage", "entity"), rng.random(shape, dtype=np.float32)) for name in STATISTICS}
    return ds.assign(values).compute()


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    data = planted(stages=4, layers=1, groups=3, per_group=15, d=4, tokens=("last",), effect=2.0)
    return with_statistics(data.isel(stage=[0, 3]))


def through_zarr(data: Any, folder: Path) -> Any:
    data.to_zarr(folder / "x.zarr", consolidated=False)
    back = xr.open_zarr(folder / "x.zarr", consolidated=False)
    return back[data.name or "__xarray_dataarray_variable__"] if isinstance(data, xr.DataArray) else back


def through_netcdf(data: Any, folder: Path) -> Any:
    if not (find_spec("netCDF4") or find_spec("h5netcdf")):  # the netCDF 3 of SciPy takes no lists of text
        lists = [name for name, value in data.attrs.items() if isinstance(value, list | tuple)]
        data = data.assign_attrs(dict.fromkeys(lists, ""))
    data.to_netcdf(folder / "x.nc")
    opened = xr.open_dataset(folder / "x.nc")
    return opened[data.name or "__xarray_dataarray_variable__"] if isinstance(data, xr.DataArray) else opened


def through_concat(data: Any, folder: Path) -> Any:
    if "stage" not in data.dims:
        return data
    parts = [data.isel(stage=[i]) for i in range(data.sizes["stage"])]
    options: dict[str, Any] = {"coords": "minimal", "compat": "override", "join": "outer"}
    if isinstance(data, xr.Dataset):
        options["data_vars"] = "minimal"
    return xr.concat(parts, dim="stage", **options)


def as_string_dtype(data: Any, folder: Path) -> Any:
    names = [name for name, coord in data.coords.items() if coord.dtype.kind in "OU"]
    return data.assign_coords(
        {
            n: data[n].variable.to_base_variable().copy(data=data[n].values.astype(np.dtypes.StringDType()))
            for n in names
        }
    )


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "pickle": lambda data, folder: pickle.loads(pickle.dumps(data)),
    "cloudpickle": lambda data, folder: pickle.loads(cloudpickle.dumps(data)),
    "zarr": through_zarr,
    "netcdf": through_netcdf,
    "concat": through_concat,
    "string dtype": as_string_dtype,
}
INDEXES: dict[str, Callable[[Any, Path], Any]] = {
    "multiindex": lambda data, folder: data.set_index(entity=["trained_stage", "entity_id"]),
    "multiindex and back": lambda data, folder: data.set_index(entity=["trained_stage", "entity_id"]).reset_index(
        "entity"
    ),
    "other index": lambda data, folder: data.set_index(entity="entity_id"),
}

ANALYSES: dict[str, Callable[[xr.Dataset], Any]] = {
    "probe": lambda ds: sl.probe(ds, folds=3, **FEW),
    "centroids": lambda ds: sl.centroids(ds, **QUIET),
    "project": lambda ds: sl.project(ds, permutations=5, bootstrap=5, repeats=2, **QUIET),
    "pca": lambda ds: sl.pca(ds, components=2, **QUIET),
    "matched_probe": lambda ds: sl.matched_probe(ds, statistics=STATISTICS, bins=2, repeats=2, small="nan", **FEW),
    "statistics_probe": lambda ds: sl.statistics_probe(ds, statistics=STATISTICS, folds=3, **FEW),
    "residual_probe": lambda ds: sl.residual_probe(ds, statistics=STATISTICS, folds=3, **FEW),
    "quantiles": lambda ds: sl.plots.statistic_quantiles(ds, statistics=STATISTICS),
    "scatter": lambda ds: sl.plots.entity_scatter(ds, by="trained_stage"),
}


@pytest.fixture(scope="module")
def results(ds: xr.Dataset) -> dict[str, Any]:
    """Every result of the data as it is."""
    each = {name: analysis(ds) for name, analysis in ANALYSES.items()}
    each["cosines"] = sl.cosines(each["probe"])
    each["generalise"] = sl.generalise(each["probe"], ds, progress=False)
    return each


def assert_same_numbers(result: Any, wanted: Any) -> None:
    if not isinstance(wanted, xr.Dataset | xr.DataArray):
        return
    pairs = wanted.data_vars if isinstance(wanted, xr.Dataset) else {"": wanted}
    for name, variable in pairs.items():
        other = result[name] if name else result
        assert other.dims == variable.dims, name
        if variable.dtype.kind in "fiub":
            np.testing.assert_allclose(other.values, variable.values, rtol=1e-5, atol=1e-6, err_msg=str(name))


@pytest.mark.parametrize("way", [*(way for way in WAYS if way != "cloudpickle"), *INDEXES])
def test_data_gives_the_same_results_after_a_round_trip(
    way: str, ds: xr.Dataset, results: dict[str, Any], tmp_path: Path
) -> None:
    back = {**WAYS, **INDEXES}[way](ds, tmp_path)
    for name, analysis in ANALYSES.items():
        assert_same_numbers(analysis(back), results[name])
    own = sl.probe(back, folds=3, **FEW) if way in INDEXES else results["probe"]
    assert_same_numbers(sl.generalise(own, back, progress=False), results["generalise"])


def test_rows_that_probes_have_seen_are_known_under_another_index(ds: xr.Dataset, results: dict[str, Any]) -> None:
    for way in INDEXES.values():
        with pytest.raises(InputError, match="the probes have seen every entity"):
            sl.generalise(results["probe"], way(ds, Path()), progress=False)


def spec_of(figure: Any) -> FigureSpec:
    return figure.stratalens_spec


PLOTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "layer_sweep": lambda r: sl.plots.layer_sweep(r["probe"]),
    "layer_sweep of statistics": lambda r: sl.plots.layer_sweep(r["statistics_probe"]),
    "pair_matrix": lambda r: sl.plots.pair_matrix(r["probe"]),
    "cosine_matrix": lambda r: sl.plots.cosine_matrix(r["cosines"]),
    "control_comparison": lambda r: sl.plots.control_comparison(
        {"probe": r["probe"], "matched": r["matched_probe"], "residual": r["residual_probe"]}
    ),
    "probe_generalisation": lambda r: sl.plots.probe_generalisation(r["generalise"]),
    "centroid_path": lambda r: sl.plots.centroid_path(r["project"]),
    "stage_drift": lambda r: sl.plots.stage_drift(r["centroids"]),
    "direction_drift": lambda r: sl.plots.direction_drift(r["probe"]),
    "stage_layer_map": lambda r: sl.plots.stage_layer_map(r["project"]["r2"], "r2"),
    "layer_token_map": lambda r: sl.plots.layer_token_map(r["probe"]["accuracy_mean"].isel(pair=0), "accuracy"),
    "statistic_distributions": lambda r: sl.plots.statistic_distributions(r["quantiles"]),
}


@pytest.fixture(scope="module")
def figures(results: dict[str, Any]) -> dict[str, FigureSpec]:
    """Every figure of the results as they are."""
    return {name: spec_of(plot(results)) for name, plot in PLOTS.items()}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "cloudpickle"])
def test_results_are_drawn_and_analysed_after_a_round_trip(
    way: str, ds: xr.Dataset, results: dict[str, Any], figures: dict[str, FigureSpec], tmp_path: Path
) -> None:
    back = {}
    for name, result in results.items():
        if isinstance(result, xr.Dataset | xr.DataArray):
            folder = tmp_path / name
            folder.mkdir()
            back[name] = WAYS[way](result, folder)
    for name, plot in PLOTS.items():
        wanted, drawn = figures[name], spec_of(plot(back))
        assert (drawn.title, drawn.sliders, drawn.legend) == (wanted.title, wanted.sliders, wanted.legend), name
    assert_same_numbers(sl.cosines(back["probe"]), results["cosines"])
    assert_same_numbers(sl.generalise(back["probe"], ds, progress=False), results["generalise"])
    assert sl.drift(back["probe"]) is not None


@pytest.mark.parametrize("way", WAYS)
def test_a_store_takes_every_way(way: str, tmp_path: Path) -> None:
    labels = {"n": np.arange(24), "flag": np.arange(24) % 2 == 0, "score": np.linspace(0, 1, 24)}
    path = make_store(tmp_path / "run.zarr", 4, 1, 24, labels=labels)
    ds = sl.open_store(path)
    back = WAYS[way](ds, tmp_path)
    np.testing.assert_array_equal(back.resid_post.values, ds.resid_post.values)
    for name in ("trained_stage", *labels):
        assert back[name].values.tolist() == ds[name].values.tolist()
    assert back._repr_html_()
    wanted = sl.centroids(ds, **QUIET)
    assert_same_numbers(sl.centroids(back, **QUIET), wanted)
