"""Sweeps on a dask cluster of two worker processes: workers read their own slabs, and little data travels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.centroids.centroids import centroids, project
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.cache import results_folder
from stratalens.analyses.sweep.run import run_slabs, sweep
from stratalens.analyses.sweep.tasks import SharedContext
from stratalens.store.errors import DamagedError, InputError
from stratalens.store.reading.open import open_store
from support.planted import planted
from support.stores import make_store

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two worker processes with one thread each; other tests do not see it as the default client."""
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster, set_as_default=False) as connected,
    ):
        yield connected


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "run.zarr", stages=4, layers=3, entities=120, tokens=("entity_last", "last"))


def test_workers_read_their_own_slabs_and_give_what_threads_give(client: Any, store: Path) -> None:
    ds = open_store(store)
    here = os.getpid()

    def who(slab: Slab) -> xr.Dataset:
        return xr.Dataset({"reader": os.getpid(), "total": slab.values().sum()})

    result = run_slabs(ds, who, scheduler=client, progress=False)
    assert here not in result.reader
    np.testing.assert_allclose(result.total, ds.resid_post.sum(["entity", "token", "d_model"]), rtol=1e-4)
    options: dict[str, Any] = {"cache": False, "progress": False}
    xr.testing.assert_identical(centroids(ds, scheduler=client, **options), centroids(ds, **options))
    options |= {"permutations": 19, "bootstrap": 19}
    xr.testing.assert_identical(project(ds, scheduler=client, **options), project(ds, **options))


def test_many_small_slabs_share_tasks_and_keep_their_places(client: Any) -> None:
    ds = planted(stages=4, layers=7)

    def task_of(slab: Slab) -> xr.Dataset:
        key = str(distributed.get_worker().get_current_task())
        return xr.Dataset({"total": slab.values().sum(dtype=np.float64), "task": ("name", np.array([key], object))})

    result = run_slabs(ds, task_of, scheduler=client, progress=False)
    np.testing.assert_allclose(result.total, ds.resid_post.sum(["entity", "token", "d_model"]), rtol=1e-3, atol=1e-2)
    assert 8 <= len(set(result.task.values.ravel())) <= 10


def test_the_active_client_is_used_also_by_lazy_sweeps(client: Any, store: Path) -> None:
    ds = open_store(store)
    here = os.getpid()

    def elsewhere(slab: xr.DataArray) -> xr.Dataset:
        return xr.Dataset({"mean": slab.groupby("trained_stage").mean(), "here": os.getpid() == here})

    with client.as_current():
        lazy = sweep(ds, elsewhere)
        now = sweep(ds, elsewhere, compute=True, progress=False)
        later = lazy.compute()
    xr.testing.assert_identical(now, later)
    assert not now.here.any()
    expected = ds.resid_post.compute().groupby("trained_stage").mean()
    np.testing.assert_allclose(later["mean"].transpose(*expected.dims), expected, atol=1e-6)


def test_an_address_is_as_good_as_a_client_and_its_connection_is_closed(client: Any, store: Path) -> None:
    ds = open_store(store).isel(stage=[0])
    before = len(client.scheduler_info()["workers"])
    clients = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.clients))
    result = centroids(ds, order=["s1", "s2"], scheduler=client.scheduler.address, cache=False, progress=False)
    xr.testing.assert_identical(result, centroids(ds, order=["s1", "s2"], cache=False, progress=False))
    assert len(client.scheduler_info()["workers"]) == before
    assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.clients)) == clients
    with pytest.raises(InputError, match="did you mean 'threads'"):
        centroids(ds, order=["s1", "s2"], scheduler="thread", cache=False)


def test_what_travels_is_small_whatever_the_store_holds(tmp_path: Path) -> None:
    sizes = []
    for entities in (48, 4800):
        path = make_store(tmp_path / f"{entities}.zarr", stages=3, entities=entities, d_model=16, statistics=False)
        source = SiteData(open_store(path))
        slabs = source.slabs()
        context = SharedContext(len, source, slabs)
        sizes.append([len(cloudpickle.dumps(context.pack(slab))) for slab in slabs])
        assert len(context.rows) == 1, "equal selections of rows are sent once"
        for slab in slabs:
            task = cloudpickle.loads(cloudpickle.dumps(context.pack(slab)))
            again = task.unpack(cloudpickle.loads(cloudpickle.dumps(context)))
            assert (again.where, again.position) == (slab.where, slab.position)
            xr.testing.assert_identical(again.load(), slab.load())
    small, large = sizes
    assert max(small) < 10_000
    assert max(large) < 1.2 * max(small), "labels of rows are not sent with every task"


def test_a_lazy_sweep_sends_labels_once(tmp_path: Path) -> None:
    ds = open_store(make_store(tmp_path / "run.zarr", stages=3, layers=3, entities=4800, d_model=4, statistics=False))
    lazy = sweep(ds, lambda slab: slab.mean("entity"))
    graph = dict(lazy.__dask_graph__())
    sizes = sorted(len(cloudpickle.dumps(task)) for task in graph.values())
    labels = sum(len(cloudpickle.dumps(c.values)) for c in ds.coords.values())
    assert sizes[-1] > labels / 2, "the labels are in one task"
    assert sizes[-2] < 10_000, "and in no other"
    xr.testing.assert_allclose(lazy.compute(), ds.resid_post.mean("entity").compute(), atol=1e-6)


def test_an_interrupted_sweep_keeps_what_the_workers_finished(client: Any, store: Path, tmp_path: Path) -> None:
    ds = open_store(store)
    switch = tmp_path / "broken"
    switch.touch()
    calls = tmp_path / "calls"
    calls.mkdir()

    def function(slab: xr.DataArray) -> xr.DataArray:
        place = f"{slab.stage.item()}-{slab.layer.item()}"
        if place == "s3-2" and switch.exists():
            raise OSError("the disk is gone")
        (calls / place).touch()
        return slab.mean("entity")

    with pytest.raises(OSError, match="the disk is gone") as caught:
        sweep(ds, function, cache="means", scheduler=client)
    assert "stage s3, layer 2" in "".join(caught.value.__notes__)
    (folder,) = (f for f in results_folder(store).iterdir() if not f.name.startswith("."))
    done = xr.open_zarr(folder, consolidated=False).done.values
    assert done.any()
    assert not done[-1, -1]
    for call in calls.iterdir():
        call.unlink()
    switch.unlink()
    result = sweep(ds, function, cache="means", scheduler=client)
    assert len(list(calls.iterdir())) == (~done).sum(), "finished slabs are not computed again"
    np.testing.assert_allclose(result, ds.resid_post.mean("entity"), atol=1e-6)


def test_data_that_only_this_process_has_is_sent(client: Any) -> None:
    ds = planted(chunked=False)
    result = sweep(ds, lambda slab: slab.mean("entity"), compute=True, scheduler=client)
    np.testing.assert_allclose(result, ds.resid_post.mean("entity"), atol=1e-6)


def test_damage_is_named_from_a_worker_too(client: Any, store: Path) -> None:
    ds = open_store(store)
    shard = max((f for f in (store / "resid_post").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(DamagedError, match="resid_post"):
        centroids(ds, scheduler=client, cache=False, progress=False)
