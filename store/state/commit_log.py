"""Commit records: small immutable objects that declare which blocks exist.

The writer puts one record for each stage, block and group of variables after the files of the block are durable. When
a stage is complete, its records are compacted into one. A record is a JSON document and a line with its crc32c.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import DamagedError
from stratalens.store.format.checksum import crc32c
from stratalens.store.storage.base import PRIVATE, Storage

FOLDER = f"{PRIVATE}/commits"


_ABSENT = "--------"

_COLUMN = re.compile("(?:[0-9a-f]{8}|-{8})*+")


def block_key(stage: int, block: int, group: int) -> str:
    """Return the key of the record of one block."""
    return f"{FOLDER}/{stage:04d}.{group}.{block:07d}"


def stage_key(stage: int, group: int) -> str:
    """Return the key of the compacted record of one stage."""
    return f"{FOLDER}/{stage:04d}.{group}"


def encode(payload: Mapping[str, Any]) -> bytes:
    """Encode a record."""
    body = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    return body + b"%08x\n" % crc32c(body)


def decode(raw: bytes, where: str) -> dict[str, Any]:
    """Decode a record.

    Raises:
        DamagedError: the record differs from its checksum.
    """
    body, tail = raw[:-9], raw[-9:]
    if tail != b"%08x\n" % crc32c(body):
        raise DamagedError(
            f"commit record {where} differs from its checksum. `stratalens verify --repair` rebuilds it from the "
            "data it refers to, if that is intact."
        )
    try:
        payload = json.loads(body)
        if not _is_record(payload):
            raise ValueError("a field is missing or has another type")
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            f"commit record {where} has a correct checksum, but its content is not that of a record ({error}). "
            "`stratalens verify --repair` rebuilds it from the data it refers to, if that is intact."
        ) from error
    return dict(payload)


def _is_record(payload: Any) -> bool:
    """Return whether a document has the fields of a commit record."""
    if not isinstance(payload, dict) or not isinstance(payload.get("files"), dict):
        return False
    numbers = [payload.get("stage"), payload.get("group"), payload.get("block", 0)]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 40 for n in numbers):
        return False
    columns = payload["files"].values()
    return isinstance(payload.get("stage_name"), str) and all(
        isinstance(column, str) and _COLUMN.fullmatch(column) for column in columns
    )


def block_record(stage: int, name: str, block: int, group: int, files: Mapping[str, int]) -> bytes:
    """Encode the record of one block; `files` maps each variable to the digest of its file."""
    digests = {variable: f"{digest:08x}" for variable, digest in files.items()}
    return encode({"stage": stage, "stage_name": name, "group": group, "block": block, "files": digests})


def stage_record(stage: int, name: str, group: int, digests: Mapping[str, Mapping[int, int]], blocks: int) -> bytes:
    """Encode the compacted record of a stage; `digests` maps each variable to {block: digest}."""
    columns = {
        variable: "".join(f"{by_block[b]:08x}" if b in by_block else _ABSENT for b in range(blocks))
        for variable, by_block in digests.items()
    }
    return encode({"stage": stage, "stage_name": name, "group": group, "blocks": blocks, "files": columns})


@dataclass(frozen=True)
class Commits:
    """The committed blocks of a store.

    Args:
        present: bool array of shape (groups, stages, blocks).
        key: identifies this state.
    """

    present: NDArray[np.bool_]
    key: str

    def complete(self, stage: int, group: int | None = None) -> bool:
        """Return whether every block of a stage is committed, in one group or in all groups."""
        blocks = self.present[:, stage] if group is None else self.present[group, stage]
        return bool(blocks.all())


def check(payload: Mapping[str, Any], name: str, where: str) -> None:
    """Check that the content of a record agrees with its name.

    Raises:
        DamagedError: the record was renamed or copied.
    """
    own_name = f"{payload['stage']:04d}.{payload['group']}"
    if "block" in payload:
        own_name += f".{payload['block']:07d}"
    if own_name != name:
        raise DamagedError(f"commit record {where} refers to {own_name}: it was renamed or copied; delete it")


def block_records(storage: Storage) -> dict[str, list[str]]:
    """List the existing records of single blocks.

    Returns:
        Dict from the name of the compacted record of a stage and group to the names of its block records.
    """
    names: dict[str, list[str]] = {}
    for name in storage.list(FOLDER):
        if name.count(".") == 2 and name.replace(".", "").isdecimal():
            names.setdefault(name.rpartition(".")[0], []).append(name)
    return names


def read_stage(
    storage: Storage,
    stage: int,
    group: int,
    blocks: int,
    *,
    name: str,
    ignore: Collection[str] = (),
    singles: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[int, int]]:
    """Read the digest of every committed file of one stage.

    Args:
        storage: storage of the store.
        stage: index of the stage.
        group: number of the group of variables.
        blocks: number of row blocks.
        name: name of the stage; a record of another stage does not count.
        ignore: names of records to skip.
        singles: result of `block_records`, if the caller has it already.

    Returns:
        Dict from variable to {block: digest}.
    """
    if singles is None:
        singles = block_records(storage)
    columns = _columns(storage, stage, group, blocks, name, singles, ignore)
    return {
        variable: {b: int(column[8 * b : 8 * b + 8], 16) for b in np.flatnonzero(_committed(column)).tolist()}
        for variable, column in columns.items()
    }


def present_at(storage: Storage, stage: int, name: str, groups: int, blocks: int) -> NDArray[np.bool_]:
    """Return the committed blocks of one stage: bool array of shape (groups, blocks)."""
    singles = block_records(storage)
    columns = [_columns(storage, stage, group, blocks, name, singles) for group in range(groups)]
    return np.stack([_present(of_group, blocks) for of_group in columns])


def load(storage: Storage, stages: Iterable[str], groups: int, blocks: int) -> Commits:
    """Read the commit state of a store from its records."""
    names = list(stages)
    present = np.zeros((groups, len(names), blocks), dtype=bool)
    state = hashlib.sha256()
    singles = block_records(storage)
    for stage, name in enumerate(names):
        for group in range(groups):
            columns = _columns(storage, stage, group, blocks, name, singles)
            present[group, stage] = _present(columns, blocks)
            # The key covers the digest of each committed file and does not depend on compaction.
            digest = hashlib.sha256(f"{stage:04d}.{group}".encode())
            for variable in sorted(columns):
                digest.update(variable.encode() + b"\0" + columns[variable])
            state.update(digest.digest())
    return Commits(present, state.hexdigest())


def _columns(
    storage: Storage,
    stage: int,
    group: int,
    blocks: int,
    stage_name: str,
    singles: Mapping[str, Sequence[str]],
    ignore: Collection[str] = (),
) -> dict[str, bytearray]:
    """Read the digests of all blocks for each variable, in the form of a compacted record; skip other stages."""
    prefix = f"{stage:04d}.{group}"
    # Block records are removed only after the compacted record exists. It is therefore read last; block records win.
    read = [(name, storage.get(f"{FOLDER}/{name}")) for name in singles.get(prefix, ()) if name not in ignore]
    if prefix not in ignore:
        read.insert(0, (prefix, storage.get(f"{FOLDER}/{prefix}")))
    columns: dict[str, bytearray] = {}
    for name, data in read:
        if data is None:
            continue
        where = str(storage.path(f"{FOLDER}/{name}"))
        payload = decode(data, where)
        check(payload, name, where)
        if payload["stage_name"] != stage_name:
            continue
        start = 8 * int(payload.get("block", 0))
        for variable, column in payload["files"].items():
            cells = columns.setdefault(variable, bytearray(_ABSENT.encode() * blocks))
            known = column.encode()[: max(0, len(cells) - start)]
            cells[start : start + len(known)] = known
    return columns


def _committed(column: bytearray) -> NDArray[np.bool_]:
    committed: NDArray[np.bool_] = np.frombuffer(bytes(column), dtype="S8") != _ABSENT.encode()
    return committed


def _present(columns: Mapping[str, bytearray], blocks: int) -> NDArray[np.bool_]:
    """Return the blocks of which every variable is committed."""
    if not columns:
        return np.zeros(blocks, dtype=bool)
    present: NDArray[np.bool_] = np.logical_and.reduce([_committed(column) for column in columns.values()])
    return present
