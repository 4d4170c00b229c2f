"""A worker process dies in the middle of a sweep: the others compute its slabs, and the result is the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.sweep.cache import results_folder
from stratalens.analyses.sweep.run import sweep
from stratalens.store.reading.open import open_store
from support.stores import make_store

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two worker processes on loopback, started again when they die."""
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(host="127.0.0.1", silence_logs=50, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as connected,
    ):
        yield connected


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "run.zarr"
    return make_store(path, stages=4, layers=3, entities=60, tokens=("entity_last", "last"))


def test_a_worker_killed_in_the_middle_changes_nothing(client: Any, store: Path, tmp_path: Path) -> None:
    ds = open_store(store)
    calls = tmp_path / "calls"
    calls.mkdir()

    def moments(slab: xr.DataArray) -> xr.Dataset:
        """Mean and second moments; kills the worker of the seventh slab once, as the system would."""
        place = f"{slab.stage.item()}-{slab.layer.item()}"
        count = len(list(calls.glob(f"{place}.*")))
        (calls / f"{place}.{count}").touch()
        if place == "s3-0" and count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        values = slab.values
        return xr.Dataset({"mean": slab.mean("entity"), "second": float(np.einsum("etd,etd->", values, values))})

    before = set(client.run(os.getpid).values())
    result = sweep(ds, moments, cache="moments", scheduler=client)
    assert set(client.run(os.getpid).values()) != before, "a worker was killed"
    assert (calls / "s3-0.1").exists(), "its slab was done again"
    assert result.sizes == {"stage": 4, "layer": 3, "token": 2, "d_model": ds.sizes["d_model"]}
    here = sweep(ds, moments, scheduler="threads", compute=True, progress=False)
    xr.testing.assert_identical(result.drop_attrs(), here.drop_attrs())
    (folder,) = (f for f in results_folder(store).iterdir() if not f.name.startswith("."))
    assert xr.open_zarr(folder, consolidated=False).done.values.all()


def test_a_slab_that_kills_every_worker_is_named(client: Any, store: Path) -> None:
    def murder(slab: xr.DataArray) -> xr.DataArray:
        if (slab.stage.item(), slab.layer.item()) == ("s2", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return slab.mean("entity")

    with pytest.raises(distributed.KilledWorker) as caught:
        sweep(open_store(store), murder, scheduler=client, compute=True, progress=False)
    (note,) = caught.value.__notes__
    assert "stage s2, layer 1" in note
    assert note.count("stage") == 1, "the scheduler also blames slabs that only waited on a worker that died"
