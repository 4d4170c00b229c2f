"""Commit records: the small immutable objects that say which blocks exist.

One record for each (stage, block, group of variables) is put after the files it
speaks of are durable. When a stage is complete its records are compacted into
one. A record is a JSON document followed by a line with its crc32c.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.checksum import crc32c
from stratalens.store.errors import DamagedError
from stratalens.store.seam import PRIVATE, Storage

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


def read_stage(
    storage: Storage, stage: int, group: int, blocks: int, *, ignore: Collection[str] = ()
) -> dict[str, dict[int, int]]:
    """Digest of every committed file of one stage: {variable: {block: digest}}, without the records to ignore."""
    digests: dict[str, dict[int, int]] = {}
    prefix = f"{stage:04d}.{group}"
    singles = [n for n in storage.list(FOLDER) if n.startswith(prefix + ".") and n not in ignore]
    raw = [(n, data) for n in singles if (data := storage.get(f"{FOLDER}/{n}")) is not None]
    # Block records go away only after the compacted one is in place, so it is read last.
    if prefix not in ignore and (data := storage.get(f"{FOLDER}/{prefix}")) is not None:
        raw.insert(0, (prefix, data))
    for name, data in raw:
        where = str(storage.path(f"{FOLDER}/{name}"))
        payload = decode(data, where)
        check(payload, name, where)
        for variable, column in payload["files"].items():
            found = digests.setdefault(variable, {})
            if "block" in payload:
                found[int(payload["block"])] = int(column, 16)
                continue
            for block in range(min(blocks, len(column) // 8)):
                text = column[8 * block : 8 * block + 8]
                if text != _ABSENT:
                    found[block] = int(text, 16)
    return digests


def load(storage: Storage, stages: Iterable[str], groups: int, blocks: int) -> Commits:
    """The commit state of a store, from its records."""
    names = list(stages)
    present = np.zeros((groups, len(names), blocks), dtype=bool)
    state = hashlib.sha256()
    listing = storage.list(FOLDER)
    singles = [n for n in listing if n.count(".") == 2]
    read: dict[str, bytes] = {}
    for name in singles:
        if (data := storage.get(f"{FOLDER}/{name}")) is not None:
            read[name] = data
    for stage in range(len(names)):
        for group in range(groups):
            name = f"{stage:04d}.{group}"
            if (data := storage.get(f"{FOLDER}/{name}")) is not None:
                read[name] = data
    for name in sorted(read):
        where = str(storage.path(f"{FOLDER}/{name}"))
        payload = decode(read[name], where)
        check(payload, name, where)
        stage, group = int(payload["stage"]), int(payload["group"])
        if stage >= len(names) or group >= groups or payload["stage_name"] != names[stage]:
            continue
        if "block" in payload:
            if payload["block"] < blocks:
                present[group, stage, payload["block"]] = True
        else:
            for column in payload["files"].values():
                cells = np.frombuffer(column.encode(), dtype="S8")
                present[group, stage] |= cells[:blocks] != _ABSENT.encode()
                break
    # The key covers what is committed and each file's digest, however the records are packed.
    for stage in range(len(names)):
        for group in range(groups):
            state.update(_fingerprint(read, stage, group, blocks))
    return Commits(present, state.hexdigest())


def _fingerprint(read: Mapping[str, bytes], stage: int, group: int, blocks: int) -> bytes:
    prefix = f"{stage:04d}.{group}"
    columns: dict[str, bytearray] = {}
    for name in sorted(n for n in read if n == prefix or n.startswith(prefix + ".")):
        payload = json.loads(read[name][:-9])
        for variable, column in payload["files"].items():
            cells = columns.setdefault(variable, bytearray(_ABSENT.encode() * blocks))
            if "block" in payload:
                cells[8 * payload["block"] : 8 * payload["block"] + 8] = column.encode()
            else:
                cells[: len(column)] = column.encode()
    digest = hashlib.sha256(prefix.encode())
    for variable in sorted(columns):
        digest.update(variable.encode() + b"\0" + columns[variable])
    return digest.digest()
