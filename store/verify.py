"""Verification: every byte of a store against its checksums, in parallel, damage named.

`check_file` looks at one data file; `verify_store` at everything: the root
zarr.json and its copy, the metadata and chunks of coordinates and labels, the
commit records, every committed file, the history. What can be put right is put
right in `repair`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratalens.store import commits, labels, metadata
from stratalens.store.checksum import extend
from stratalens.store.chunks import BAD_INDEX, TOO_SHORT, read_summed
from stratalens.store.errors import DamagedError, InputError
from stratalens.store.layout import CRC_BYTES, ArrayLayout
from stratalens.store.manifest import HISTORY, Store, good_line, load
from stratalens.store.places import absent, storage_at
from stratalens.store.seam import Storage
from stratalens.store.shards import index_bytes, parse_index
from stratalens.store.slabs import MISSING, describe
from stratalens.store.threads import cores
from stratalens.store.verify_report import Damage, VerifyReport

__all__ = ["Damage", "VerifyReport", "check_file", "verify_store"]

Progress = Callable[[int, int], None]


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
            summed = read_summed(handle, offset, nbytes)
            if summed is None:
                return FileCheck(0, ((number, TOO_SHORT),), size)
            crc, written = summed
            if crc != int.from_bytes(written, "little"):
                faults.append((number, "bytes differ from their checksum"))
            digest = extend(digest, np.frombuffer(written, dtype=np.uint8))
    return FileCheck(digest, tuple(faults), size)


def open_damaged(storage: Storage, report: VerifyReport) -> Store | None:
    """The store by its root zarr.json or, where that is damaged, by the copy of it."""
    store: Store | None = None
    try:
        store = load(storage)
    except DamagedError as error:
        report.damaged.append(Damage("metadata", str(storage.path(metadata.ROOT)), str(error), name="root metadata"))
    except InputError:
        if storage.get(metadata.ROOT_COPY) is None or storage.get(metadata.ROOT) is not None:
            raise
        lost = absent(storage)
        report.damaged.append(Damage("metadata", str(storage.path(metadata.ROOT)), str(lost), name="root metadata"))
    try:
        copy = load(storage, copy=True) if storage.get(metadata.ROOT_COPY) is not None else None
    except (DamagedError, InputError):
        copy = None
    if copy is None or (store is not None and copy.checksum != store.checksum):
        where = str(storage.path(metadata.ROOT_COPY))
        report.damaged.append(Damage("metadata", where, "missing, damaged or behind", name="copy of the root metadata"))
    return store or copy


def verify_store(
    path: str | os.PathLike[str], *, repair: bool = False, progress: Progress | None = None, workers: int | None = None
) -> VerifyReport:
    """Check everything in a store.

    Parameters
    ----------
    path
        Folder of the store.
    repair
        Also mend what can be mended: metadata from its copy, coordinates and
        commit records from what they speak of; damaged blocks are marked as
        missing, so that a resume records just those again.
    progress
        Called with (bytes read, bytes in all).
    workers
        Threads; default one for each core.

    Returns
    -------
    VerifyReport
        With `repair`, what is still damaged afterwards, and what was mended.

    Raises
    ------
    InputError
        There is no store at `path`.
    StoreBusyError
        With `repair`, while another process writes.
    """
    storage = storage_at(path)
    report = VerifyReport()
    store = open_damaged(storage, report)
    if store is not None:
        _check_documents(store, report)
        _check_labels(store, report)
        _check_history(storage, report)
        damaged_records = check_records(store, report)
        _check_data(store, report, damaged_records, progress, workers or cores())
    if repair and not report.ok:
        from stratalens.store.repair import mend

        done = mend(storage, report)
        report = verify_store(path, progress=progress, workers=workers)
        report.repaired = done
    return report


def _check_documents(store: Store, report: VerifyReport) -> None:
    storage = store.storage
    for name, document in store.arrays().items():
        key = f"{name}/zarr.json"
        if storage.get(key) != metadata.canonical(document):
            what = "differs from what the root metadata says"
            report.damaged.append(
                Damage("metadata", str(storage.path(key)), what, site=name, name=f"metadata of {name}")
            )
    for name, (document, files) in store.coordinates().items():
        for number, wanted in enumerate(files):
            key = f"{name}/c.{number}"
            held = storage.get(key)
            if held == wanted:
                continue
            try:  # another version of zstd may pack the same values into other bytes
                kind = document["data_type"]
                where = str(storage.path(key))
                same = labels.decode_chunk(held, kind, where).tolist() == labels.decode_chunk(wanted, kind, "").tolist()
            except DamagedError:
                same = False
            if not same:
                report.damaged.append(
                    Damage(
                        "coordinate",
                        str(storage.path(key)),
                        "differs from the root metadata",
                        name=f"coordinate {name}",
                    )
                )


def _check_labels(store: Store, report: VerifyReport) -> None:
    columns: dict[str, Any] = {}
    chunk = store.label_chunk
    for name, kind in store.label_types.items():
        parts = []
        for number in range(-(-store.entities // chunk)):
            key = store.label_key(name, number)
            rows = (number * chunk, min((number + 1) * chunk, store.entities))
            where = f"label column {name!r}, entity rows {rows[0]} to {rows[1] - 1}"
            try:
                parts.append(labels.decode_chunk(store.storage.get(key), kind, where)[: rows[1] - rows[0]])
            except DamagedError as error:
                path = str(store.storage.path(key))
                report.damaged.append(Damage("label", path, str(error), site=name, rows=rows, name=where))
        if parts:
            columns[name] = np.concatenate(parts)
    whole = all(len(columns.get(name, ())) == store.entities for name in store.label_types)
    if whole and labels.digest(columns) != store.label_digest:
        what = "they differ from the digest that the root metadata holds: files of another store were put here"
        report.damaged.append(Damage("label", store.path, what, name="label columns"))


def _check_history(storage: Storage, report: VerifyReport) -> None:
    for number, line in enumerate((storage.get(HISTORY) or b"").splitlines(keepends=True), 1):
        if not good_line(line):
            where = str(storage.path(HISTORY))
            what = "differs from its checksum"
            report.damaged.append(Damage("history", where, what, name=f"line {number} of the history"))


def check_records(store: Store, report: VerifyReport) -> set[str]:
    """Names of the commit records that are damaged."""
    storage, bad = store.storage, set()
    for name in storage.list(commits.FOLDER):
        where = str(storage.path(f"{commits.FOLDER}/{name}"))
        try:
            commits.check(commits.decode(storage.get(f"{commits.FOLDER}/{name}") or b"", where), name, where)
        except DamagedError as error:
            bad.add(name)
            report.damaged.append(Damage("commit", where, str(error), name=f"commit record {name}"))
    return bad


def _check_data(store: Store, report: VerifyReport, bad: set[str], progress: Progress | None, workers: int) -> None:
    geometry = store.geometry
    jobs: list[tuple[int, int, ArrayLayout, int | None]] = []
    for stage, entry in enumerate(store.stages):
        for group, variables in enumerate(store.groups):
            digests = commits.read_stage(store.storage, stage, group, geometry.blocks, ignore=bad)
            absent_blocks = 0
            for block in range(geometry.blocks):
                if all(block in digests.get(v.name, {}) for v in variables):
                    report.blocks += 1
                    jobs += [(stage, block, store.layouts[v.name], digests[v.name][block]) for v in variables]
                    continue
                absent_blocks += 1
                low, high = geometry.rows(block)
                names = ", ".join(v.name for v in variables if v.attrs.get("kind") == "site") or variables[0].name
                report.missing.append(f"stage {entry.name!r}, {names}, entity rows {low} to {high - 1}")
    sizes = {name: store.storage.sizes(name) for name, layout in store.layouts.items() if layout.compressed}
    total = 0
    for stage, block, layout, _ in jobs:
        held = sizes.get(layout.variable.name)
        total += layout.file_nbytes if held is None else held.get(layout.file_name(stage, block), 0)
    lock = threading.Lock()

    def look(job: tuple[int, int, ArrayLayout, int | None]) -> list[Damage]:
        stage, block, layout, digest = job
        key = layout.key(stage, block)
        found = check_file(store.storage, layout, key)
        faults = list(found.faults)
        if not faults and found.digest != digest:
            faults.append((None, "the file is whole but not the one that was committed"))
        with lock:
            report.nbytes += found.nbytes
            report.files += 1
            if progress is not None:
                progress(report.nbytes, total)
        return [damage(store, stage, block, layout, number, what) for number, what in faults]

    with ThreadPoolExecutor(workers, thread_name_prefix="stratalens-verify") as pool:
        for faults in pool.map(look, jobs):
            report.damaged += faults


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
        name=describe(layout, name, store.layers, block, number, store.entities),
    )
