"""Checks of one data file: every byte against its checksums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratalens.store.format.checksum import extend
from stratalens.store.format.layout import CRC_BYTES, ArrayLayout
from stratalens.store.format.shards import index_bytes, parse_index
from stratalens.store.integrity.report import Damage
from stratalens.store.reading.chunks import BAD_INDEX, TOO_SHORT, read_with_checksum
from stratalens.store.reading.slabs import MISSING_FILE, chunk_layer, chunk_name
from stratalens.store.state.manifest import Store
from stratalens.store.storage.base import Storage


@dataclass(frozen=True)
class FileCheck:
    """The result of `check_file`.

    Attributes:
        digest: crc32c over the stored crc32c of every inner chunk.
        faults: (number of the inner chunk, or None for the whole file; description) of each fault.
        nbytes: size of the file.
    """

    digest: int
    faults: tuple[tuple[int | None, str], ...] = ()
    nbytes: int = 0


def check_file(storage: Storage, layout: ArrayLayout, key: str) -> FileCheck:
    """Read one data file completely and compare every byte with its checksums."""
    handle = storage.open_read(key)
    if handle is None:
        return FileCheck(0, ((None, MISSING_FILE),))
    faults: list[tuple[int | None, str]] = []
    digest = 0
    with handle:
        try:
            size = handle.size()
        except FileNotFoundError:
            return FileCheck(0, ((None, MISSING_FILE),))
        if size != layout.file_nbytes and not layout.compressed:
            return FileCheck(0, ((None, f"the file has {size} bytes instead of {layout.file_nbytes}"),), size)
        handle.expect(0, size)
        if size < layout.index_nbytes + CRC_BYTES:
            return FileCheck(0, ((None, TOO_SHORT),), size)
        index = np.empty(layout.index_nbytes, dtype=np.uint8)
        if not handle.read_into([index], size - layout.index_nbytes):
            return FileCheck(0, ((None, TOO_SHORT),), size)
        extents = parse_index(layout, index.tobytes(), size)
        if not layout.compressed:
            if index.tobytes() != (index_bytes(layout) if layout.sharded else b""):
                faults.append((None, BAD_INDEX))
            stride = layout.inner_stride
            extents = np.array([[k * stride, stride] for k in range(layout.inner_count)])
        if extents is None:
            return FileCheck(0, ((None, BAD_INDEX),), size)
        for number, (offset, nbytes) in enumerate(extents.tolist()):
            checksums = read_with_checksum(handle, offset, nbytes)
            if checksums is None:
                return FileCheck(0, ((number, TOO_SHORT),), size)
            crc, stored_crc = checksums
            if crc != int.from_bytes(stored_crc, "little"):
                faults.append((number, "bytes differ from their checksum"))
            digest = extend(digest, np.frombuffer(stored_crc, dtype=np.uint8))
    return FileCheck(digest, tuple(faults), size)


def chunk_damage(store: Store, stage: int, block: int, layout: ArrayLayout, number: int | None, what: str) -> Damage:
    """Return the damage of one inner chunk, or of a whole file if `number` is None."""
    return Damage(
        kind="data",
        path=str(store.storage.path(layout.key(stage, block))),
        what=what,
        stage=store.stages[stage].name,
        site=layout.variable.name,
        layer=chunk_layer(store, layout, number),
        rows=store.geometry.rows(block),
        name=chunk_name(store, stage, block, layout, number),
    )
