"""The interface of the compared file formats, and raw files and our store as implementations.

A format is created with its folder, the shape (stages, layers, entities, tokens, d_model) and the rows of a block:

    put(stage, start, values)    values of shape (layers, rows, tokens, d_model), for the rows from `start` on
    finish(sync)                 all values are in files; with `sync` they are also on the disk
    open()                       returns a handle, after finish; then
    layer(handle, stage, layer), entity(handle, stage, row), token(handle, stage, token), stage(handle, stage)

The last four return NumPy arrays in memory with the dims in the order of the shape. Values are float16, which every
format supports.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stratalens.store import ActivationWriter, create, open_store
from stratalens.store.format.checksum import extend
from stratalens.store.format.schema import site_variable

Shape = tuple[int, int, int, int, int]
DTYPE = np.dtype("float16")


def sync_file(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Call `sync_file` for all files and folders in a folder."""
    for path in [*folder.rglob("*"), folder]:
        sync_file(path)


class Format(ABC):
    """Base class of the formats."""

    name = ""
    module = ""  # the module that has to be installed
    checksums = False

    def __init__(self, folder: Path, shape: Shape, rows: int) -> None:
        self.folder, self.shape, self.rows = folder, shape, rows

    def begin(self) -> None:
        """Create the folder and everything that the format needs before the first values."""
        self.folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        """Write the next block of a stage."""

    def finish(self, sync: bool) -> None:
        """Complete the files; with `sync`, wait until they are on the disk."""
        if sync:
            sync_tree(self.folder)

    def open(self) -> Any:
        """Return a handle for the queries; None by default."""
        return None

    def close(self, handle: Any) -> None:
        """Close a handle."""
        del handle

    def stage(self, handle: Any, stage: int) -> np.ndarray:
        return np.stack([self.layer(handle, stage, n) for n in range(self.shape[1])])

    @abstractmethod
    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        """Return all entities of one layer."""

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        return np.stack([self.layer(handle, stage, n)[row] for n in range(self.shape[1])])

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        return np.stack([self.layer(handle, stage, n)[:, token] for n in range(self.shape[1])])

    def numbers(self) -> dict[str, int]:
        """Return the bytes and the number of files on the disk."""
        files = [p for p in self.folder.rglob("*") if p.is_file()]
        return {"bytes": sum(p.stat().st_size for p in files), "files": len(files)}


class Raw(Format):
    """One flat file for each block: (layers, rows, tokens, d_model) in memory order."""

    name = "raw file"

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        with (self.folder / f"{stage}.{start}").open("wb", buffering=0) as file:
            self.write(file, values)

    def write(self, file: Any, values: np.ndarray) -> None:
        for layer in values:
            file.write(layer.reshape(-1).view(np.uint8).data)

    def stage(self, handle: Any, stage: int) -> np.ndarray:
        return self.sequential(stage, int(np.prod(self.shape[1:])))

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        return self.sequential(stage, int(np.prod(self.shape[2:])))

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        return self.sequential(stage, self.shape[1] * int(np.prod(self.shape[3:])))

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        return self.sequential(stage, int(np.prod(self.shape[1:3])) * self.shape[4])

    def sequential(self, stage: int, count: int) -> np.ndarray:
        """Read as many values from the beginning in one pass: as many bytes as the query, but not its result."""
        out = np.empty(count, DTYPE)
        view, done = out.view(np.uint8), 0
        for start in range(0, self.shape[2], self.rows):
            with (self.folder / f"{stage}.{start}").open("rb", buffering=0) as file:
                while done < len(view) and (got := file.readinto(view[done:].data)):
                    done += got
        return out


class RawChecked(Raw):
    """The same with the crc32c after every layer."""

    name = "raw file with crc32c"
    checksums = True

    def write(self, file: Any, values: np.ndarray) -> None:
        for layer in values:
            flat = layer.reshape(-1).view(np.uint8)
            crc = extend(0, flat)
            file.write(flat.data)
            file.write(crc.to_bytes(4, "little"))


class Ours(Format):
    """Our store, read by `open_store(path)`: dask-backed, verified."""

    name = "stratalens"
    checksums = True
    chunks: Any = "auto"
    options: ClassVar[dict[str, Any]] = {}

    def begin(self) -> None:
        super().begin()
        _, layers, entities, tokens, width = self.shape
        names = np.array([f"r{i}" for i in range(entities)], dtype=object)
        store = create(
            self.folder / "run.zarr", entities={"entity": names, "entity_id": names}, layers=range(layers),
            tokens=[f"t{i}" for i in range(tokens)], block_size=self.rows,
            variables=[site_variable("resid_post", ["d_model"], [width], DTYPE.name, "blocks.{layer}.hook_out")],
        )  # fmt: skip
        self.writer = ActivationWriter(store)
        self.number, self.writing = -1, None  # type: tuple[int, Any]

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        if stage != self.number:
            if self.writing is not None:
                self.writing.close()
            self.number, self.writing = stage, self.writer.stage(f"s{stage}", order=stage, fingerprint=f"f{stage}")
            self.blocks = iter(list(self.writing.pending()))
        block = next(self.blocks)
        buffer = self.writing.buffer(block)
        buffer.write("resid_post", block.rows, values)
        self.writing.submit(buffer)

    def finish(self, sync: bool) -> None:
        self.writing.close()  # waits for the disk with or without `sync`
        self.writer.close()

    def open(self) -> Any:
        return open_store(self.folder / "run.zarr", chunks=self.chunks, **self.options).resid_post

    def stage(self, handle: Any, stage: int) -> np.ndarray:
        return np.asarray(handle.isel(stage=stage).values)

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        return np.asarray(handle.isel(stage=stage, layer=layer).values)

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        return np.asarray(handle.isel(stage=stage, entity=row).values)

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        return np.asarray(handle.isel(stage=stage, token=token).values)


class OursPlain(Ours):
    """Without dask: `open_store(path, chunks=None)`."""

    name = "stratalens, chunks=None"
    chunks = None


class OursUnchecked(OursPlain):
    """Without dask and without checking: `open_store(path, chunks=None, verify=False)`."""

    name = "stratalens, chunks=None, verify=False"
    checksums = False
    options: ClassVar[dict[str, Any]] = {"verify": False}
