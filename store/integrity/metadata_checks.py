"""Checks of metadata, coordinates, labels, commit records and the history.

Every document is compared with the root. While stages, variables or labels change, the writer updates documents before
the root, as the copy of the root describes. A document that matches the copy is therefore not damaged, even if the
writer was interrupted: everything that the root refers to exists. The report names the unfinished change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stratalens.store.errors import DamagedError, InputError, join_names
from stratalens.store.format import label_codec as labels
from stratalens.store.format import metadata
from stratalens.store.format.metadata import Json
from stratalens.store.integrity.report import Damage, VerifyReport
from stratalens.store.state import commit_log as commits
from stratalens.store.state.history import HISTORY, is_complete_line, read_events
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.missing_rows import lost_records
from stratalens.store.state.store_files import check_row_count, has_private_folder, no_private_folder_error
from stratalens.store.storage.base import PRIVATE, Storage
from stratalens.store.storage.resolve import no_store_error

_UNFINISHED = (
    "a change of {} has not finished (it was interrupted, or is in progress): the store is in the valid state before "
    "the change. The next writer undoes the unfinished change; `stratalens verify --repair` undoes it now."
)

_DIFFERS = "differs from the root metadata"
_HISTORY_ATTEMPTS = 20  # while labels are changing


_ATTEMPTS = 3  # to read metadata that a writer may be replacing at this moment


@dataclass(frozen=True)
class Roots:
    """The root metadata, and its copy if a change has updated only the copy."""

    store: Store
    ahead: Store | None = None

    @cached_property
    def _documents(self) -> list[dict[str, Json]]:
        return [state.arrays() for state in (self.store, self.ahead) if state is not None]

    def allows(self, name: str, raw: bytes | None) -> bool:
        """Return whether the zarr.json of an array matches the root or its copy."""
        return any(name in known and raw == metadata.canonical(known[name]) for known in self._documents)

    def is_behind(self, record: str) -> bool:
        """Return whether only the copy has the stage and group of a commit record."""
        stage, group = (int(number) if number.isdecimal() else -1 for number in [*record.split("."), ""][:2])

        def has(store: Store) -> bool:
            return 0 <= stage < len(store.stages) and 0 <= group < len(store.groups)

        return self.ahead is not None and has(self.ahead) and not has(self.store)


def read_roots(storage: Storage) -> tuple[Roots | None, list[Damage]]:
    """Read the root zarr.json, or its copy if the root is damaged.

    Returns:
        The roots, None if neither can be read; and the damage of both.
    """
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
    """Return whether a change of the store wrote the copy of the root.

    The label files that the copy refers to must exist.
    """
    if not copy.extends(store, labels_too=True):
        return False
    if copy.label_digest == store.label_digest:
        return True
    report = VerifyReport()
    check_labels(copy, report)
    return report.ok


def open_roots(storage: Storage, report: VerifyReport) -> Roots | None:
    """Read the roots and put their damage into the report.

    Repeat the read if a writer may be replacing them.
    """
    for _ in range(_ATTEMPTS):
        roots, damaged = read_roots(storage)
        if roots is None or (roots.ahead is None and not damaged):
            break
    report.damaged += damaged
    if roots is not None:
        try:
            check_row_count(roots.store)
        except DamagedError as error:  # nothing else can be checked: every count depends on the rows
            report.add_damage("metadata", storage.path(metadata.ROOT), str(error), "root metadata")
            return None
    if roots is not None and not has_private_folder(storage):
        what = str(no_private_folder_error(storage))
        report.add_damage("commit", storage.path(PRIVATE), what, "commit records")
        return roots
    if roots is not None and roots.ahead is not None:
        report.unfinished.append(_UNFINISHED.format(_name_changes(roots.store, roots.ahead)))
    return roots


def _name_changes(old: Store, new: Store) -> str:
    """Name the difference of two roots for a message."""
    changes = {
        "stages": new.stages != old.stages,
        "variables": new.groups != old.groups,
        "labels": new.label_digest != old.label_digest,
    }
    return " and ".join(name for name, is_changed in changes.items() if is_changed) or "the quantization errors"


def check_documents(roots: Roots, report: VerifyReport) -> None:
    """Compare the metadata of arrays, and the coordinates, with the root."""
    storage = roots.store.storage
    for name in roots.store.arrays():
        key = f"{name}/zarr.json"
        for attempt in range(_ATTEMPTS):
            if roots.allows(name, storage.get(key)):
                break
            if attempt + 1 < _ATTEMPTS:
                roots = read_roots(storage)[0] or roots  # a writer may have changed them
        else:
            report.add_damage("metadata", storage.path(key), _DIFFERS, f"metadata of {name}", site=name)
    for name, coordinate in roots.store.coordinates().items():
        for number, expected in coordinate.files():
            key = f"{name}/c.{number}"
            path = str(storage.path(key))
            if not _same_values(storage.get(key), expected, coordinate.data_type, path):
                report.add_damage("coordinate", path, _DIFFERS, f"coordinate {name}")


def _same_values(raw: bytes | None, expected: bytes, data_type: str, where: str) -> bool:
    """Return whether two chunks have equal values.

    Other versions of zstd compress equal values to other bytes.
    """
    if raw == expected:
        return True
    try:
        values = labels.decode_chunk(raw, data_type, where)
    except DamagedError:
        return False
    return bool(values.tolist() == labels.decode_chunk(expected, data_type, "").tolist())


def check_labels(store: Store, report: VerifyReport) -> None:
    """Compare label files with their checksums, and all labels with the root."""
    columns: dict[str, Any] = {}
    chunk = store.label_chunk
    for name, data_type in store.label_types.items():
        chunks = []
        for number in range(-(-store.entities // chunk)):
            key = store.label_key(name, number)
            rows = (number * chunk, min((number + 1) * chunk, store.entities))
            where = f"label column {name!r}, entity rows {rows[0]} to {rows[1] - 1}"
            try:
                chunks.append(labels.decode_chunk(store.storage.get(key), data_type, where, chunk)[: rows[1] - rows[0]])
            except DamagedError as error:
                what = str(error).removeprefix(f"{where} ")  # the name of the damage repeats it
                report.add_damage("label", store.storage.path(key), what, where, site=name, rows=rows)
        if chunks:
            columns[name] = np.concatenate(chunks)
    complete = all(len(columns.get(name, ())) == store.entities for name in store.label_types)
    if complete and labels.digest(columns) != store.label_digest:
        what = "they differ from the digest in the root metadata: files of another store were put here"
        report.add_damage("label", store.path, what, "label columns")


def check_history(roots: Roots, report: VerifyReport) -> None:
    """Compare every line of the history with its checksum, and the store with its events.

    An event is written after the change that it names is durable. A store without the change was replaced by an
    older copy of itself.
    """
    storage = roots.store.storage
    raw = storage.get(HISTORY)
    if raw is None:
        if has_private_folder(storage):
            report.add_damage("history", storage.path(HISTORY), "the file is missing", "the history")
        return
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        if not is_complete_line(line):
            name = f"line {number} of the history"
            report.add_damage("history", storage.path(HISTORY), "differs from its checksum", name)
    if older := _lost_changes(storage):
        report.add_damage(
            "metadata",
            storage.path(metadata.ROOT),
            f"is older than the history, which names {join_names(older, 5)}: an older copy of the metadata was put "
            "here. Restore the newer one, or record and label again",
            "root metadata",
        )


def _lost_changes(storage: Storage) -> list[str]:
    """Name changes of the history that the root and its copy do not have."""
    lost: list[str] = []
    for _ in range(_HISTORY_ATTEMPTS):
        events = read_events(storage)  # before the root, so that the root has the changes of a writer at work
        roots, _damage = read_roots(storage)
        lost = [] if roots is None else _missing_events(roots.ahead or roots.store, events)
        if not lost:
            break
    return lost


def _missing_events(store: Store, events: list[dict[str, Any]]) -> list[str]:
    lost: list[str] = []
    digest = ""
    for event in events:
        if event["event"] == "stage added" and store.stage_index(str(event.get("stage"))) is None:
            lost.append(f"stage {event.get('stage')!r}")
        elif event["event"] == "variables added":
            names = event.get("names")
            lost += [f"variable {name!r}" for name in names or () if name not in store.layouts]
        elif event["event"] == "change reverted":
            reverted = [f"stage {name!r}" for name in event.get("stages") or ()]
            reverted += [f"variable {name!r}" for name in event.get("names") or ()]
            lost = [name for name in lost if name not in reverted]
        elif event["event"] in ("labels change", "labels changed"):
            digest = str(event.get("digest", "")) if event["event"] == "labels changed" else ""
    return [*lost, "other labels"] if digest and digest != store.label_digest else lost


def check_lost_records(store: Store, report: VerifyReport) -> None:
    """Report blocks whose commit record was deleted: the history calls their stage complete, and their files exist."""
    if report.damaged and not has_private_folder(store.storage):
        return
    try:
        lost = lost_records(store)
    except DamagedError:  # `check_records` names the damaged record
        return
    groups: dict[tuple[int, int], list[int]] = {}
    for stage, group, block in lost:
        groups.setdefault((stage, group), []).append(block)
    for (stage, group), blocks in groups.items():
        key = commits.stage_key(stage, group)
        what = f"the record of {len(blocks)} of {store.geometry.blocks} blocks is missing, although the data exists"
        name = f"commit record of stage {store.stages[stage].name!r}"
        report.add_damage("commit", store.storage.path(key), what, name, stage=store.stages[stage].name)


def check_records(roots: Roots, report: VerifyReport) -> set[str]:
    """Return the names of damaged commit records.

    A record that refers to a stage or group that only the copy of the root has counts as damaged.
    """
    storage, damaged = roots.store.storage, set()
    for name in storage.list(commits.FOLDER):
        where = str(storage.path(f"{commits.FOLDER}/{name}"))
        try:
            data = storage.get(f"{commits.FOLDER}/{name}")
            if data is None:  # a writer has merged it into another record
                continue
            commits.check(commits.decode(data, where), name, where)
            if roots.is_behind(name):
                roots = read_roots(storage)[0] or roots  # a writer may have changed them
            if roots.is_behind(name):
                raise DamagedError(
                    f"{where} was committed to a stage or variables that are in the copy of the root metadata alone: "
                    "zarr.json is older than the record. `stratalens verify --repair` puts back the copy."
                )
        except DamagedError as error:
            damaged.add(name)
            what = str(error).removeprefix(f"commit record {where} ")
            report.add_damage("commit", where, what, f"commit record {name}")
    return damaged
