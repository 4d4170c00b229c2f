"""Locks for object stores, which have no flock: small objects that their holder keeps young.

A holder puts one object and rewrites it from time to time. It counts as dead when its
process is known to be dead (same machine) or when it has grown older than `LEASE`
seconds by the object store's own clock. An exclusive holder owns `x.N`, created only
if nobody else has created that number; shared holders own `s.TOKEN` each. Both kinds
put first and look for the other kind afterwards, so two that exclude each other never
both go on.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from stratalens.store.errors import StratalensError

LEASE = 120.0


class Objects(Protocol):
    """What a lease needs of a storage."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none; whether it was."""

    def get(self, key: str) -> bytes | None:
        """Read an object."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects."""

    def list(self, folder: str) -> list[str]:
        """Names in a folder."""

    def modified(self, key: str) -> datetime | None:
        """When an object was written, by the storage's clock."""


def _read(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _started(pid: int) -> str:
    """When a process of this machine was started, in the kernel's ticks; "" if there is none (or no /proc)."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _place() -> list[str]:
    """What tells whether two processes can see each other's process ids."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path, an identifier
    return [socket.gethostname(), _read("/proc/sys/kernel/random/boot_id"), space]


class LeaseLock:
    """One lock, taken without waiting. `folder` is the key under which its objects lie."""

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._folder = objects, folder
        self._token = secrets.token_hex(8)
        self._own = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _content(self) -> bytes:
        pid = os.getpid()
        return json.dumps({"pid": pid, "started": _started(pid), "place": _place(), "token": self._token}).encode()

    def _age(self, key: str) -> float:
        """Seconds since an object was written, by the storage's own clock."""
        probe = f"{self._folder}-clock.{self._token}"
        self._objects.put(probe, b"")
        now, then = self._objects.modified(probe), self._objects.modified(key)
        self._objects.delete([probe])
        return (now - then).total_seconds() if now and then else LEASE + 1

    def _alive(self, name: str) -> bool:
        raw = self._objects.get(self._key(name))
        if raw is None:
            return False
        with suppress(ValueError, KeyError, TypeError):
            note: dict[str, Any] = json.loads(raw)
            if note["place"] == _place() and note["started"]:
                return bool(_started(int(note["pid"])) == note["started"])
        return self._age(self._key(name)) <= LEASE

    def _others(self, kind: str) -> list[str]:
        return [n for n in self._objects.list(self._folder) if n.startswith(kind) and self._key(n) != self._own]

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if nobody stands against it."""
        if shared:
            self._put(f"s.{self._token}")
            if not any(self._alive(n) for n in self._others("x.")):
                return True
            self.release()
            return False
        old = self._others("x.")
        if any(self._alive(n) for n in [*old, *self._others("s.")]):
            return False
        number = max((int(n[2:]) for n in old if n[2:].isdigit()), default=0) + 1
        key = self._key(f"x.{number:06d}")
        if not self._objects.create(key, self._content()):
            return False
        self._own = key
        dead = self._others("s.")
        if any(self._alive(n) for n in dead):
            self.release()
            return False
        self._objects.delete([self._key(n) for n in [*old, *dead]])
        self._keep()
        return True

    def _put(self, name: str) -> None:
        self._own = self._key(name)
        self._objects.put(self._own, self._content())
        self._keep()

    def _keep(self) -> None:
        """Keep the own object young until the lock is released."""
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._renew, args=(self._stop,), name="stratalens-lease", daemon=True
            )
            self._thread.start()

    def _let_age(self) -> None:
        """Stop keeping the own object young."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(LEASE / 6):
            with suppress(OSError, StratalensError):  # tried again long before the lease ends
                self._objects.put(self._own, self._content())

    def note(self) -> None:
        """Nothing to do: the object says who holds it."""

    def clear_note(self) -> None:
        """Nothing to do: the object goes when the lock is released."""

    def holder(self) -> str:
        """Who holds the lock, as far as its objects tell."""
        for name in self._objects.list(self._folder):
            with suppress(ValueError, KeyError, TypeError):
                note = json.loads(self._objects.get(self._key(name)) or b"")
                return f"process {note['pid']} on {note['place'][0]}"
        return "another process"

    def downgrade(self) -> None:
        """Turn an exclusive lock into a shared one."""
        old = self._own
        self._let_age()  # or it might put the old object back
        self._put(f"s.{self._token}")
        self._objects.delete([old])

    def release(self, *, unlink: bool = False) -> None:
        """Let go."""
        if not self._own:
            return
        self._let_age()
        self._objects.delete([self._own])
        self._own = ""

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return bool(self._own)
