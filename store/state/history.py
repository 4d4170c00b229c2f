"""The history of a store: one line for each thing that was done, and the only place that holds times."""

from __future__ import annotations

import json
import time
from typing import Any

from stratalens.store.format.checksum import crc32c
from stratalens.store.storage.base import PRIVATE, Storage

HISTORY = f"{PRIVATE}/history.jsonl"


def append_history(storage: Storage, event: str, **details: Any) -> None:
    """Append one line to the history."""
    body = json.dumps({"time": time.time(), "event": event, **details}, sort_keys=True, ensure_ascii=False)
    line = f"{body} {crc32c(body.encode()):08x}\n".encode()
    storage.append(HISTORY, line)


def is_complete_line(line: bytes) -> bool:
    """Whether a line of the history is as it was written."""
    body, space, tail = line.rpartition(b" ")
    return bool(space) and tail == b"%08x\n" % crc32c(body)


def drop_torn_lines(storage: Storage) -> bool:
    """Drop lines of the history that are torn or damaged; whether there were any."""
    lines = (storage.get(HISTORY) or b"").splitlines(keepends=True)
    good = [line for line in lines if is_complete_line(line)]
    if len(good) == len(lines):
        return False
    storage.put(HISTORY, b"".join(good))
    return True
