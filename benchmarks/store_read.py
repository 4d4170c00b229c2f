"""How fast our own files are read: one layer over all entities, one entity over all layers, from the page cache.

Values are bfloat16, so that reading is checking and widening to float32 in one go. *Single pass* is what nothing that
checks and widens can be faster than: one thread a core, each piece read, added to its crc32c and widened while it is in
the cache of the core. *readinto* is what nothing that reads into new memory can be faster than. zarr-python and
TensorStore read the same files of ours, and their bits are widened as ours are.

    python benchmarks/store_read.py [FOLDER] [--blocks 12] [--rounds 15]

Contestants run in a fresh order in each round, ratios are taken within one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorstore
import zarr

from common import alternate, scratch
from report import Report, arguments, parse, ratios
from stratalens.store import ActivationWriter, create, open_store
from stratalens.store.checksum import extend
from stratalens.store.chunks import PIECE, widen
from stratalens.store.manifest import Store
from stratalens.store.schema import site_variable
from stratalens.store.threads import cores

TITLE, THEME = "Reading our own files", "Store"
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


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=scratch())
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    options = parse(parser, quick={"blocks": 4, "rounds": 4})
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        with Report(__file__, options, "zarr", "tensorstore", "xarray", "dask", folders=[folder]) as report:
            run(report, folder, options.blocks, options.rounds)
    finally:
        shutil.rmtree(folder)


def run(report: Report, folder: Path, blocks: int, rounds: int) -> None:
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
    dask_bits = open_store(path, verify=False, dtype="bits").resid_post
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

    total = blocks * size / 1e6
    ours = "stratalens, chunks=None"
    bits = {
        "readinto": fresh(readinto),
        ours: lambda: bits_fast.isel(stage=0, layer=layer).values,
        "stratalens": lambda: dask_bits.isel(stage=0, layer=layer).values,
        "TensorStore": lambda: np.asarray(by_tensorstore[0, layer].read().result()),
        "zarr-python": lambda: np.asarray(by_zarr[0, layer]),
    }
    runs = alternate(bits, rounds, shuffle=True)
    title = f"One layer over all entities, bits, ours not verified: {total:.0f} MB"
    report.timings("bits", title, runs, "readinto", ours=[ours, "stratalens"], amount=total)
    report.aim(
        "speed of unverified reading of a layer by that of readinto",
        ratios(runs["readinto"], runs[ours]),
        at_least=0.85,
    )
    checks = {
        "single pass": fresh(single_pass),
        ours: lambda: checked.isel(stage=0, layer=layer).values,
        "stratalens": lambda: dask_checked.isel(stage=0, layer=layer).values,
        "TensorStore": widened(lambda: by_tensorstore[0, layer].read().result()),
        "zarr-python": widened(lambda: np.asarray(by_zarr[0, layer])),
    }
    runs = alternate(checks, rounds, shuffle=True)
    title = f"One layer over all entities, verified and widened to float32: {total:.0f} MB"
    report.timings("checked", title, runs, "single pass", ours=[ours, "stratalens"], amount=total)
    for name in (ours, "stratalens"):
        told = f"speed of verified reading of a layer by that of a single pass, {name}"
        report.aim(told, ratios(runs["single pass"], runs[name]), at_least=0.85)
    for peer in ("TensorStore", "zarr-python"):
        report.aim(
            f"speed of verified reading of a layer by that of {peer}", ratios(runs[peer], runs[ours]), at_least=1
        )
    small = LAYERS * layout.row_nbytes / 1e6
    entity = {
        "sequential read": sequential,
        ours: lambda: unchecked.isel(stage=0, entity=5).values,
        "stratalens, chunks=None, chunks verified before": lambda: checked.isel(stage=0, entity=5).values,
        "stratalens, chunks verified before": lambda: dask_checked.isel(stage=0, entity=5).values,
    }
    runs = alternate(entity, rounds * 5, shuffle=True)
    title = f"One entity over all layers, not verified: {small * 1e3:.0f} kB"
    report.timings("entity", title, runs, "sequential read", ours=list(entity)[1:], amount=small)
    report.aim(
        "time of one entity over all layers by that of as many bytes",
        ratios(runs[ours], runs["sequential read"]),
        at_most=3,
    )
    pool.shutdown()


if __name__ == "__main__":
    main()
