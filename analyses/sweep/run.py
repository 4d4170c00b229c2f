"""Sweeps: one function applied to every slab (stage, layer), with bounded memory.

A worker reads its own slab, computes, and returns a few kilobytes. At most one slab a worker is in memory, whatever the
size of the store. Workers are threads of this process, or those of the dask cluster whose client is active.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep import threads
from stratalens.analyses.sweep.assemble import Layout, ResultBuffer, as_dataset, noise_slab, unwrap
from stratalens.analyses.sweep.cache import SlabCache, digest
from stratalens.analyses.sweep.progress_bar import tqdm
from stratalens.analyses.sweep.tasks import SharedContext, run_slab_task, run_slab_tasks
from stratalens.store.errors import InputError, suggest
from stratalens.store.reading.dask_arrays import default_dask_client
from stratalens.store.threads import cores

SlabFunction = Callable[[Slab], xr.Dataset]
SlabResults = Generator[tuple[Slab, xr.Dataset], None, None]

BUNDLE_BYTES = 64 * 2**20  # largest size of decoded slabs that share a task on a cluster
TASKS_PER_WORKER = 4  # tasks that each worker must have before slabs share one
SCHEDULERS = ("auto", "threads", "synchronous")


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that do not change its results.

    Attributes:
        skip_missing: leave out unrecorded rows instead of refusing them.
        cache: False = none; None = next to the store where possible; True = there or an error;
            a text = as True, under this name.
        scheduler: "auto" (the active dask client, else threads), "threads", "synchronous", a distributed Client, or
            the address of a scheduler.
        workers: number of local threads; None = one a core.
        progress: show a bar on standard error; None = on a terminal only.
    """

    skip_missing: bool = False
    cache: str | bool | None = False
    scheduler: Any = "auto"
    workers: int | None = None
    progress: bool | None = None


DEFAULT_OPTIONS = RunOptions()


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
    """Apply one function to the activations of every stage and layer.

    The result is lazy by default: nothing is read until `.compute()`, `.load()` or `.values`. Each task then reads one
    slab itself, on dask's threads or on the cluster whose client is active, with one BLAS thread. One call of
    `function` on noise, with the shape and labels of the first slab, shows the shape of the results. If the function
    cannot work on noise, pass an example of one result as `template`. A slab whose result has another shape raises an
    error when it is computed.

    Args:
        ds: Dataset (with `site`) or DataArray with dims among (stage, layer, entity, token, features).
        function: takes a float32 DataArray (entity, token, features) with all label coordinates and returns a
            DataArray or Dataset, of the same dims and shape for every slab.
        site: variable of `ds` to read.
        reduce: function of the assembled result (all stages and layers), e.g. ``lambda r: r.max("layer")``.
        template: example of one result of `function`; avoids the call on noise.
        skip_missing: leave out rows that were not recorded instead of refusing them.
        compute: run now, with progress, and return values in memory.
        cache: name under which finished slabs are cached next to the store, so that an interrupted sweep resumes
            (implies compute). The name identifies the function: change both together. Other data, rows or labels
            never share results.
        scheduler: with compute: "auto" (the active dask client, else threads), "threads", "synchronous", a
            distributed Client, or the address of a scheduler.
        workers: with compute: number of threads.
        progress: with compute: show a bar; None = on a terminal only.

    Returns:
        The variables that `function` returns, with the same dtypes and the leading dims (stage, layer): a DataArray
        if `function` returns one, else a Dataset; lazy (dask-backed) unless computed. With `reduce`, its result.

    Raises:
        NotRecordedError: rows of a stage were not recorded (narrow the stages, or pass skip_missing=True).
        InputError: unknown site, or a function whose result has no labels.

    Example:
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
        # Only the caller's name distinguishes one function from another.
        name = False if cache is None else f"sweep-{cache}"
        options = RunOptions(skip_missing, name, scheduler, workers, progress)
        result = run_slabs(source, run, rows=rows, params=None if cache is None else _labels(source), options=options)
    else:
        if template is None and len({len(r) for r in rows}) > 1:
            raise InputError("the stages differ in the rows they have; pass template=, an example of one result")
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
    name: str = "sweep",
    params: Mapping[str, Any] | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
    **changes: Any,
) -> xr.Dataset:
    """Run a function of a slab over all stages and layers now, and assemble the results.

    Args:
        data: Dataset, DataArray, or a SiteData built from one.
        function: takes a Slab, which is not read yet (use .blocks(), .values() or .load()), and returns a small
            Dataset without the dims stage and layer, of the same shape for every slab. A cluster pickles it.
        site: variable to read, where `data` is a Dataset.
        rows: rows to use at each stage, from `SiteData.rows`; None = all recorded rows.
        name: name of the analysis, for the cache and the progress bar.
        params: everything that the results depend on in addition to the activations; JSON-able (arrays are hashed).
        options: how to run.
        **changes: fields of `RunOptions` that differ from `options`.

    Returns:
        Dataset with the variables that `function` returns and the leading dims (stage, layer).
    """
    options = replace(options, **changes)
    source = data if isinstance(data, SiteData) else SiteData(data, site)
    used = list(rows) if rows is not None else source.rows(options.skip_missing)
    slabs = source.slabs(used)
    cache = None
    if isinstance(options.cache, str):
        name = options.cache
    if options.cache is not False:
        cache = SlabCache.for_analysis(source, name, dict(params or {}), used, required=options.cache is not None)
    results: ResultBuffer | None = None
    remaining = []
    for slab in slabs:
        cached = cache.get(slab) if cache is not None else None
        if cached is None:
            remaining.append(slab)
            continue
        results = results or ResultBuffer(Layout(cached), source.shape)
        results.put(slab, cached)
    hide = None if options.progress is None else not options.progress
    finished = len(slabs) - len(remaining)
    try:
        with (
            closing(_compute(function, source, remaining, options)) as computed,
            tqdm(total=len(slabs), initial=finished, desc=name, unit="slab", disable=hide, file=sys.stderr) as bar,
        ):
            for slab, result in computed:
                results = results or ResultBuffer(Layout(result), source.shape)
                results.put(slab, result)
                if cache is not None:
                    cache.put(slab, results)
                finished += 1
                bar.update()
    except KeyboardInterrupt as stop:
        if cache is not None:
            stop.add_note(f"{finished} of {len(slabs)} slabs are cached next to the store; the same call resumes there")
        raise
    finally:  # an interruption loses no finished slab
        if cache is not None:
            cache.close(results)
    if results is None:
        raise InputError(f"{source.site!r} has no slabs")
    return source.restore(results.layout.dataset(results.arrays))


def _on_noise(function: Callable[[xr.DataArray], Any], slab: Slab) -> Any:
    try:
        return function(noise_slab(slab))
    except Exception as error:
        error.add_note(
            "the sweep called the function on noise to learn the shape of its results; if the function cannot work on "
            "noise, pass template=, an example of one result, or compute=True"
        )
        raise


def _labels(source: SiteData) -> dict[str, str]:
    """Hashes of all labels that a function may look at, by which a cache identifies results; one column at a time."""
    return {f"{name} {coord.dims}": digest(coord.values) for name, coord in source.array.coords.items()}


def _compute(function: SlabFunction, source: SiteData, slabs: Sequence[Slab], options: RunOptions) -> SlabResults:
    """Pairs (slab, result) as they finish; closing the iterator drops slabs that have not started."""
    if not slabs:
        return
    with _client(options.scheduler) as client:
        if client is not None:
            yield from _on_cluster(client, SharedContext(function, source, slabs), slabs)
        elif options.scheduler == "synchronous":
            for slab in slabs:
                yield slab, run_slab_task(function, slab)
        else:
            yield from _on_threads(function, slabs, threads.worker_count(options.workers, len(slabs)))


def _on_threads(function: SlabFunction, slabs: Sequence[Slab], workers: int) -> SlabResults:
    queue = iter(slabs)
    running: dict[Future[xr.Dataset], Slab] = {}
    # With fewer slabs than cores, BLAS may use the cores that would be idle.
    spare = max(1, cores() // workers)
    with ExitStack() as stack:
        stack.enter_context(threads.blas_limit.at_most(spare))
        pool = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="stratalens"))
        stack.callback(lambda: pool.shutdown(wait=True, cancel_futures=True))
        while True:
            while len(running) < workers and (slab := next(queue, None)) is not None:
                # The context tells a slab whether its caller has cancelled.
                context = copy_context()
                running[pool.submit(context.run, run_slab_task, function, slab)] = slab
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def _on_cluster(client: Any, context: SharedContext, slabs: Sequence[Slab]) -> SlabResults:
    """Run slabs on a cluster: each worker reads its own slabs; only tasks and small results travel."""
    # A task costs client and scheduler 7 to 10 ms of CPU, so small slabs share one.
    size = _slabs_per_task(slabs, sum(client.nthreads().values()))
    # A task, not scattered data: if a worker is lost, the scheduler runs it again on another one.
    shared = client.submit(_identity, context, pure=False)
    futures: dict[Any, Sequence[Slab]] = {}
    suspects: list[Slab] = []
    try:
        for start in range(0, len(slabs), size):  # workers start while this process still packs tasks
            bundle = slabs[start : start + size]
            tasks = [context.pack(slab) for slab in bundle]
            futures[client.submit(run_slab_tasks, tasks, context=shared, pure=False)] = bundle
        for future in _distributed().as_completed(list(futures), loop=client.loop):
            try:
                results = future.result()
            except _distributed().KilledWorker:
                suspects.extend(futures[future])
                continue
            yield from zip(futures[future], results, strict=True)
            future.release()
        # The scheduler also blames tasks that were only waiting on a worker that died. One slab at a time shows which
        # slab kills its workers; the others are computed.
        for slab in suspects:
            again = client.submit(_identity, context, pure=False)
            future = client.submit(run_slab_tasks, [context.pack(slab)], context=again, pure=False)
            futures |= {again: (), future: (slab,)}
            try:
                (result,) = future.result()
            except _distributed().KilledWorker as error:  # raised by the scheduler, so that no note names the slab yet
                error.add_note(f"while working on {slab.where}: every worker that ran this task died")
                raise
            yield slab, result
    finally:
        client.cancel([*futures, shared])


def _slabs_per_task(slabs: Sequence[Slab], workers: int) -> int:
    """Number of slabs that share a task: one, or some small ones, as long as every worker has several tasks.

    Example:
        >>> one = xr.DataArray(np.zeros((1000, 2, 500), "f4"), dims=("entity", "token", "d_model"))
        >>> slabs = [Slab(one, None, None, (0, i), np.arange(1000)) for i in range(40)]
        >>> _slabs_per_task(slabs, 2), _slabs_per_task(slabs, 1), _slabs_per_task(slabs[:7], 2)
        (5, 10, 1)
    """
    size = int(np.prod(slabs[0].shape)) * 4
    return max(1, min(BUNDLE_BYTES // max(1, size), len(slabs) // (TASKS_PER_WORKER * max(1, workers))))


def _identity(context: SharedContext) -> SharedContext:
    return context


@contextmanager
def _client(scheduler: Any) -> Iterator[Any]:
    """Yield the distributed client to use, None for this process; close a connection that was opened here."""
    if isinstance(scheduler, str) and "://" in scheduler:
        with _distributed().Client(scheduler, set_as_default=False) as client:
            yield client
    elif isinstance(scheduler, str):
        if scheduler not in SCHEDULERS:
            near = suggest(scheduler, SCHEDULERS)
            raise InputError(f"scheduler={scheduler!r}: {near}, a distributed Client, or tcp://host:port")
        yield default_dask_client() if scheduler == "auto" else None
    elif hasattr(scheduler, "submit"):
        yield scheduler
    else:
        raise InputError(
            f"scheduler must be a word, an address or a distributed Client, not {type(scheduler).__name__}"
        )


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise InputError("a cluster needs the package distributed: pip install 'stratalens[cluster]'") from error
    return distributed
