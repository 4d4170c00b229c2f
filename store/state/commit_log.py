"""Commit records: the small immutable objects that say which blocks exist.

One record for each (stage, block, group of variables) is put after the files it
speaks of are durable. When a stage is complete its records are compacted into
one. A record is a JSON document followed by a line with its crc32c.
"""

from __future__ import annotations

import hashlib
import json
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


def block_key(stage: int, block: int, group: int) -> str:
    """Key of the record of one block."""
    return f"{FOLDER}/{stage:04d}.{group}.{block:07d}"


def stage_key(stage: int, group: int) -> str:
    """Key of the compacted record of one stage."""
    return f"{FOLDER}/{stage:04d}.{group}"


def encode(payload: Mapping[str, Any]) -> bytes:
    """Bytes of a record."""
    body = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    return body + b"%08x\n" % crc32c(body)


def decode(raw: bytes, where: str) -> dict[str, Any]:
    """Payload of a record; raises `DamagedError` unless every byte is as it was written."""
    body, tail = raw[:-9], raw[-9:]
    if tail != b"%08x\n" % crc32c(body):
        raise DamagedError(
            f"commit record {where} differs from its checksum. `stratalens verify --repair` rebuilds it from the "
            "data it speaks of, where that is whole."
        )
    payload: dict[str, Any] = json.loads(body)
    return payload


def block_record(stage: int, name: str, block: int, group: int, files: Mapping[str, int]) -> bytes:
    """Record of one block; `files` maps each variable to the digest of its file."""
    return encode(
        {
            "stage": stage,
            "stage_name": name,
            "group": group,
            "block": block,
            "files": {k: f"{v:08x}" for k, v in files.items()},
        }
    )


def stage_record(stage: int, name: str, group: int, digests: Mapping[str, Mapping[int, int]], blocks: int) -> bytes:
    """Compacted record; `digests` maps each variable to {block: digest}."""
    columns = {
        variable: "".join(f"{found[b]:08x}" if b in found else _ABSENT for b in range(blocks))
        for variable, found in digests.items()
    }
    return encode({"stage": stage, "stage_name": name, "group": group, "blocks": blocks, "files": columns})


@dataclass(frozen=True)
class Commits:
    """What is committed: `present` is bool (group, stage, block); `key` identifies this state."""

    present: NDArray[np.bool_]
    key: str

    def complete(self, stage: int, group: int | None = None) -> bool:
        """Whether every block of a stage is there (of one group, or of all)."""
        part = self.present[:, stage] if group is None else self.present[group, stage]
        return bool(part.all())


def check(payload: Mapping[str, Any], name: str, where: str) -> None:
    """Raise unless a record speaks of what its name says."""
    parts = f"{payload.get('stage', -1):04d}.{payload.get('group')}"
    if "block" in payload:
        parts += f".{payload['block']:07d}"
    if parts != name:
        raise DamagedError(f"commit record {where} speaks of {parts}: it was renamed or copied; delete it")


def block_records(storage: Storage) -> dict[str, list[str]]:
    """Names of the records of single blocks that are there now, by the key name of their stage and group."""
    found: dict[str, list[str]] = {}
    for name in storage.list(FOLDER):
        if name.count(".") == 2 and name.replace(".", "").isdigit():
            found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def read_stage(
    storage: Storage,
    stage: int,
    group: int,
    blocks: int,
    *,
    ignore: Collection[str] = (),
    singles: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[int, int]]:
    """Digest of every committed file of one stage: {variable: {block: digest}}, without the records to ignore.

    `singles` is what `block_records` found, where it was asked for several stages at once.
    """
    columns = _columns(
        storage, stage, group, blocks, None, block_records(storage) if singles is None else singles, ignore
    )
    return {
        variable: {b: int(column[8 * b : 8 * b + 8], 16) for b in np.flatnonzero(_held(column)).tolist()}
        for variable, column in columns.items()
    }


def present_at(storage: Storage, stage: int, name: str, groups: int, blocks: int) -> NDArray[np.bool_]:
    """What is committed of one stage: bool (group, block)."""
    singles = block_records(storage)
    columns = [_columns(storage, stage, group, blocks, name, singles) for group in range(groups)]
    return np.stack([_present(found, blocks) for found in columns])


def load(storage: Storage, stages: Iterable[str], groups: int, blocks: int) -> Commits:
    """The commit state of a store, from its records."""
    names = list(stages)
    present = np.zeros((groups, len(names), blocks), dtype=bool)
    state = hashlib.sha256()
    singles = block_records(storage)
    for stage, name in enumerate(names):
        for group in range(groups):
            columns = _columns(storage, stage, group, blocks, name, singles)
            present[group, stage] = _present(columns, blocks)
            # The key covers what is committed and each file's digest, however the records are packed.
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
    stage_name: str | None,
    singles: Mapping[str, Sequence[str]],
    ignore: Collection[str] = (),
) -> dict[str, bytearray]:
    """Digests of all blocks for each variable, as a packed record has them; of records of another stage, none."""
    prefix = f"{stage:04d}.{group}"
    # Block records go away only after the packed one is in place, so it is read last, and they take precedence.
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
        if stage_name is not None and payload["stage_name"] != stage_name:
            continue
        start = 8 * int(payload.get("block", 0))
        for variable, column in payload["files"].items():
            cells = columns.setdefault(variable, bytearray(_ABSENT.encode() * blocks))
            known = column.encode()[: max(0, len(cells) - start)]
            cells[start : start + len(known)] = known
    return columns


def _held(column: bytearray) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.frombuffer(bytes(column), dtype="S8") != _ABSENT.encode()
    return found


def _present(columns: Mapping[str, bytearray], blocks: int) -> NDArray[np.bool_]:
    """Blocks of which every variable is there; those that no record speaks of are not."""
    if not columns:
        return np.zeros(blocks, dtype=bool)
    found: NDArray[np.bool_] = np.logical_and.reduce([_held(column) for column in columns.values()])
    return found
