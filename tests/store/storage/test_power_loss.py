"""Loss of power: possible states of the folder after a loss at every point of the writer's sequence."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from stratalens.store import open_store
from stratalens.store.storage.disk import DiskOperations
from stratalens.store.storage.local import LocalStorage
from support.synthetic_writer import content, never_shows_what_was_not_written, stream

Event = tuple[Any, ...]


class RecordingDisk(DiskOperations):
    """Records every change of the disk in order, without performing the fsyncs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[Event] = []
        self.gate = threading.RLock()
        self.names: dict[int, str] = {}

    def key(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path != self.root.parent else ".."

    def open(self, path: Path) -> int:
        with self.gate:
            descriptor = super().open(path)
            self.names[descriptor] = self.key(path)
            self.events.append(("create", self.key(path)))
            return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        with self.gate:
            self.events.append(("write", self.names[descriptor], bytes(data)))
            return super().write(descriptor, data)

    def fsync(self, descriptor: int, path: Path) -> None:
        with self.gate:
            self.events.append(("fsync", self.key(path)))

    def rename(self, source: Path, target: Path) -> None:
        with self.gate:
            self.events.append(("rename", self.key(source), self.key(target)))
            super().rename(source, target)

    def fsync_folder(self, path: Path) -> None:
        with self.gate:
            self.events.append(("fsync folder", self.key(path)))

    def mkdir(self, path: Path) -> None:
        with self.gate:
            self.events.append(("mkdir", self.key(path)))
            super().mkdir(path)

    def unlink(self, path: Path) -> None:
        with self.gate:
            self.events.append(("unlink", self.key(path)))
            super().unlink(path)


def parent(key: str) -> str:
    return ".." if key == "." else str(Path(key).parent)


class Disk:
    """A disk that keeps file contents only after fsync, and names only after fsync of the folder.

    A change that is not yet durable may or may not survive a loss. A file without fsync may be empty or cut short.
    """

    def __init__(self) -> None:
        self.inodes: dict[int, dict[str, bytes]] = {}
        self.names: dict[str, int | None] = {}
        self.durable: dict[str, int | None] = {}
        self.pending: list[tuple[str, int | None]] = []

    def apply(self, event: Event) -> None:
        kind, key = event[0], event[1]
        if kind in ("create", "mkdir"):
            number = len(self.inodes)
            self.inodes[number] = {"now": b"", "durable": b"", "folder": b"1" if kind == "mkdir" else b""}
            self._name(key, number)
        elif kind == "write":
            self.inodes[self._of(key)]["now"] += event[2]
        elif kind == "fsync":
            inode = self.inodes[self._of(key)]
            inode["durable"] = inode["now"]
        elif kind == "rename":
            number = self._of(key)
            self._name(event[2], number)
            self._name(key, None)
        elif kind == "unlink":
            if self.names.get(key) is not None:
                self._name(key, None)
        elif kind == "fsync folder":
            for name, number in self.pending:
                if parent(name) == key:
                    self.durable[name] = number
            self.pending = [(n, i) for n, i in self.pending if parent(n) != key]

    def _of(self, key: str) -> int:
        number = self.names[key]
        assert number is not None
        return number

    def _name(self, key: str, number: int | None) -> None:
        self.names[key] = number
        self.pending.append((key, number))

    def lose(self, target: Path, generator: random.Random) -> None:
        """Build one possible state after the loss."""
        names = dict(self.durable)
        mode = generator.choice(["none", "all", "some"])
        names.update((n, i) for n, i in self.pending if mode == "all" or (mode == "some" and generator.random() < 0.5))
        for name in sorted(names, key=lambda n: n.count("/")):
            number = names[name]
            path = target if name == "." else target / name
            if number is None or not (name == "." or path.parent.is_dir()):
                continue
            inode = self.inodes[number]
            if inode["folder"]:
                path.mkdir(exist_ok=True)
            else:
                cut = generator.choice([0, len(inode["now"]) // 2, len(inode["now"])])
                path.write_bytes(inode["durable"] if inode["durable"] else inode["now"][:cut])


@pytest.fixture(scope="module")
def events(module_path: Path) -> tuple[list[Event], dict[str, bytes]]:
    path = module_path / "whole.zarr"
    disk = RecordingDisk(path)
    stream(path, LocalStorage(path, disk))
    return disk.events, content(path)


def test_every_point(tmp_path: Path, events: tuple[list[Event], dict[str, bytes]]) -> None:
    sequence, whole = events
    generator = random.Random(0)
    disk = Disk()
    opened = 0
    committed: set[tuple[int, int]] = set()
    for number, event in enumerate(sequence):
        disk.apply(event)
        decisive = event[0] == "fsync folder" and event[1].endswith("commits")
        if decisive:
            records = [n.rsplit("/", 1)[1] for n, i in disk.durable.items() if "/commits/" in n and i is not None]
            committed |= {(int(n[:4]), int(n[7:])) for n in records if n.count(".") == 2}
        if not decisive and number % 4:
            continue
        state = tmp_path / "state.zarr"
        disk.lose(state, generator)
        if (state / "zarr.json").exists():
            opened += 1
            never_shows_what_was_not_written(state)
            recorded = open_store(state, chunks=None).recorded.values
            assert all(recorded[stage, 6 * block] for stage, block in committed)
        if number % 80 == 0:
            stream(state)
            assert content(state) == whole
        shutil.rmtree(state, ignore_errors=True)
    assert opened > 50
    assert len(committed) == 12
