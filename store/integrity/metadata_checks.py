"""Verification of what is not data: root metadata, documents of arrays, coordinates, labels, commit records, history.

What the root says is compared with every document. While stages, variables or labels change,
documents run ahead of it, as its copy says (`publishing`): a document that is as the copy has it is
no damage, whether the writer is at work or was interrupted, since everything that the root speaks
of is there. That a change is unfinished is said in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stratalens.store.errors import DamagedError, InputError
from stratalens.store.format import label_codec as labels
from stratalens.store.format import metadata
from stratalens.store.format.metadata import Json
from stratalens.store.integrity.report import Damage, VerifyReport
from stratalens.store.state import commit_log as commits
from stratalens.store.state.history import HISTORY, is_complete_line
from stratalens.store.state.manifest import Store, load
from stratalens.store.storage.base import Storage
from stratalens.store.storage.resolve import no_store_error

_UNFINISHED = (
    "a change of {} has not finished (it was interrupted, or is going on): the store is as it was before, all of it "
    "valid. The next writer takes back what is ahead, `stratalens verify --repair` does it now."
)


_LOOKS = 3  # at metadata that a writer may be replacing at this moment


@dataclass(frozen=True)
class Roots:
    """The root metadata, and its copy where that is ahead of it."""

    store: Store
    ahead: Store | None = None

    @cached_property
    def _documents(self) -> list[dict[str, Json]]:
        return [state.arrays() for state in (self.store, self.ahead) if state is not None]

    def allows(self, name: str, raw: bytes | None) -> bool:
        """Whether the zarr.json of an array is one that may lie there."""
        return any(name in found and raw == metadata.canonical(found[name]) for found in self._documents)

    def is_behind(self, record: str) -> bool:
        """Whether a commit record speaks of a stage or variables that the copy has and the root has not."""
        stage, group = (int(part) if part.isdigit() else -1 for part in [*record.split("."), ""][:2])

        def has(store: Store) -> bool:
            return 0 <= stage < len(store.stages) and 0 <= group < len(store.groups)

        return self.ahead is not None and has(self.ahead) and not has(self.store)


def read_roots(storage: Storage) -> tuple[Roots | None, list[Damage]]:
    """The store by its root zarr.json or, where that is damaged, by the copy of it; and what is wrong with them."""
    store: Store | None = None
    damaged = []
    try:
        store = load(storage)
    except DamagedError as error:
        damaged.append(Damage("metadata", str(storage.path(metadata.ROOT)), str(error), name="root metadata"))
    except InputError:
        if storage.get(metadata.ROOT_COPY) is None or storage.get(metadata.ROOT) is not None:
            raise
        lost = no_store_error(storage)
        damaged.append(Damage("metadata", str(storage.path(metadata.ROOT)), str(lost), name="root metadata"))
    try:
        copy = load(storage, copy=True) if storage.get(metadata.ROOT_COPY) is not None else None
    except (DamagedError, InputError):
        copy = None
    if store is None:
        return (Roots(copy) if copy is not None else None), damaged
    if copy is not None and copy.checksum == store.checksum:
        return Roots(store), damaged
    if copy is not None and is_ahead(copy, store):
        return Roots(store, copy), damaged
    where = str(storage.path(metadata.ROOT_COPY))
    damaged.append(Damage("metadata", where, "missing, damaged or behind", name="copy of the root metadata"))
    return Roots(store), damaged


def is_ahead(copy: Store, store: Store) -> bool:
    """Whether a copy of the root is what a change of the store was going to make of it: nothing of it is lacking."""
    if not copy.extends(store, labels_too=True):
        return False
    if copy.label_digest == store.label_digest:
        return True
    found = VerifyReport()
    check_labels(copy, found)
    return found.ok


def open_roots(storage: Storage, report: VerifyReport) -> Roots | None:
    """The roots, with what is wrong put into the report; looked at again where a writer may be replacing them."""
    for _ in range(_LOOKS):
        roots, damaged = read_roots(storage)
        if roots is None or (roots.ahead is None and not damaged):
            break
    report.damaged += damaged
    if roots is not None and roots.ahead is not None:
        report.unfinished.append(_UNFINISHED.format(_changed(roots.store, roots.ahead)))
    return roots


def _changed(old: Store, new: Store) -> str:
    found = []
    if new.stages != old.stages:
        found.append("stages")
    if new.groups != old.groups:
        found.append("variables")
    if new.label_digest != old.label_digest:
        found.append("labels")
    return " and ".join(found) or "the measured errors"


def check_documents(roots: Roots, report: VerifyReport) -> None:
    """Metadata of arrays, and coordinates, by what the root says."""
    storage = roots.store.storage
    for name in roots.store.arrays():
        key = f"{name}/zarr.json"
        for look in range(_LOOKS):
            if roots.allows(name, storage.get(key)):
                break
            again = read_roots(storage)[0] if look + 1 < _LOOKS else None  # a writer may have gone on
            roots = again or roots
        else:
            what = "differs from what the root metadata says"
            report.damaged.append(
                Damage("metadata", str(storage.path(key)), what, site=name, name=f"metadata of {name}")
            )
    for name, coordinate in roots.store.coordinates().items():
        for number, wanted in coordinate.files():
            key = f"{name}/c.{number}"
            held = storage.get(key)
            if held == wanted:
                continue
            try:  # another version of zstd may pack the same values into other bytes
                kind = coordinate.data_type
                where = str(storage.path(key))
                same = labels.decode_chunk(held, kind, where).tolist() == labels.decode_chunk(wanted, kind, "").tolist()
            except DamagedError:
                same = False
            if not same:
                what = "differs from the root metadata"
                report.damaged.append(Damage("coordinate", str(storage.path(key)), what, name=f"coordinate {name}"))


def check_labels(store: Store, report: VerifyReport) -> None:
    """Label files by their checksums, and all of them by the digest in the root."""
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
                what = str(error).removeprefix(f"{where} ")  # said by the name of the damage
                report.damaged.append(Damage("label", path, what, site=name, rows=rows, name=where))
        if parts:
            columns[name] = np.concatenate(parts)
    whole = all(len(columns.get(name, ())) == store.entities for name in store.label_types)
    if whole and labels.digest(columns) != store.label_digest:
        what = "they differ from the digest that the root metadata holds: files of another store were put here"
        report.damaged.append(Damage("label", store.path, what, name="label columns"))


def check_history(storage: Storage, report: VerifyReport) -> None:
    """Lines of the history by their checksums."""
    for number, line in enumerate((storage.get(HISTORY) or b"").splitlines(keepends=True), 1):
        if not is_complete_line(line):
            where = str(storage.path(HISTORY))
            what = "differs from its checksum"
            report.damaged.append(Damage("history", where, what, name=f"line {number} of the history"))


def check_records(roots: Roots, report: VerifyReport) -> set[str]:
    """Names of the commit records that are damaged, or speak of what the root does not have."""
    storage, bad = roots.store.storage, set()
    for name in storage.list(commits.FOLDER):
        where = str(storage.path(f"{commits.FOLDER}/{name}"))
        try:
            data = storage.get(f"{commits.FOLDER}/{name}")
            if data is None:  # packed meanwhile
                continue
            commits.check(commits.decode(data, where), name, where)
            if roots.is_behind(name):
                roots = read_roots(storage)[0] or roots  # a writer may have gone on
            if roots.is_behind(name):
                raise DamagedError(
                    f"{where} was committed to a stage or variables that are in the copy of the root metadata alone: "
                    "zarr.json is older than the record. `stratalens verify --repair` puts back the copy."
                )
        except DamagedError as error:
            bad.add(name)
            what = str(error).removeprefix(f"commit record {where} ")
            report.damaged.append(Damage("commit", where, what, name=f"commit record {name}"))
    return bad
