"""Verification: every byte of a store against its checksums, in parallel, damage named.

`check_file` looks at one data file; `verify_store` at everything: every committed
file here, the root zarr.json and its copy, coordinates, labels, commit records and the
history in `verify_metadata`. What can be put right is put right in `repair`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratalens.store.format.checksum import extend
from stratalens.store.format.layout import CRC_BYTES, ArrayLayout
from stratalens.store.format.shards import index_bytes, parse_index
from stratalens.store.integrity.report import Damage
from stratalens.store.reading.chunks import BAD_INDEX, TOO_SHORT, read_with_checksum
from stratalens.store.reading.slabs import MISSING, chunk_name
from stratalens.store.state.manifest import Store
from stratalens.store.storage.base import Storage


@dataclass(frozen=True)
class FileCheck:
    """Digest of a file, and what is wrong with it: (number of the inner chunk or None, words)."""

    digest: int
    faults: tuple[tuple[int | None, str], ...] = ()
    nbytes: int = 0


def check_file(storage: Storage, layout: ArrayLayout, key: str) -> FileCheck:
    """Read one data file whole and compare every byte of it with its checksums."""
    handle = storage.open_read(key)
    if handle is None:
        return FileCheck(0, ((None, MISSING),))
    faults: list[tuple[int | None, str]] = []
    digest = 0
    with handle:
        try:
            size = handle.size()
        except FileNotFoundError:
            return FileCheck(0, ((None, MISSING),))
        if size != layout.file_nbytes and not layout.compressed:
            return FileCheck(0, ((None, f"the file has {size} bytes instead of {layout.file_nbytes}"),), size)
        handle.expect(0, size)
        index = np.empty(layout.index_nbytes, dtype=np.uint8)
        if size < layout.index_nbytes + CRC_BYTES or not handle.read_into([index], size - layout.index_nbytes):
            return FileCheck(0, ((None, TOO_SHORT),), size)
        places = parse_index(layout, index.tobytes(), size)
        if not layout.compressed:
            if index.tobytes() != (index_bytes(layout) if layout.sharded else b""):
                faults.append((None, BAD_INDEX))
            stride = layout.inner_stride
            places = np.array([[k * stride, stride] for k in range(layout.inner_count)])
        if places is None:
            return FileCheck(0, ((None, BAD_INDEX),), size)
        for number, (offset, nbytes) in enumerate(places.tolist()):
            summed = read_with_checksum(handle, offset, nbytes)
            if summed is None:
                return FileCheck(0, ((number, TOO_SHORT),), size)
            crc, written = summed
            if crc != int.from_bytes(written, "little"):
                faults.append((number, "bytes differ from their checksum"))
            digest = extend(digest, np.frombuffer(written, dtype=np.uint8))
    return FileCheck(digest, tuple(faults), size)


def damage(store: Store, stage: int, block: int, layout: ArrayLayout, number: int | None, what: str) -> Damage:
    """Damage of one inner chunk (or, with number None, of a whole file), named."""
    name = store.stages[stage].name
    variable = layout.variable
    layer = None
    if number is not None and layout.sharded and variable.has("layer"):
        layer = store.layers[number // layout.token_chunks]
    return Damage(
        kind="data",
        path=str(store.storage.path(layout.key(stage, block))),
        what=what,
        stage=name,
        site=variable.name,
        layer=layer,
        rows=store.geometry.rows(block),
        name=chunk_name(layout, name, store.layers, block, number, store.entities),
    )
