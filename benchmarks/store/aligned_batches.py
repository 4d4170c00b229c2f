"""Measure the speed of shuffled batches of several stages and layers relative to reading their bytes.

An epoch returns every row of two stages and two layers once, in random order, as float32 batches of 1024 samples of
shape (stage, layer, d_model): `sl.torch_dataset(..., aligned=True).batches`. The store has them as bfloat16 and
verifies their crc32c. *values* reads, verifies and widens the same values into one array on all cores. *readinto* reads
only their bytes, unverified, into new memory, with one thread for each core. Workers are those of torch's DataLoader.
They already run when an epoch starts, as in every epoch of a training run except the first. *Divided blocks* has a
buffer so small that each block is read in eight ranges of rows: the store has verified all of its chunks in the epoch
before.

*Scattered rows* is the usual manual solution: a memory map of the same bits for each stage and layer, a DataLoader that
shuffles row numbers, and the rows of each batch gathered from all maps. *Statistics* computes the mean, the mean norm
and the scale of each stage and layer in float64.

*From memory* means that the files are in the page cache. *From disk* means that the script drops them from it before
every epoch; the host of a virtual machine may still cache them.

    python -m benchmarks.store.aligned_batches [FOLDER] [--disk FOLDER] [--blocks 32] [--rounds 7]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import stratalens as sl
from benchmarks.harness.document import Report, ratios
from benchmarks.harness.measure import alternate
from benchmarks.store.torch_batches import as_it_is, in_memory_and_on_disk
from stratalens.store import ActivationWriter, create
from stratalens.store.format.schema import site_variable
from stratalens.store.reading.chunks import bfloat16_to_float32
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import storage_at
from stratalens.store.threads import cores

TITLE, THEME = "Aligned batches for crosscoders", "Store"
STAGES, LAYERS, D_MODEL, ROWS, BATCH = ("base", "chat"), (1, 2), 2048, 1024, 1024
ALL_LAYERS = 4  # of the store, of which two are read
PARTS = len(STAGES) * len(LAYERS)


def make(folder: Path, blocks: int) -> Path:
    """Write a bfloat16 store of two stages and four layers, with blocks of 1024 rows (inner chunks of 4 MiB)."""
    names = np.array([f"r{i}" for i in range(ROWS * blocks)], dtype=object)
    store = create(
        folder,
        entities={"entity": names, "entity_id": names},
        layers=range(ALL_LAYERS),
        tokens=["last"],
        variables=[site_variable("resid_post", ["d_model"], [D_MODEL], "bfloat16", "blocks.{layer}.hook_out")],
        block_size=ROWS,
    )
    for order, name in enumerate(STAGES):
        values = np.random.default_rng(order).standard_normal((ALL_LAYERS, ROWS, 1, D_MODEL), dtype=np.float32)
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        with ActivationWriter(store) as writer, writer.stage(name, order=order, fingerprint=name) as stage:
            for block in stage.pending():
                buffer = stage.buffer(block)
                buffer.write("resid_post", block.rows, bits)
                stage.submit(buffer)
    return folder


class Scattered(Dataset[torch.Tensor]):
    """Rows of several memory maps of bfloat16 bits, one for each stage and layer."""

    def __init__(self, paths: list[Path]) -> None:
        self.maps = [np.memmap(path, dtype=np.uint16, mode="r").reshape(-1, D_MODEL) for path in paths]

    def __len__(self) -> int:
        return len(self.maps[0])

    def __getitems__(self, rows: list[int]) -> torch.Tensor:
        values = np.empty((len(rows), len(self.maps), D_MODEL), dtype=np.float32)
        for number, bits in enumerate(self.maps):
            bfloat16_to_float32(bits[rows], values[:, number])
        return torch.from_numpy(values)


def main() -> None:
    in_memory_and_on_disk(__file__, __doc__, measure, blocks=32, quick=4)


def measure(
    report: Report, folder: Path, where: str, blocks: int, rounds: int, before: Callable[[], object] | None
) -> None:
    path = make(folder / "run.zarr", blocks)
    layout = load(storage_at(path)).layouts["resid_post"]
    size, samples = layout.inner_nbytes, blocks * ROWS
    places = [(path / layout.key(s, b), n) for b in range(blocks) for s in range(len(STAGES)) for n in LAYERS]
    dataset = sl.open_store(path, chunks=None)
    data = sl.torch_dataset(dataset, stage=list(STAGES), layer=list(LAYERS), aligned=True)
    pool = ThreadPoolExecutor(cores())

    def readinto() -> None:
        memory = np.empty((len(places), size), dtype=np.uint8)

        def one(number: int) -> None:
            file_path, layer = places[number]
            with file_path.open("rb", buffering=0) as file:
                file.seek(layer * layout.inner_stride)
                assert file.readinto(memory[number].data) == size

        list(pool.map(one, range(len(places))))

    def epoch(loader: Iterable[torch.Tensor]) -> Callable[[], None]:
        def work() -> None:
            assert sum(len(batch) for batch in loader) == samples

        return work

    def loader(workers: int, buffer_bytes: int) -> Iterable[torch.Tensor]:
        batches = data.batches(BATCH, buffer_bytes=buffer_bytes)
        return DataLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)

    large = 2 * 8 * PARTS * size  # two pools of eight whole blocks
    site = dataset.resid_post.sel(layer=list(LAYERS))
    methods: dict[str, Callable[[], object]] = {"values": lambda: site.values, "readinto": readinto}
    ours = [f"batches, {workers} workers" for workers in (0, 1, 2)]
    methods |= {name: epoch(loader(workers, large)) for workers, name in enumerate(ours)}
    methods["batches of divided blocks, 0 workers"] = epoch(loader(0, large // 8))
    methods["statistics"] = data.normalization
    if before is None:  # mapped pages stay in memory, so this row exists only for memory
        bits = sl.open_store(path, chunks=None, dtype="bits").resid_post
        paths = [folder / f"bits-{stage}-{layer}" for stage in STAGES for layer in LAYERS]
        for target, (stage, layer) in zip(paths, [(s, n) for s in STAGES for n in LAYERS], strict=True):
            bits.sel(stage=stage, layer=layer).values.tofile(target)
        scattered = DataLoader(Scattered(paths), BATCH, shuffle=True, collate_fn=as_it_is)
        methods["scattered rows of memory maps"] = epoch(scattered)
    megabytes = samples * PARTS * D_MODEL * 4 / 1e6
    runs = alternate(methods, rounds, before=before, shuffle=True)
    title = f"An epoch from {where}: {samples} samples of {PARTS} x {D_MODEL}, {megabytes:.0f} MB as float32"
    base = "values" if before is None else "readinto"
    report.timings(where, title, runs, base, ours=[*ours, "batches of divided blocks, 0 workers"], amount=megabytes)
    for name in ours:
        text = f"speed of aligned {name}, from {where} relative to {base}"
        report.target(text, ratios(runs[base], runs[name]), at_least=0.8)
    pool.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
