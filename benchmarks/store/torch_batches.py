"""Measure the speed of shuffled training batches from `sl.torch_dataset(...).batches` relative to reading the layer.

An epoch returns every activation of one layer once, in random order, as float32 batches of 4096. The store has them as
bfloat16 and verifies their crc32c. *values* reads, verifies and widens the same layer into one array on all cores.
*readinto* reads only its bytes, unverified, into new memory, with one thread for each core. Workers are those of
torch's DataLoader. They already run when an epoch starts, as in every epoch of a training run except the first.
*Scattered rows* is the usual manual solution: a memory map of the same bits in one file, a DataLoader that shuffles row
numbers, and the rows of each batch gathered from the map.

*From memory* means that the files are in the page cache. *From disk* means that the script drops them from it before
every epoch; the host of a virtual machine may still cache them. CPU seconds are those of the training process, without
its workers.

    python -m benchmarks.store.torch_batches [FOLDER] [--disk FOLDER] [--blocks 128] [--rounds 7]
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import stratalens as sl
from benchmarks.harness.document import Report, arguments, parse, ratios
from benchmarks.harness.measure import alternate, drop_cache, scratch
from benchmarks.store.read import D_MODEL, ROWS, make
from stratalens.store.reading.chunks import bfloat16_to_float32
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import storage_at
from stratalens.store.threads import cores

TITLE, THEME = "Shuffled batches for training", "Store"
LAYER, BATCH = 1, 4096


class Scattered(Dataset[torch.Tensor]):
    """Rows of a memory map of bfloat16 bits."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, path.stat().st_size // (2 * D_MODEL)
        self.bits: np.ndarray | None = None

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, rows: list[int]) -> torch.Tensor:
        if self.bits is None:  # in the worker
            self.bits = np.memmap(self.path, dtype=np.uint16, mode="r").reshape(-1, D_MODEL)
        values = np.empty((len(rows), D_MODEL), dtype=np.float32)
        bfloat16_to_float32(self.bits[rows], values)
        return torch.from_numpy(values)


def as_it_is(batch: torch.Tensor) -> torch.Tensor:
    return batch


Measure = Callable[[Report, Path, str, int, int, "Callable[[], object] | None"], None]


def in_memory_and_on_disk(script: str, doc: str | None, measure: Measure, blocks: int, quick: int) -> None:
    """Call a measurement with a folder in memory, and with one on a disk whose cache is emptied before each run."""
    parser = arguments(doc)
    parser.add_argument("folder", nargs="?", default=scratch())
    parser.add_argument("--disk", default=tempfile.gettempdir(), help="a folder on a disk")
    parser.add_argument("--blocks", type=int, default=blocks)
    parser.add_argument("--rounds", type=int, default=7)
    options = parse(parser, quick={"blocks": quick, "rounds": 2})
    folders = [Path(tempfile.mkdtemp(prefix="bench-", dir=place)) for place in (options.folder, options.disk)]
    try:
        with Report(script, options, "torch", "xarray", folders=folders) as report:
            measure(report, folders[0], "memory", options.blocks, options.rounds, None)
            measure(report, folders[1], "disk", options.blocks, options.rounds, lambda: drop_cache(folders[1]))
    finally:
        for folder in folders:
            shutil.rmtree(folder)


def main() -> None:
    in_memory_and_on_disk(__file__, __doc__, measure, blocks=128, quick=8)


def measure(
    report: Report, folder: Path, where: str, blocks: int, rounds: int, before: Callable[[], object] | None
) -> None:
    path = make(folder / "run.zarr", blocks, layers=2)
    layout = load(storage_at(path)).layouts["resid_post"]
    files = [path / layout.key(0, block) for block in range(blocks)]
    size, samples = layout.inner_nbytes, blocks * ROWS
    dataset = sl.open_store(path, chunks=None)
    site = dataset.resid_post.isel(stage=0).sel(layer=LAYER)
    data = sl.torch_dataset(dataset, layer=LAYER)
    pool = ThreadPoolExecutor(cores())

    def readinto() -> None:
        memory = np.empty((blocks, size), dtype=np.uint8)

        def one(block: int) -> None:
            with files[block].open("rb", buffering=0) as file:
                file.seek(LAYER * layout.inner_stride)
                assert file.readinto(memory[block].data) == size

        list(pool.map(one, range(blocks)))

    def epoch(loader: Iterable[torch.Tensor]) -> Callable[[], None]:
        def work() -> None:
            assert sum(len(batch) for batch in loader) == samples

        return work

    def loader(workers: int) -> Iterable[torch.Tensor]:
        batches = data.batches(BATCH)
        return DataLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)

    methods: dict[str, Callable[[], object]] = {"values": lambda: site.values, "readinto": readinto}
    ours = [f"batches, {workers} workers" for workers in (0, 1, 2)]
    methods |= {name: epoch(loader(workers)) for workers, name in enumerate(ours)}
    if before is None:  # mapped pages stay in memory, so this row exists only for memory
        bits = folder / "bits"
        site_bits = sl.open_store(path, chunks=None, dtype="bits").resid_post
        site_bits.isel(stage=0).sel(layer=LAYER).values.tofile(bits)
        scattered = DataLoader(Scattered(bits), BATCH, shuffle=True, collate_fn=as_it_is)
        methods["scattered rows of a memory map"] = epoch(scattered)
    megabytes = samples * D_MODEL * 4 / 1e6
    runs = alternate(methods, rounds, before=before, shuffle=True)
    title = f"An epoch from {where}: {samples} samples of {D_MODEL}, {megabytes:.0f} MB as float32"
    base = "values" if before is None else "readinto"
    report.timings(where, title, runs, base, ours=ours, amount=megabytes)
    for name in ours:
        text = f"speed of shuffled {name}, from {where} relative to {base}"
        report.target(text, ratios(runs[base], runs[name]), at_least=0.85)
    pool.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
