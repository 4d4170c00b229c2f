"""The history of a store: one line for each event. No other file of a store contains times."""

from __future__ import annotations

import json
import time
import warnings
from contextlib import suppress
from typing import Any

from stratalens.store.errors import MismatchError, StratalensError
from stratalens.store.format.checksum import crc32c
from stratalens.store.storage.base import PRIVATE, Storage

HISTORY = f"{PRIVATE}/history.jsonl"


def append_history(storage: Storage, event: str, **details: Any) -> None:
    """Append one event to the history.

    The event has happened, so a failure is only a warning.
    """
    body = json.dumps({"time": time.time(), "event": event, **details}, sort_keys=True, ensure_ascii=False)
    line = f"{body} {crc32c(body.encode()):08x}\n".encode()
    try:
        storage.append(HISTORY, line)
    except MismatchError:  # the store is not at its path any more
        raise
    except StratalensError as error:
        warnings.warn(f"the event {event!r} was not added to the history: {error}", UserWarning, stacklevel=2)


def read_events(storage: Storage) -> list[dict[str, Any]]:
    """Return the events of the history, the oldest first, without torn and damaged lines."""
    events = []
    for line in (storage.get(HISTORY) or b"").splitlines(keepends=True):
        if is_complete_line(line):
            with suppress(ValueError, RecursionError):
                event = json.loads(line.rpartition(b" ")[0])
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    events.append(event)
    return events


def is_complete_line(line: bytes) -> bool:
    """Return whether a line of the history agrees with its checksum."""
    body, space, tail = line.rpartition(b" ")
    return bool(space) and tail == b"%08x\n" % crc32c(body)


def drop_torn_lines(storage: Storage) -> bool:
    """Remove torn and damaged lines from the history; return whether there were any."""
    lines = (storage.get(HISTORY) or b"").splitlines(keepends=True)
    complete = [line for line in lines if is_complete_line(line)]
    if len(complete) == len(lines):
        return False
    storage.put(HISTORY, b"".join(complete))
    return True
