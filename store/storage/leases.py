"""Locks on an object store, which has no flock: small objects that their holder renews.

Concurrent writing to object stores is experimental. Use one writer at a time where the data matters.

A holder puts one object and rewrites it regularly. The holder counts as dead if its process has ended on the same
machine, or if the object is older than `LEASE` seconds by the clock of the object store. An exclusive holder owns
`x.N`, which only one process can create; each shared holder owns `s.TOKEN`. Both kinds put their object first and look
for the other kind afterwards, so two holders that exclude each other never both continue.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from stratalens.store.errors import MismatchError, StratalensError

LEASE = 120.0  # seconds without renewal after which a holder counts as dead


class Objects(Protocol):
    """The operations of a storage that a lease needs."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless the key exists; return whether it was written."""

    def get(self, key: str) -> bytes | None:
        """Read an object."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects."""

    def list(self, folder: str) -> list[str]:
        """List the names in a folder."""

    def modified(self, key: str) -> datetime | None:
        """Return when an object was written, by the clock of the object store."""


def clocks() -> tuple[float, float]:
    """Return the time by the clock on the wall and by one that counts suspension where the system has it, in seconds.

    Each may stand still or jump; a lease is over as soon as one of them says so.
    """
    return time.time(), time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _read(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _started(pid: int) -> str:
    """Return when a process of this machine started, in kernel ticks; "" without such a process or /proc."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _machine() -> list[str]:
    """Identify the machine and its process namespace: equal for processes that see each other's process ids."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - an identifier, not a path
    return [socket.gethostname(), _read("/proc/sys/kernel/random/boot_id"), namespace]


class LeaseLock:
    """One lock; nothing here waits for another holder.

    Args:
        objects: the storage.
        folder: key of the folder of the lock's objects.
    """

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._folder = objects, folder
        self._token = secrets.token_hex(8)
        self._own = ""
        self._renewed = (0.0, 0.0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _content(self) -> bytes:
        pid = os.getpid()
        return json.dumps({"pid": pid, "started": _started(pid), "place": _machine(), "token": self._token}).encode()

    def _age(self, key: str) -> float:
        """Measure the age of an object in seconds, by the clock of the object store."""
        clock = f"{self._folder}-clock.{self._token}"
        self._objects.put(clock, b"")
        now, then = self._objects.modified(clock), self._objects.modified(key)
        self._objects.delete([clock])
        return (now - then).total_seconds() if now and then else LEASE + 1

    def _alive(self, name: str) -> bool:
        raw = self._objects.get(self._key(name))
        if raw is None:
            return False
        with suppress(ValueError, KeyError, TypeError):
            note: dict[str, Any] = json.loads(raw)
            if note["place"] == _machine() and note["started"]:
                return bool(_started(int(note["pid"])) == note["started"])
        return self._age(self._key(name)) <= LEASE

    def _others(self, kind: str) -> list[str]:
        return [n for n in self._objects.list(self._folder) if n.startswith(kind) and self._key(n) != self._own]

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock without waiting; return whether that succeeded."""
        if shared:
            self._put(f"s.{self._token}")
            if not any(self._alive(n) for n in self._others("x.")):
                return True
            self.release()
            return False
        old = self._others("x.")
        if any(self._alive(n) for n in [*old, *self._others("s.")]):
            return False
        number = max((int(n[2:]) for n in old if n[2:].isdecimal()), default=0) + 1
        key = self._key(f"x.{number:06d}")
        started = clocks()
        if not self._objects.create(key, self._content()):
            return False
        self._own, self._renewed = key, started
        dead = self._others("s.")
        if any(self._alive(n) for n in dead):
            self.release()
            return False
        self._objects.delete([self._key(n) for n in [*old, *dead]])
        self._start_renewal()
        return True

    def _put(self, name: str) -> None:
        started = clocks()
        self._own = self._key(name)
        self._objects.put(self._own, self._content())
        self._renewed = started
        self._start_renewal()

    def _start_renewal(self) -> None:
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._renew, args=(self._stop,), name="stratalens-lease", daemon=True
            )
            self._thread.start()

    def _stop_renewal(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(LEASE / 6):
            with suppress(OSError, StratalensError):  # the next attempt comes long before the lease ends
                self.renew()

    def renew(self) -> None:
        """Put the object of this holder again, unless the lease is over or another holder has taken the lock.

        A machine that was suspended must not take back what its successor owns.
        """
        if not self._is_valid():
            return
        started = clocks()
        self._objects.put(self._own, self._content())
        self._renewed = started

    def _is_valid(self) -> bool:
        """Return whether the lease is not over and the object of this holder is the one that counts."""
        if max(now - then for now, then in zip(clocks(), self._renewed, strict=True)) > LEASE:
            return False
        own = self._own.rpartition("/")[2]
        names = self._objects.list(self._folder)
        if own not in names:
            return False
        return own[:2] != "x." or not any(name.startswith("x.") and name > own for name in names)

    def check(self) -> None:
        """Raise if the lock was lost.

        Raises:
            MismatchError: the lease is over, or another holder has taken the lock.
        """
        if not self._is_valid():
            raise MismatchError(
                f"the lease {self._own} of this process is over or was taken by another process: the process stood "
                f"still for more than {LEASE:.0f} s, for instance on a suspended machine. Nothing more was written. "
                "Committed data is safe; run the same call again to resume"
            )

    def note(self) -> None:
        """Do nothing: the object itself names its holder."""

    def clear_note(self) -> None:
        """Do nothing: the object is removed when the lock is released."""

    def holder(self) -> str:
        """Describe the holder of the lock from its objects."""
        for name in self._objects.list(self._folder):
            with suppress(ValueError, KeyError, TypeError):
                note = json.loads(self._objects.get(self._key(name)) or b"")
                return f"process {note['pid']} on {note['place'][0]}"
        return "another process"

    def downgrade(self) -> None:
        """Turn an exclusive lock into a shared one."""
        old = self._own
        self._stop_renewal()  # or it could put the old object again
        self._put(f"s.{self._token}")
        self._objects.delete([old])

    def release(self, *, unlink: bool = False) -> None:
        """Release the lock."""
        if not self._own:
            return
        self._stop_renewal()
        self._objects.delete([self._own])
        self._own = ""

    @property
    def acquired(self) -> bool:
        """Whether this object holds the lock."""
        return bool(self._own)
