"""Sweeps are lazy and bounded, and give equal results on every scheduler."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.probes.probe import probe
from stratalens.analyses.sweep.run import run_slabs, sweep
from stratalens.store.errors import InputError, NonFiniteError, NotRecordedError
from stratalens.store.reading.lazy_arrays import VariableArray
from stratalens.store.reading.open import open_store
from support.planted import planted
from support.stores import make_store


class ComputedError(Exception):
    """Error of a scheduler that must not run."""


def refuse(*_: object, **__: object) -> None:
    raise ComputedError


def mean(slab: xr.DataArray) -> xr.DataArray:
    return slab.mean("entity")


def counted(ds: xr.Dataset, opened: list[tuple[int, ...]]) -> xr.Dataset:
    """`ds` with chunks that report when they are read."""

    def watch(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        if block_info:
            opened.append(tuple(block_info[0]["chunk-location"]))
        return block

    x = ds.resid_post
    return ds.assign(resid_post=x.copy(data=x.data.map_blocks(watch, dtype=x.dtype)))


def test_sweep_equals_the_same_reduction_by_xarray() -> None:
    ds = planted()
    expected = ds.resid_post.mean("entity").compute()
    result = sweep(ds, mean)
    assert isinstance(result, xr.DataArray)
    assert result.dims == expected.dims
    xr.testing.assert_allclose(result.compute(), expected.assign_coords(result.coords), atol=1e-6)
    assert result.stage.values.tolist() == ds.stage.values.tolist()
    assert "stage_order" in result.coords


def test_sweep_reads_nothing_until_computed() -> None:
    opened: list[tuple[int, ...]] = []
    ds = counted(planted(), opened)
    with dask.config.set(scheduler=refuse):
        lazy = sweep(ds, mean, reduce=lambda r: r.max("layer"))
        assert lazy.chunks is not None
        assert opened == []
        with pytest.raises(ComputedError):
            lazy.compute()
    lazy.sel(stage="s4").compute()
    stages = {location[0] for location in opened}
    assert stages == {2}, "a selection of the result reads only the slabs it needs"


def test_every_chunk_is_read_once_and_by_its_own_slab() -> None:
    opened: list[tuple[int, ...]] = []
    ds = counted(planted(), opened)
    run_slabs(ds, lambda slab: xr.Dataset({"n": len(slab.values())}), workers=2)
    assert len(opened) == len(set(opened)) == ds.resid_post.data.npartitions


def test_no_more_slabs_than_workers_are_in_memory() -> None:
    ds = planted(layers=6)
    lock, alive, peak = threading.Lock(), 0, 0

    def function(slab: Slab) -> xr.Dataset:
        nonlocal alive, peak
        with lock:
            alive += 1
            peak = max(peak, alive)
        total = slab.values().sum()
        with lock:
            alive -= 1
        return xr.Dataset({"total": total})

    run_slabs(ds, function, workers=2)
    assert peak <= 2


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_schedulers_agree_and_missing_dims_stay_missing(scheduler: str) -> None:
    ds = planted().isel(stage=-1, token=0)
    result = sweep(ds, mean, compute=True, scheduler=scheduler)
    assert result.dims == ("layer", "d_model")
    np.testing.assert_allclose(result, ds.resid_post.mean("entity"), atol=1e-6)


def test_a_bare_numpy_array_and_a_layerless_site_work() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    result = sweep(xr.DataArray(x, dims=("entity", "token", "d_model")), mean, compute=True)
    assert result.dims == ("token", "d_model")
    np.testing.assert_allclose(result, x.mean(0), atol=1e-6)


def test_results_that_differ_in_shape_are_refused_with_the_slab() -> None:
    ds = planted()
    with pytest.raises(InputError, match=r"resid_post at stage s4, layer 1"):
        sweep(ds, lambda slab: slab[: 3 if slab.stage == "s4" and slab.layer == 1 else 4], compute=True)
    lazy = sweep(ds, lambda slab: slab[:, :, : 2 if slab.stage == "s4" else 1].mean("entity"))
    with pytest.raises(InputError, match="one shape"):
        lazy.compute()


def test_errors_say_at_which_slab() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        sweep(planted(), lambda slab: 1 // 0, compute=True, scheduler="synchronous")
    assert "stage s0, layer 0" in caught.value.__notes__[0]


def test_a_function_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="labelled"):
        sweep(planted(), lambda slab: slab.values)


def test_unrecorded_rows_are_refused_or_skipped() -> None:
    ds = planted(chunked=False)
    ds["recorded"][{"stage": 1, "entity": [0, 3]}] = False
    with pytest.raises(NotRecordedError, match=r"s2 \(2 of 160\)"):
        sweep(ds, mean)
    result = sweep(ds, mean, skip_missing=True, compute=True)
    recorded = np.setdiff1d(np.arange(160), [0, 3])
    np.testing.assert_allclose(result[1], ds.resid_post[1].isel(entity=recorded).mean("entity"), atol=1e-6)
    with pytest.raises(InputError, match="template"):
        sweep(ds, mean, skip_missing=True)
    template = mean(ds.resid_post[0, 0]).compute()
    xr.testing.assert_allclose(sweep(ds, mean, skip_missing=True, template=template).compute(), result)


def test_missing_positions_are_skipped_and_other_nans_refused() -> None:
    ds = planted(chunked=False)
    ds.resid_post[:, :, 5, 0] = np.nan
    source = SiteData(ds)
    assert [5 not in rows for rows in source.rows(skip_missing=True)] == [True] * 3
    slab = source.slabs()[0]
    with pytest.raises(NonFiniteError, match=r"entity r00005, token entity_last"):
        slab.refuse_nonfinite(slab.values())


def test_unknown_site_names_the_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'resid_post'"):
        sweep(planted(), mean, site="resid_pst")


def test_bits_of_bfloat16_are_not_taken_for_activations() -> None:
    bits = xr.DataArray(np.zeros((4, 1, 3), np.uint16), dims=("entity", "token", "d_model"), name="resid_post")
    with pytest.raises(InputError, match="open_store"):
        sweep(bits, mean)


def test_the_users_own_array_is_never_changed() -> None:
    ds = planted(chunked=False)
    before = ds.resid_post.values.copy()

    def greedy(slab: xr.DataArray) -> xr.DataArray:
        slab.values[:] = 0
        return slab.mean("entity")

    assert (sweep(ds, greedy, compute=True) == 0).all()
    np.testing.assert_array_equal(ds.resid_post.values, before)
    with pytest.raises(ValueError, match="read-only"):
        run_slabs(ds, lambda slab: [np.negative(x, out=x) for _, x in slab.blocks()])


def test_text_of_any_length_is_complete_and_integers_are_not_narrowed() -> None:
    ds = planted(stages=2, layers=1).assign_coords(stage=np.array(["a", "much longer"], object))

    def name(slab: xr.DataArray) -> xr.DataArray:
        return xr.DataArray(np.array([slab.stage.item()]), dims="k")

    for result in (sweep(ds, name, compute=True, workers=1), sweep(ds, name).compute()):
        assert result.values.ravel().tolist() == ["a", "much longer"]

    def count(slab: xr.DataArray) -> xr.DataArray:
        return xr.DataArray(np.int8(1) if slab.stage.item() == "a" else np.int64(1000))

    with pytest.raises(InputError, match="is int64, other slabs have int8"):
        sweep(ds, count, compute=True, scheduler="synchronous")


def test_lazily_indexed_arrays_stay_lazy_without_some_dims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = open_store(make_store(tmp_path / "run.zarr", layers=3, statistics=False), chunks=None)
    site, read = ds.resid_post.shape, []
    whole = VariableArray.select

    def select(self: VariableArray, selections: Any) -> np.ndarray:
        values = whole(self, selections)
        read.append(values.size if self.shape == site else 0)
        return values

    monkeypatch.setattr(VariableArray, "select", select)
    for narrowed in (ds.isel(stage=1), ds.isel(token=0), ds.isel(stage=2, layer=1), ds.transpose("entity", ...)):
        read.clear()
        lazy = sweep(narrowed, mean)
        assert sum(read) == 0
        result = lazy.compute()
        slabs = narrowed.sizes.get("stage", 1) * narrowed.sizes.get("layer", 1)
        assert max(read) * slabs == sum(read) == narrowed.resid_post.size
        assert sum(read[: 2 * slabs]) == narrowed.resid_post.size
        expected = narrowed.resid_post.mean("entity")
        np.testing.assert_allclose(result, expected.transpose(*result.dims), atol=1e-6)


def test_numeric_stage_names_appear_unchanged_in_messages() -> None:
    ds = planted(stages=2, layers=1).drop_vars("stage_order").assign_coords(stage=[0.25, 0.5])
    with pytest.raises(ZeroDivisionError) as caught:
        sweep(ds, lambda slab: 1 // 0, compute=True, scheduler="synchronous")
    assert "stage 0.25, layer 0" in caught.value.__notes__[0]


def test_feature_dims_that_results_have_too_are_refused() -> None:
    x = planted().resid_post.rename(d_model="fold")
    with pytest.raises(InputError, match=r"rename\(fold="):
        SiteData(x)
    assert sweep(x, mean).dims == ("stage", "layer", "token", "fold")


def test_an_empty_selection_is_refused() -> None:
    for dim in ("stage", "layer", "entity", "token"):
        with pytest.raises(InputError, match=f"empty along '{dim}'"):
            probe(planted().isel({dim: []}), progress=False)


def test_a_function_that_fails_on_noise_gets_a_note_about_the_template() -> None:
    ds = planted().assign(resid_post=abs(planted().resid_post))

    def positive(slab: xr.DataArray) -> xr.DataArray:
        if (slab < 0).any():
            raise ValueError("negative")
        return slab.mean("entity")

    with pytest.raises(ValueError, match="negative") as caught:
        sweep(ds, positive)
    assert "template=" in caught.value.__notes__[0]
    now = sweep(ds, positive, compute=True)
    xr.testing.assert_allclose(now, sweep(ds, positive, template=positive(ds.resid_post[0, 0]).compute()).compute())


def test_a_notebook_without_widgets_has_no_warning() -> None:
    """tqdm warns where it is imported in a notebook without ipywidgets; text needs no warning."""
    script = """
import sys, types, warnings
warnings.simplefilter("error")
class ZMQInteractiveShell: ...
sys.modules["ipykernel.zmqshell"] = types.ModuleType("zmqshell")
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
sys.modules["ipywidgets"] = None
from stratalens.analyses.sweep.progress_bar import tqdm
print(tqdm.__mro__[1].__module__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "notebook" not in done.stdout
