"""Measure the speed of reading our own files from the page cache: one layer of all entities, one entity in all layers.

Values are bfloat16, so reading verifies them and widens them to float32 in one pass. *Single pass* is the bound for any
reader that verifies and widens: one thread for each core reads a chunk, adds it to its crc32c and widens it while it is
in the cache of the core. *readinto* is the bound for any reader into new memory. zarr-python and TensorStore read the
same files, and the script widens their bits as ours.

For one entity the comparison depends on whether its chunks were verified before. If they were, or if verification is
off, *sequential read* reads as many bytes as the entity has from the beginning of a file. The first time, the store has
to read and verify every chunk with values of the entity in full, so the comparison is with those bytes. For very small
reads xarray's own work (the selection and its labels) takes longer than reading. The row *reader* shows the time
without it.

    python -m benchmarks.store.read [FOLDER] [--blocks 12] [--rounds 15]

Each round has a new random order, and ratios are taken within a round.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.array as da
import numpy as np
import tensorstore
import xarray as xr
import zarr

from benchmarks.harness.document import Report, arguments, parse, ratios
from benchmarks.harness.measure import alternate, scratch
from stratalens.store import ActivationWriter, create, open_store, verify_store
from stratalens.store.format.checksum import extend
from stratalens.store.format.schema import site_variable
from stratalens.store.reading.chunks import READ_BYTES, bfloat16_to_float32
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import storage_at
from stratalens.store.threads import cores

TITLE, THEME = "Reading our own files", "Store"
LAYERS, D_MODEL, TOKENS, ROWS = 16, 2048, 1, 1024
LARGE = (80, 8192, 64)  # layers, d_model and rows of a block, for a model of 70 billion parameters


def make(folder: Path, blocks: int, layers: int = LAYERS, d_model: int = D_MODEL, size: int = ROWS) -> Path:
    """Write a bfloat16 store with blocks of `size` rows of random bits (64 MiB, inner chunks of 4 MiB)."""
    names = np.array([f"r{i}" for i in range(size * blocks)], dtype=object)
    values = np.random.default_rng(0).integers(0, 2**16, (layers, size, TOKENS, d_model), dtype=np.uint16)
    store = create(
        folder,
        entities={"entity": names, "entity_id": names},
        layers=range(layers),
        tokens=["last"],
        variables=[site_variable("resid_post", ["d_model"], [d_model], "bfloat16", "blocks.{layer}.hook_out")],
        block_size=size,
    )
    with ActivationWriter(store) as writer, writer.stage("s", order=0, fingerprint="f") as stage:
        for block in stage.pending():
            buffer = stage.buffer(block)
            buffer.write("resid_post", block.rows, values)
            stage.submit(buffer)
    return folder


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
    path = make(folder / "ours.zarr", blocks)
    layout = load(storage_at(path)).layouts["resid_post"]
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
        memory = np.empty(READ_BYTES, dtype=np.uint8)
        crc = 0
        with files[one].open("rb", buffering=0) as file:
            file.seek(offset)
            for start in range(0, size, READ_BYTES):
                chunk = memory[: min(READ_BYTES, size - start)]
                file.readinto(chunk.data)
                crc = extend(crc, chunk)
                bfloat16_to_float32(chunk.view(np.uint16), decoded[one, start // 2 : (start + len(chunk)) // 2])
            assert file.read(4) == crc.to_bytes(4, "little")

    pool = ThreadPoolExecutor(cores())

    def fresh(function: Callable[[int], None]) -> Callable[[], None]:
        """Run on one thread for each core, into new memory, as every reader that returns an array does."""

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
    by_zarr = zarr.open_array(path / "resid_post", mode="r")
    by_tensorstore = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "resid_post")}}, open=True
    ).result()

    def widened(read: Callable[[], np.ndarray]) -> Callable[[], None]:
        def work() -> None:
            bits = np.asarray(read())
            bfloat16_to_float32(bits, np.empty(bits.shape, dtype=np.float32))

        return work

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
    report.target(
        "speed of unverified reading of a layer relative to readinto",
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
        text = f"speed of verified reading of a layer relative to a single pass, {name}"
        report.target(text, ratios(runs["single pass"], runs[name]), at_least=0.85)
    for peer in ("TensorStore", "zarr-python"):
        report.target(
            f"speed of verified reading of a layer relative to {peer}", ratios(runs[peer], runs[ours]), at_least=1
        )
    plain = xr.open_zarr(path).resid_post
    lazy_tensorstore = da.from_array(Readable(by_tensorstore), chunks=layout.inner_shape)
    through_dask = {
        "stratalens": lambda: dask_checked.isel(stage=0, layer=layer).values,
        "xarray.open_zarr": widened(lambda: plain.isel(stage=0, layer=layer).values),
        "TensorStore": widened(lambda: lazy_tensorstore[0, layer].compute()),
    }
    runs = alternate(through_dask, rounds, shuffle=True)
    title = f"The same through dask (its threads, the chunks that each gives it): {total:.0f} MB"
    report.timings("dask", title, runs, "stratalens", ours=["stratalens"], amount=total)
    for peer in list(through_dask)[1:]:
        text = f"speed of verified reading of a layer through dask relative to {peer}"
        report.target(text, ratios(runs[peer], runs["stratalens"]), at_least=1)
    verified(report, path, files, pool, rounds)
    pool.shutdown()
    entities(report, path, "", rounds)
    entities(report, make(folder / "large.zarr", 2, *LARGE), "large", rounds)


class Readable:
    """A TensorStore with the array interface that dask needs."""

    def __init__(self, source: tensorstore.TensorStore) -> None:
        self.source, self.shape, self.ndim, self.dtype = source, source.shape, source.ndim, np.dtype(np.uint16)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        return self.source[key].read().result()


def verified(report: Report, path: Path, files: list[Path], pool: ThreadPoolExecutor, rounds: int) -> None:
    """Compare verify_store with reading and checksumming the same files on one thread for each core."""

    def summed(file: Path) -> None:
        memory, crc = np.empty(READ_BYTES, dtype=np.uint8), 0
        with file.open("rb", buffering=0) as opened:
            while got := opened.readinto(memory.data):
                crc = extend(crc, memory[:got])

    megabytes = sum(file.stat().st_size for file in files) / 1e6
    methods = {"reading and crc32c": lambda: list(pool.map(summed, files)), "stratalens": lambda: verify_store(path)}
    runs = alternate(methods, rounds, shuffle=True)
    title = f"Verifying a full store: {megabytes:.0f} MB"
    report.timings("verify", title, runs, "reading and crc32c", ours=["stratalens"], amount=megabytes)
    text = "speed of verify_store relative to reading and crc32c"
    report.target(text, ratios(runs["reading and crc32c"], runs["stratalens"]), at_least=0.85)


def entities(report: Report, path: Path, which: str, rounds: int) -> None:
    """Measure reading one entity and 64 entities over all layers."""
    layout = load(storage_at(path)).layouts["resid_post"]
    layers, size = layout.layers, layout.block_size
    small = layers * layout.row_nbytes
    file = path / layout.key(0, 0)
    rows = np.sort(np.random.default_rng(0).permutation(size)[:64])
    unchecked, checked = (open_store(path, chunks=None, verify=v).resid_post for v in (False, True))
    by_dask = open_store(path).resid_post
    reader = unchecked.variable._data.array.reader
    checked.isel(stage=0, entity=slice(size)).load()

    def sequential(nbytes: int) -> None:
        with file.open("rb", buffering=0) as opened:
            opened.readinto(np.empty(nbytes, dtype=np.uint8).data)

    def checksum_half(part: int) -> None:
        """Read and checksum one half of the file, which contains all chunks of the entity."""
        step = -(-layout.file_nbytes // (2 * READ_BYTES)) * READ_BYTES
        memory, crc = np.empty(READ_BYTES, dtype=np.uint8), 0
        with file.open("rb", buffering=0) as opened:
            opened.seek(part * step)
            for _ in range(step // READ_BYTES):
                crc = extend(crc, memory[: opened.readinto(memory.data)])

    mapped = unchecked.copy(data=memory_map(path, unchecked.shape, size))
    shape = f"{layers} layers x {layout.variable.shape[0]}"
    base, floor = "sequential read", "xarray over a memory map of the bits"
    one = {
        base: lambda: sequential(small),
        "reader": lambda: reader.read([0], range(layers), slice(5, 6), [0]),
        "stratalens, chunks=None, verify=False": lambda: unchecked.isel(stage=0, entity=5).values,
        "stratalens, chunks=None, verified before": lambda: checked.isel(stage=0, entity=5).values,
        "stratalens, verified before": lambda: by_dask.isel(stage=0, entity=5).values,
        floor: lambda: mapped.isel(stage=0, entity=5).values.copy(),
    }
    runs = alternate(one, rounds * 5, shuffle=True)
    title = f"One entity over all layers, {shape}: {small / 1e3:.0f} kB"
    note = f"{floor} has the same labels: the time of xarray's own work, without files, checks and widening to float32"
    report.timings(f"entity{which}", title, runs, base, ours=list(one)[1:5], amount=small / 1e6, note=note)
    for name in list(one)[1:4]:
        text = f"time of one entity over all layers ({shape}) relative to reading as many bytes: {name}"
        report.target(text, ratios(runs[name], runs[base]), at_most=3)
    text = f"time of one entity over all layers ({shape}) relative to {floor}"
    report.target(text, ratios(runs[list(one)[3]], runs[floor]), at_most=3)
    many = {
        base: lambda: sequential(64 * small),
        "stratalens, chunks=None, verify=False": lambda: unchecked.isel(stage=0, entity=rows).values,
        "stratalens, chunks=None, verified before": lambda: checked.isel(stage=0, entity=rows).values,
        floor: lambda: mapped.isel(stage=0, entity=rows).values,
    }
    runs = alternate(many, rounds, shuffle=True)
    title = f"64 entities over all layers, {shape}: {64 * small / 1e6:.1f} MB"
    report.timings(f"entities{which}", title, runs, base, ours=list(many)[1:3], amount=64 * small / 1e6)
    pool = ThreadPoolExecutor(2)
    first = {
        "the same chunks read and summed": lambda: list(pool.map(checksum_half, (0, 1))),
        "stratalens, chunks=None": lambda: fresh_rows(path),
    }
    runs = alternate(first, rounds, shuffle=True)
    title = f"One entity for the first time, {shape}: its chunks, {layout.file_nbytes / 1e6:.0f} MB"
    report.timings(f"first{which}", title, runs, next(iter(first)), ours=["stratalens, chunks=None"])
    text = f"time of one entity for the first time ({shape}) relative to reading and summing its chunks"
    report.target(text, ratios(runs["stratalens, chunks=None"], runs[next(iter(first))]), at_most=3)
    pool.shutdown()


def memory_map(path: Path, shape: tuple[int, ...], rows: int) -> np.memmap:
    """Write and map a file of bits with the store's first `rows` entities; the rest is a hole."""
    bits = np.memmap(path.with_suffix(".bits"), dtype=np.uint16, mode="w+", shape=shape)
    stored = open_store(path, chunks=None, dtype="bits").resid_post
    for layer in range(shape[1]):
        bits[0, layer, :rows] = stored.isel(stage=0, layer=layer, entity=slice(rows)).values
    return bits


def fresh_rows(path: Path) -> None:
    """Open the store and read one entity."""
    open_store(path, chunks=None).resid_post.isel(stage=0, entity=5).load()


if __name__ == "__main__":
    main()
