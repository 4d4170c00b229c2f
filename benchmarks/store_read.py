"""How fast one layer over all entities (and one entity over all layers) is read, against the alternatives.

    python benchmarks/store_read.py [FOLDER] [--blocks N] [--repeats N]

The files are in the page cache. Contestants run in a fresh random order in each
repeat; ratios are taken within a repeat.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorstore
import zarr
from store_write import D_MODEL, LAYERS, ROWS, TOKENS, make

from stratalens.store import open_store
from stratalens.store.checksum import extend
from stratalens.store.chunks import PIECE, widen
from stratalens.store.threads import cores
from stratalens.store.writer import ActivationWriter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default="/dev/shm")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        run(folder, options.blocks, options.repeats)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, blocks: int, repeats: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (LAYERS, ROWS, TOKENS, D_MODEL), dtype=np.uint16)
    with ActivationWriter(make(folder, blocks)) as writer, writer.stage("s", order=0, fingerprint="f") as stage:
        for block in stage.pending():
            buffer = stage.buffer(block)
            buffer.write("resid_post", block.rows, values)
            stage.submit(buffer)
    path = folder / "ours.zarr"
    layout = writer.store.layouts["resid_post"]
    files = [path / layout.key(0, block) for block in range(blocks)]
    layer = LAYERS // 2
    offset, size = layer * layout.inner_stride, layout.inner_nbytes
    raw_bits = np.empty((blocks, size), dtype=np.uint8)
    decoded = np.empty((blocks, size // 2), dtype=np.float32)

    def readinto(one: int) -> None:
        with files[one].open("rb", buffering=0) as file:
            file.seek(offset)
            assert file.readinto(raw_bits[one].data) == size

    def single_pass(one: int) -> None:
        memory = np.empty(PIECE, dtype=np.uint8)
        crc = 0
        with files[one].open("rb", buffering=0) as file:
            file.seek(offset)
            for start in range(0, size, PIECE):
                piece = memory[: min(PIECE, size - start)]
                file.readinto(piece.data)
                crc = extend(crc, piece)
                widen(piece.view(np.uint16), decoded[one, start // 2 : (start + len(piece)) // 2])
            assert file.read(4) == crc.to_bytes(4, "little")

    pool = ThreadPoolExecutor(cores())

    def fresh(function: Callable[[int], None]) -> Callable[[], None]:
        """On one thread for each core, into new memory, as every reader that returns an array does."""

        def work() -> None:
            nonlocal raw_bits, decoded
            if function is readinto:
                raw_bits = np.empty((blocks, size), dtype=np.uint8)
            else:
                decoded = np.empty((blocks, size // 2), dtype=np.float32)
            list(pool.map(function, range(blocks)))

        return work

    bits_fast = open_store(path, chunks=None, verify=False, dtype="bits").resid_post
    checked = open_store(path, chunks=None).resid_post
    dask_checked = open_store(path).resid_post
    unchecked = open_store(path, chunks=None, verify=False).resid_post
    by_zarr = zarr.open_array(path / "resid_post", mode="r")
    by_tensorstore = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "resid_post")}}, open=True
    ).result()

    def widened(read: Callable[[], np.ndarray]) -> Callable[[], None]:
        def work() -> None:
            bits = np.asarray(read())
            widen(bits, np.empty(bits.shape, dtype=np.float32))

        return work

    def sequential() -> None:
        with files[0].open("rb", buffering=0) as file:
            file.readinto(bytearray(LAYERS * layout.row_nbytes))

    print(platform.processor() or platform.machine(), f"{os.cpu_count()} cores", platform.python_version())
    total = blocks * size / 1e6
    compare(
        f"one layer over all entities, bits, not verified, {total:.0f} MB",
        {
            "readinto": fresh(readinto),
            "stratalens": lambda: bits_fast.isel(stage=0, layer=layer).values,
        },
        total,
        repeats,
    )
    compare(
        f"one layer over all entities, verified and widened to float32, {total:.0f} MB",
        {
            "single pass": fresh(single_pass),
            "stratalens": lambda: checked.isel(stage=0, layer=layer).values,
            "stratalens, dask": lambda: dask_checked.isel(stage=0, layer=layer).values,
            "zarr-python": widened(lambda: np.asarray(by_zarr[0, layer])),
            "tensorstore": widened(lambda: by_tensorstore[0, layer].read().result()),
        },
        total,
        repeats,
    )
    compare(
        f"one entity over all layers, not verified, {LAYERS * layout.row_nbytes / 1e3:.0f} kB",
        {
            "sequential read": sequential,
            "stratalens": lambda: unchecked.isel(stage=0, entity=5).values,
            "stratalens, verified before": lambda: checked.isel(stage=0, entity=5).values,
        },
        LAYERS * layout.row_nbytes / 1e6,
        repeats * 5,
    )
    pool.shutdown()


def compare(title: str, contestants: dict[str, Callable[[], object]], megabytes: float, repeats: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for name in contestants:
        contestants[name]()
    for _ in range(repeats):
        order = list(contestants.items())
        random.shuffle(order)
        for name, work in order:
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    first = next(iter(times.values()))
    print(f"\n{title}")
    for name, walls in times.items():
        ratio = sorted(r / w for r, w in zip(first, walls, strict=True))
        speed = megabytes / statistics.median(walls)
        print(
            f"{name:28} {speed:7.0f} MB/s  of the first {statistics.median(ratio):.2f} "
            f"({ratio[len(ratio) // 4]:.2f} .. {ratio[-len(ratio) // 4]:.2f})"
        )


if __name__ == "__main__":
    main()
