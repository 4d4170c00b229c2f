"""How fast a store is written, against a raw file of the same bytes, zarr-python and TensorStore.

    python benchmarks/store_write.py [FOLDER ...] [--blocks N] [--repeats N]

Each repeat runs all contestants one after the other in a fresh random order;
ratios are taken within a repeat. Give a folder on tmpfs and one on a disk.
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
from pathlib import Path

import numpy as np
import tensorstore
import zarr
from zarr.codecs import Crc32cCodec

from stratalens.store.checksum import RELEASES_GIL, extend
from stratalens.store.create import create
from stratalens.store.layout import ArrayLayout
from stratalens.store.manifest import Store
from stratalens.store.schema import site_variable
from stratalens.store.writer import ActivationWriter

LAYERS, D_MODEL, TOKENS, ROWS = 16, 2048, 1, 1024


def make(folder: Path, blocks: int) -> Store:
    """A bfloat16 store of 64 MiB blocks with inner chunks of 4 MiB."""
    rows = ROWS * blocks
    names = np.array([f"r{i}" for i in range(rows)], dtype=object)
    return create(
        folder / "ours.zarr",
        entities={"entity": names, "entity_id": names},
        layers=range(LAYERS),
        tokens=["last"],
        variables=[site_variable("resid_post", ["d_model"], [D_MODEL], "bfloat16", "blocks.{layer}.hook_out")],
        block_size=ROWS,
    )


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def contestants(
    folder: Path, blocks: int, values: np.ndarray, fsync: bool
) -> dict[str, Callable[[], tuple[float, float]]]:
    """Functions that write `blocks` blocks and return (wall, CPU) seconds of the writing alone."""
    flat = values.reshape(LAYERS, -1).view(np.uint8)

    def timed(work: Callable[[], None]) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    def raw() -> tuple[float, float]:
        def work() -> None:
            for block in range(blocks):
                path = folder / f"raw{block}"
                with path.open("wb", buffering=0) as file:
                    for layer in range(LAYERS):
                        crc = extend(0, flat[layer])
                        file.write(flat[layer].data)
                        file.write(crc.to_bytes(4, "little"))
                    if fsync:
                        os.fsync(file.fileno())

        return timed(work)

    def ours() -> tuple[float, float]:
        store = make(folder, blocks)
        writer = ActivationWriter(store)
        stage = writer.stage("s", order=0, fingerprint="f")
        buffers = []
        for block in list(stage.pending())[:2]:  # filled beforehand: filling is the forward pass's time
            buffer = stage.buffer(block)
            buffer.write("resid_post", block.rows, values)
            buffers.append(buffer)
        pending = list(stage.pending())[2:]

        def work() -> None:
            for buffer in buffers:
                stage.submit(buffer)
            for block in pending:
                again = stage.buffer(block)
                again.skip([])
                for given in again._given.values():  # the memory still holds the values
                    given[...] = True
                stage.submit(again)
            stage.close()

        result = timed(work)
        writer.close()
        return result

    layout: ArrayLayout = make(folder, blocks).layouts["resid_post"]
    shutil.rmtree(folder / "ours.zarr")

    def by_zarr() -> tuple[float, float]:
        array = zarr.create_array(
            str(folder / "zarr.zarr"), shape=layout.array_shape(1, ROWS * blocks), dtype="uint16",
            chunks=layout.inner_shape, shards=layout.file_shape, compressors=[Crc32cCodec()], filters=None,
            config={"write_empty_chunks": True},
        )  # fmt: skip

        def work() -> None:
            for block in range(blocks):
                array[0:1, :, block * ROWS : (block + 1) * ROWS] = values[None]
            if fsync:
                for path in (folder / "zarr.zarr" / "c").rglob("*"):
                    sync(path)

        return timed(work)

    def by_tensorstore() -> tuple[float, float]:
        inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        spec = {
            "driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "ts.zarr"),
                                           "file_io_sync": fsync},
            "metadata": {
                "shape": list(layout.array_shape(1, ROWS * blocks)), "data_type": "uint16",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(layout.file_shape)}},
                "codecs": [{"name": "sharding_indexed", "configuration": {
                    "chunk_shape": list(layout.inner_shape), "codecs": inner,
                    "index_codecs": inner, "index_location": "end"}}],
            },
            "create": True,
        }  # fmt: skip
        array = tensorstore.open(spec).result()

        def work() -> None:
            for block in range(blocks):
                array[0:1, :, block * ROWS : (block + 1) * ROWS].write(values[None]).result()

        return timed(work)

    return {"raw + crc32c": raw, "stratalens": ours, "zarr-python": by_zarr, "tensorstore": by_tensorstore}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", default=["/dev/shm", tempfile.gettempdir()])
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(platform.processor() or platform.machine(), f"{os.cpu_count()} cores", platform.python_version())
    print(f"numpy {np.__version__} zarr {zarr.__version__} crc32c without the GIL: {RELEASES_GIL}")
    values = np.random.default_rng(0).integers(0, 2**16, (LAYERS, ROWS, TOKENS, D_MODEL), dtype=np.uint16)
    megabytes = values.nbytes * options.blocks / 1e6
    for base in options.folders:
        fsync = not str(base).startswith("/dev/shm")
        times: dict[str, list[float]] = {}
        cpus: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            folder = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
            order = list(contestants(folder, options.blocks, values, fsync).items())
            random.shuffle(order)
            for name, run in order:
                wall, cpu = run()
                times.setdefault(name, []).append(wall)
                cpus.setdefault(name, []).append(cpu)
                shutil.rmtree(folder)
                folder.mkdir()
            shutil.rmtree(folder)
        print(f"\n{base}: {megabytes:.0f} MB, {'with' if fsync else 'without a disk, so without'} fsync")
        for name, walls in times.items():
            speeds = sorted(megabytes / w for w in walls)
            ratio = sorted(r / w for r, w in zip(times["raw + crc32c"], walls, strict=True))
            print(
                f"{name:14} {statistics.median(speeds):7.0f} MB/s ({speeds[0]:.0f} .. {speeds[-1]:.0f})  "
                f"of raw {statistics.median(ratio):.2f} ({ratio[0]:.2f} .. {ratio[-1]:.2f})  "
                f"CPU {statistics.median(cpus[name]):.2f} s"
            )


if __name__ == "__main__":
    main()
