"""Rules that hold for every analysis: it reads only the slabs it needs, and it refuses input that makes no sense."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import stratalens as sl
from stratalens.store.errors import InputError, NonFiniteError, NotRecordedError
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "workers": 1}
FEW: dict[str, Any] = {**QUIET, "resamples": 20}
OWN = ("resid_post_l2",)


def mean(slab: xr.DataArray) -> xr.DataArray:
    return slab.mean("entity")


ANALYSES: dict[str, Callable[..., Any]] = {
    "sweep": lambda ds, **options: sl.sweep(ds, mean, compute=True, **{**QUIET, **options}),
    "centroids": partial(sl.centroids, **QUIET),
    "project": partial(sl.project, permutations=5, bootstrap=5, **QUIET),
    "pca": partial(sl.pca, components=3, **QUIET),
    "procrustes": partial(sl.procrustes, **QUIET),
    "probe": partial(sl.probe, **FEW),
    "multiclass": partial(sl.probe, pairs="multiclass", **FEW),
    "ordinal": partial(sl.probe, pairs="ordinal", **FEW),
    "lda": partial(sl.probe, method="lda", **FEW),
    "sparse_probe": partial(sl.sparse_probe, k=[1, 3], draws=2, **QUIET),
    "statistics_probe": partial(sl.statistics_probe, statistics=OWN, **FEW),
    "matched_probe": partial(sl.matched_probe, statistics=OWN, bins=2, small="nan", **FEW),
    "residual_probe": partial(sl.residual_probe, statistics=OWN, **FEW),
    "random_direction": partial(sl.baseline_probe, **FEW),
    "shuffled_entity": partial(sl.baseline_probe, baseline="shuffled_entity", **FEW),
}
LABELLED = {name: function for name, function in ANALYSES.items() if name not in ("sweep", "pca", "procrustes")}
PROBES = {name: function for name, function in LABELLED.items() if name not in ("centroids", "project")}


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return planted(stages=2, layers=2, groups=3, per_group=30, d=8, tokens=("last",))


def boom(*_: object, **__: object) -> None:
    raise AssertionError("something was computed without a request")


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_reads_its_own_slabs_and_nothing_through_a_scheduler(name: str, ds: xr.Dataset) -> None:
    """Each worker reads its slab itself, without the scheduler of the session, which would load whole arrays."""
    read: list[tuple[int, ...]] = []

    def seen(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info:
            read.append(tuple(block_info[0]["chunk-location"]))
        return block

    labels = ds.drop_vars("resid_post").compute()
    lazy = labels.assign(resid_post=(ds.resid_post.dims, ds.resid_post.data.map_blocks(seen, dtype="f4")))
    narrowed = lazy.sel(layer=[1])
    with dask.config.set(scheduler=boom):
        result = ANALYSES[name](narrowed)
    assert result is not None
    assert read, "the analysis reads its slabs"
    assert {place[1] for place in read} == {1}, "only the selected layer is read"


@pytest.mark.parametrize("name", ANALYSES)
def test_the_path_of_a_store_is_refused_with_how_to_open_it(name: str) -> None:
    with pytest.raises(InputError, match=r"got str; open a store with stratalens.open_store\('run.zarr'\)"):
        ANALYSES[name]("run.zarr")


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda n: np.full(n, "one", object), "at least"),
        (lambda n: np.linspace(0, 1, n), "continuous"),
        (lambda n: np.array(["a", 1] * (n // 2), object), "mixed type"),
        (lambda n: np.full(n, None, object), "missing"),
    ],
)
def test_targets_that_make_no_groups_are_refused_before_anything_is_read(
    name: str, labels: Callable[[int], np.ndarray], message: str, ds: xr.Dataset
) -> None:
    column = "target" if name in PROBES else "by"
    unread = ds.assign(resid_post=(ds.resid_post.dims, ds.resid_post.data.map_blocks(boom, dtype="f4")))
    strange = unread.assign_coords(kind=("entity", labels(ds.sizes["entity"])))
    if name == "centroids" and message == "at least":
        return  # one group is enough for a mean
    with pytest.raises(InputError, match=message):
        LABELLED[name](strange, **{column: "kind"})


@pytest.mark.parametrize("name", [n for n in PROBES if n != "matched_probe"])
def test_a_class_smaller_than_the_folds_is_refused(name: str, ds: xr.Dataset) -> None:
    keep = (ds.trained_stage.values != "s2") | (np.cumsum(ds.trained_stage.values == "s2") <= 4)
    with pytest.raises(InputError, match=r"too few entities in 'trained_stage': s2 \(4\).*5 folds"):
        PROBES[name](ds.isel(entity=keep))


@pytest.mark.parametrize("name", ANALYSES)
def test_rows_that_were_not_recorded_are_refused_or_left_out(name: str, ds: xr.Dataset) -> None:
    recorded = ds.recorded.values.copy()
    recorded[0, :3] = False
    holes = ds.assign(recorded=(ds.recorded.dims, recorded))
    with pytest.raises(NotRecordedError, match=r"missing at stage s0 \(3 of 90\).*skip_missing=True"):
        ANALYSES[name](holes)
    assert ANALYSES[name](holes, skip_missing=True) is not None


@pytest.mark.parametrize("name", [n for n in ANALYSES if n != "sweep"])
def test_nan_among_the_activations_is_named(name: str, ds: xr.Dataset) -> None:
    values = ds.resid_post.values.copy()
    values[1, 0, 7, 0, 3] = np.nan
    bad = ds.assign(resid_post=(ds.resid_post.dims, values), resid_post_l2=(("stage", "entity"), np.ones((2, 90))))
    if name == "statistics_probe":
        values = np.ones((2, 90))
        values[1, 7] = np.nan
        with pytest.raises(InputError, match=r"not defined in some rows: resid_post_l2 \(1 of 90\)"):
            ANALYSES[name](bad.assign(resid_post_l2=(("stage", "entity"), values)))
        return
    with pytest.raises(NonFiniteError, match=r"stage s3, layer 0.*r00007"):
        ANALYSES[name](bad)


@pytest.mark.parametrize("name", ANALYSES)
def test_labels_in_a_multi_index_are_label_columns(name: str, ds: xr.Dataset) -> None:
    """`set_index` moves labels into an index of the rows; results are those of the same labels as columns."""
    plain = ds.reset_index("entity", drop=True)
    result = ANALYSES[name](plain)
    for levels in (["trained_stage", "entity_id"], ["template", "trained_stage"]):
        again = ANALYSES[name](ds.set_index(entity=levels))
        xr.testing.assert_equal(again.compute(), result.compute())


@pytest.mark.parametrize("name", PROBES)
def test_constant_activations_are_refused(name: str, ds: xr.Dataset) -> None:
    with pytest.raises(InputError, match="the same in all rows"):
        PROBES[name](ds.assign(resid_post=xr.full_like(ds.resid_post, 2.5)))


def test_places_with_constant_activations_are_nan(ds: xr.Dataset) -> None:
    values = ds.resid_post.values.copy()
    values[0, 0] = 1.0
    result = sl.probe(ds.assign(resid_post=(ds.resid_post.dims, values)), **FEW)
    assert np.isnan(result.accuracy_mean.isel(stage=0, layer=0)).all()
    assert np.isnan(result.coef.isel(stage=0, layer=0)).all()
    assert result.accuracy_mean.isel(stage=1).notnull().all()
    other = sl.probe(ds, **FEW)
    xr.testing.assert_allclose(result.isel(stage=1), other.isel(stage=1))


def test_one_constant_feature_changes_nothing(ds: xr.Dataset) -> None:
    """Large features of constant value are common in residual streams; they change no probe."""
    values = np.concatenate([ds.resid_post.values, np.full((*ds.resid_post.shape[:4], 1), 40, "f4")], axis=-1)
    more = ds.drop_vars("resid_post").assign(resid_post=(ds.resid_post.dims, values))
    for method in ("logistic", "ridge", "lda", "diffmeans"):
        for standardize in (False, True):
            a, b = (sl.probe(d, method=method, standardize=standardize, **FEW) for d in (ds, more))
            if method != "lda":  # its shrinkage depends on the number of features
                np.testing.assert_allclose(a.score, b.score, atol=2e-3)
            assert (abs(b.coef.isel(d_model=-1)) < 1e-6).all()


def test_groups_that_leak_are_refused(ds: xr.Dataset) -> None:
    torn = np.array([f"e{i // 2}" for i in range(ds.sizes["entity"])], object)
    torn[5] = ""
    with pytest.raises(InputError, match=r"'entity_id' is missing in rows \[5\]; .* splits could leak"):
        sl.probe(ds.assign_coords(entity_id=("entity", torn)), **FEW)
    with pytest.raises(InputError, match="no label column 'entity_idd': did you mean 'entity_id'"):
        sl.probe(ds, groups="entity_idd", **FEW)
    with pytest.raises(
        InputError, match=r"'trained_stage' is a variable of the data, not a label: .*engine='stratalens'"
    ):
        sl.probe(ds.reset_coords("trained_stage"), **FEW)


def test_more_bins_than_data_and_empty_matches_are_refused(ds: xr.Dataset) -> None:
    with pytest.raises(InputError, match="bins=25, but the smallest class has 24 training rows"):
        sl.matched_probe(ds, statistics=OWN, bins=25, **FEW)
    separated = ds.assign(size=("entity", (ds.trained_stage.values == "s3") * 5.0 + np.arange(90) * 1e-3))
    with pytest.raises(InputError, match=r"only 16 of 48 .*'size' separates the classes perfectly"):
        sl.matched_probe(separated, statistics=("size",), pairs=[("s1", "s3")], bins=3, **FEW)
