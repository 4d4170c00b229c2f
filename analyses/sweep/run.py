"""One function of one slab (stage, layer), run over all of them with bounded memory.

A worker reads its own slab, computes, and hands back a few kilobytes; no more
slabs than workers are ever in memory, whatever the size of the store. Workers
are threads of this process, or of the dask cluster whose client is active.
`run_slabs` runs at once and is what the verbs use; `sweep` is public and lazy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from stratalens.analyses.data.groups import Array, Data
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.assemble import Filled, Layout, as_dataset, noise_slab, unwrap
from stratalens.analyses.sweep.cache import SlabCache, digest
from stratalens.analyses.sweep.tasks import SharedContext, run_slab_task, run_slab_tasks
from stratalens.analyses.sweep.threads import blas_threads, worker_count
from stratalens.store.errors import InputError, suggest
from stratalens.store.threads import cores

SlabFunction = Callable[[Slab], xr.Dataset]


BUNDLE_BYTES = 64 * 2**20  # of decoded slabs, up to which they share a task on a cluster


TASKS = 4  # of each worker, at least, before slabs share one


Results = Generator[tuple[Slab, xr.Dataset], None, None]


def sweep(
    ds: Data,
    function: Callable[[xr.DataArray], Any],
    site: str = "resid_post",
    reduce: Callable[[Any], Any] | None = None,
    *,
    template: xr.DataArray | xr.Dataset | None = None,
    skip_missing: bool = False,
    compute: bool = False,
    cache: str | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> Any:
    """Ask every layer and every stage the same question: the layer-sweep query.

    Lazy by default: nothing is read until `.compute()`, `.load()` or `.values`; then each task reads one
    slab by itself, on dask's threads or on the cluster whose client is active, with one BLAS thread. The
    shape of the results is learned by calling `function` once on noise with the shape and the labels of
    the first slab; where that cannot work (a function that fails on noise) give `template`, an example of
    one result. A result of another shape is refused when it is computed.

    Args:
        ds: Dataset (with `site`) or DataArray with dims among (stage, layer, entity, token, features).
        function: takes a float32 DataArray (entity, token, features) with all label coordinates and gives
            back a DataArray or Dataset, of the same dims and shape for every slab.
        site: variable of `ds` to read.
        reduce: function of the assembled result (all stages and layers), e.g. ``lambda r: r.max("layer")``.
        template: example of one result of `function`; avoids the call on noise.
        skip_missing: leave out rows that were not recorded instead of refusing them.
        compute: run now, with progress, and give back values in memory.
        cache: name under which finished slabs are kept beside the store, so that an interrupted sweep goes
            on where it stopped (implies compute). The name stands for the function: change one with the other.
            Other data, rows or labels are never mistaken for the same.
        scheduler: with compute: "auto" (the active dask client, else threads), "threads", "synchronous", a
            distributed Client, or the address of a scheduler.
        workers: with compute: number of threads.
        progress: with compute: show a bar; None = on a terminal only.

    Returns:
        What `function` gives, with the dims (stage, layer) in front; lazy (dask-backed) unless computed.

    Raises:
        NotRecordedError: rows of a stage were not recorded (narrow the stages, or skip_missing=True).
        InputError: unknown site, or a function that gives back something without labels.

    >>> import numpy as np
    >>> x = xr.DataArray(np.ones((2, 3, 4, 1, 5)), dims=("stage", "layer", "entity", "token", "d_model"))
    >>> energy = sweep(x, lambda slab: (slab**2).sum("d_model").mean("entity"))
    >>> dict(energy.sizes), float(energy.max())
    ({'stage': 2, 'layer': 3, 'token': 1}, 5.0)
    """
    source = SiteData(ds, site, features=False)
    rows = source.rows(skip_missing)

    def run(slab: Slab) -> xr.Dataset:
        return as_dataset(function(slab.load()))

    if compute or cache is not None:
        name = f"sweep-{cache}" if cache is not None else False  # nothing but the caller's name tells functions apart
        result = run_slabs(
            source, run, rows=rows, cache=name, params=None if cache is None else _labels(source), scheduler=scheduler,
            workers=workers, progress=progress,
        )  # fmt: skip
    else:
        if template is None and len({len(r) for r in rows}) > 1:
            raise InputError("the stages differ in the rows they have; give template=, an example of one result")
        slabs = source.slabs(rows)
        example = as_dataset(template if template is not None else _on_noise(function, slabs[0]))
        result = source.restore(Layout(example).lazy(SharedContext(run, source, slabs), slabs, source.shape))
    out = unwrap(result)
    return out if reduce is None else reduce(out)


def run_slabs(
    data: Data | SiteData,
    function: SlabFunction,
    *,
    site: str = "resid_post",
    rows: Sequence[Array] | None = None,
    skip_missing: bool = False,
    cache: str | bool | None = False,
    name: str = "sweep",
    params: Mapping[str, Any] | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Run `function` on every slab now, and assemble the results.

    Args:
        data: Dataset, DataArray, or a SiteData made from one.
        function: from a Slab (not read yet: use .blocks(), .values() or .load()) to a small Dataset
            without the dims stage and layer, of the same shape for every slab. On a cluster it is pickled.
        site: variable to read, where `data` is a Dataset.
        rows: rows to use at each stage, from `SiteData.rows`; None = all recorded ones.
        skip_missing: where `rows` is None, leave out unrecorded rows instead of refusing them.
        cache: False = none; None = beside the store where that is possible; True = there or an error;
            a text = as True, under this name.
        name: name of the analysis, for the cache and the progress bar.
        params: everything that the results depend on besides the activations; JSON-able (arrays are hashed).
        scheduler: "auto" | "threads" | "synchronous" | distributed Client | address of a scheduler.
        workers: threads, where local.
        progress: show a bar on standard error; None = on a terminal only.

    Returns:
        Dataset with dims (stage, layer) in front of what `function` gives.
    """
    source = data if isinstance(data, SiteData) else SiteData(data, site)
    used = list(rows) if rows is not None else source.rows(skip_missing)
    slabs = source.slabs(used)
    name = cache if isinstance(cache, str) else name
    kept = (
        SlabCache.beside(source, name, dict(params or {}), used, must=cache is True or isinstance(cache, str))
        if (cache is not False)
        else None
    )
    filled: Filled | None = None
    todo = []
    for slab in slabs:
        found = kept.get(slab) if kept is not None else None
        if found is None:
            todo.append(slab)
            continue
        filled = filled or Filled(Layout(found), source.shape)
        filled.put(slab, found)
    hide = None if progress is None else not progress
    begun = len(slabs) - len(todo)  # and finished
    try:
        with (
            closing(_results(function, source, todo, scheduler, workers)) as results,
            tqdm(total=len(slabs), initial=begun, desc=name, unit="slab", disable=hide, file=sys.stderr) as bar,
        ):
            for slab, result in results:
                filled = filled or Filled(Layout(result), source.shape)
                filled.put(slab, result)
                if kept is not None:
                    kept.put(slab, filled)
                begun += 1
                bar.update()
    except KeyboardInterrupt as stop:
        if kept is not None:
            stop.add_note(f"{begun} of {len(slabs)} slabs are kept beside the store; the same call goes on from there")
        raise
    finally:  # also when interrupted: what is finished is kept
        if kept is not None:
            kept.close(filled)
    assert filled is not None  # SiteData has at least one slab
    return source.restore(filled.layout.dataset(filled.arrays))


def _on_noise(function: Callable[[xr.DataArray], Any], slab: Slab) -> Any:
    try:
        return function(noise_slab(slab))
    except Exception as error:
        error.add_note(
            "this was a trial on noise, to learn the shape of a result; if the function cannot work on noise, give "
            "template=, an example of one result, or compute=True"
        )
        raise


def _labels(source: SiteData) -> dict[str, str]:
    """Hashes of all labels that a function may look at, for a cache to know its results by; one column at a time."""
    return {f"{name} {coord.dims}": digest(coord.values) for name, coord in source.array.coords.items()}


def _results(
    function: SlabFunction, source: SiteData, slabs: Sequence[Slab], scheduler: Any, workers: int | None
) -> Results:
    """(slab, result) in the order in which they are finished; closing the iterator drops what has not begun."""
    if not slabs:
        return
    with _client(scheduler) as client:
        if client is not None:
            yield from _on_cluster(client, SharedContext(function, source, slabs), slabs)
        elif scheduler == "synchronous":
            for slab in slabs:
                yield slab, run_slab_task(function, slab)
        else:
            yield from _on_threads(function, slabs, worker_count(workers, len(slabs)))


def _on_threads(function: SlabFunction, slabs: Sequence[Slab], workers: int) -> Results:
    waiting = iter(slabs)
    running: dict[Future[xr.Dataset], Slab] = {}
    # Fewer slabs than cores: BLAS may have the cores that would idle.
    spare = max(1, cores() // workers)
    with ExitStack() as stack:
        stack.enter_context(blas_threads(spare))
        pool = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="stratalens"))
        stack.callback(lambda: pool.shutdown(wait=True, cancel_futures=True))
        while True:
            while len(running) < workers and (slab := next(waiting, None)) is not None:
                running[pool.submit(run_slab_task, function, slab)] = slab
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def _on_cluster(client: Any, common: SharedContext, slabs: Sequence[Slab]) -> Results:
    """Each worker reads its own slabs; only parcels go there, and only the small results come back."""
    # A task costs client and scheduler 7 to 10 ms of CPU, so that small slabs go several to a task.
    size = _bundle(slabs, sum(client.nthreads().values()))
    # A task of its own, not scattered data: should a worker be lost, the scheduler makes it again on another one.
    shared = client.submit(_itself, common, pure=False)
    futures: dict[Any, Sequence[Slab]] = {}
    try:
        for start in range(0, len(slabs), size):  # workers begin while others are still packed
            bundle = slabs[start : start + size]
            parcels = [common.pack(slab) for slab in bundle]
            futures[client.submit(run_slab_tasks, parcels, common=shared, pure=False)] = bundle
        for future in _distributed().as_completed(list(futures), loop=client.loop):
            try:
                results = future.result()
            except _distributed().KilledWorker as error:  # the function raised nothing, so that nothing was noted there
                where = "; ".join(slab.where for slab in futures[future])
                error.add_note(f"while working on {where}: every worker that was given it died")
                raise
            yield from zip(futures[future], results, strict=True)
            future.release()
    finally:
        client.cancel([*futures, shared])


def _bundle(slabs: Sequence[Slab], workers: int) -> int:
    """Slabs of one task: one, or some small ones, as long as every worker has several tasks.

    >>> one = xr.DataArray(np.zeros((1000, 2, 500), "f4"), dims=("entity", "token", "d_model"))
    >>> slabs = [Slab(one, None, None, (0, i), np.arange(1000)) for i in range(40)]
    >>> _bundle(slabs, 2), _bundle(slabs, 1), _bundle(slabs[:7], 2)
    (5, 10, 1)
    """
    size = int(np.prod(slabs[0].shape)) * 4
    return max(1, min(BUNDLE_BYTES // max(1, size), len(slabs) // (TASKS * max(1, workers))))


def _itself(common: SharedContext) -> SharedContext:
    return common


@contextmanager
def _client(scheduler: Any) -> Iterator[Any]:
    """The distributed client to use; None = this process. A connection that was made here is closed again."""
    if isinstance(scheduler, str) and "://" in scheduler:
        with _distributed().Client(scheduler, set_as_default=False) as client:
            yield client
    elif isinstance(scheduler, str):
        valid = ["auto", "threads", "synchronous"]
        if scheduler not in valid:
            words = suggest(scheduler, valid)
            raise InputError(f"scheduler={scheduler!r}: {words}, a distributed Client, or tcp://host:port")
        yield _default_client() if scheduler == "auto" else None
    elif hasattr(scheduler, "submit"):
        yield scheduler
    else:
        raise InputError(
            f"scheduler must be a word, an address or a distributed Client, not {type(scheduler).__name__}"
        )


def _default_client() -> Any:
    if "distributed" not in sys.modules:
        return None
    try:
        return _distributed().default_client()
    except ValueError:
        return None


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise InputError("a cluster needs the package distributed: pip install 'stratalens[cluster]'") from error
    return distributed
