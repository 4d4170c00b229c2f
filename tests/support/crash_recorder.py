"""Records every change of a folder that Python makes: open, write, truncate, fsync, rename, unlink, mkdir, link.

The recorder replaces functions of `os` and the built-in `open` while it is on. It sees the whole product, also changes
that do not go through the store's storage.
"""

from __future__ import annotations

import builtins
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Operation = tuple[Any, ...]


class Descriptor:
    """An open file or folder inside the recorded folder."""

    def __init__(self, number: int, key: str, folder: bool, append: bool) -> None:
        self.number, self.key, self.folder, self.append, self.offset = number, key, folder, append, 0


class Recorder:
    """The changes below a folder, in the order in which they took effect.

    Attributes:
        log: one tuple for each change: its kind, then
            ("open", number, key, create, truncate), ("write", number, offset or -1 for the end, bytes),
            ("truncate", number, size), ("fsync", number), ("fsync_folder", key), ("rename", key, key),
            ("link", key, key), ("unlink", key), ("mkdir", key), ("ack", name of a call that has returned).

    Args:
        root: the folder.
        unseen: whether a library changes the folder without Python, as object stores on a disk do: it writes files
            under temporary names, renames them, and never calls fsync. Its changes are taken from the tree before each
            change that Python makes, in the order of the times of the files.
    """

    def __init__(self, root: str, unseen: bool = False) -> None:
        self.root = os.path.realpath(root)
        self._unseen = unseen
        self._tree: dict[str, bytes | None] = {}
        self.log: list[Operation] = []
        self._gate = threading.RLock()
        self._open: dict[int, Descriptor] = {}
        self._count = 0

    def ack(self, what: str) -> None:
        """Note that a call has returned, so that a later crash must not undo it."""
        with self._gate:
            self._catch_up()
            self.log.append(("ack", what))

    def _catch_up(self) -> None:
        """Log what the tree has that no change in the log has put there."""
        if not self._unseen:
            return
        times, tree = self._scan()
        self.log += [("mkdir", key) for key in sorted(tree) if tree[key] is None and key not in self._tree]
        for key in sorted(times, key=lambda key: times[key]):
            content = tree[key]
            if content is not None and self._tree.get(key) != content:
                self._count += 1
                half = len(content) // 2
                self.log += [
                    ("open", self._count, f"{key}#1", True, True),
                    ("write", self._count, 0, content[:half]),
                    ("write", self._count, half, content[half:]),
                    ("rename", f"{key}#1", key),
                ]
        self._tree = tree

    def _scan(self) -> tuple[dict[str, int], dict[str, bytes | None]]:
        times: dict[str, int] = {}
        tree: dict[str, bytes | None] = {}
        for folder, folders, files in os.walk(self.root):
            tree |= {self._name(folder, name): None for name in folders}
            for name in files:
                path = f"{folder}/{name}"
                number = self._real_open(path, os.O_RDONLY)
                with io.FileIO(number) as file:
                    tree[self._name(folder, name)] = file.readall()
                    times[self._name(folder, name)] = os.fstat(number).st_ctime_ns
        return times, tree

    def _name(self, folder: str, name: str) -> str:
        return f"{folder}/{name}"[len(self.root) + 1 :]

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Enclose a change that Python makes."""
        with self._gate:
            self._catch_up()
            yield
            if self._unseen:
                self._tree = self._scan()[1]

    def _key(self, path: Any) -> str | None:
        """Return a path relative to the folder, or None if it is elsewhere."""
        if isinstance(path, int):
            return None
        text = os.path.abspath(os.fsdecode(os.fspath(path)))  # noqa: PTH100 - links stay
        if text == self.root:
            return ""
        return text[len(self.root) + 1 :] if text.startswith(self.root + "/") else None

    @contextmanager
    def on(self) -> Iterator[Recorder]:
        """Record while the block runs."""
        names = "open close write pwrite fsync fdatasync ftruncate rename replace unlink remove mkdir rmdir link"
        real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in names.split()}
        real_open = builtins.open
        self._real_open = real["open"]
        if self._unseen:
            self._tree = self._scan()[1]
        patched = self._replacements(real, real_open)
        try:
            for name, function in patched.items():
                if name != "builtin_open":
                    setattr(os, name, function)
            builtins.open = io.open = patched["builtin_open"]
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)
            builtins.open = io.open = real_open
            self._catch_up()

    def _replacements(self, real: dict[str, Any], real_open: Callable[..., Any]) -> dict[str, Any]:
        def os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            key = self._key(path) if dir_fd is None else None
            if key is None:
                return int(real["open"](path, flags, mode, dir_fd=dir_fd))
            with self._change():
                number = int(real["open"](path, flags, mode))
                self._count += 1
                is_folder = stat.S_ISDIR(os.fstat(number).st_mode)
                self._open[number] = Descriptor(self._count, key, is_folder, bool(flags & os.O_APPEND))
                if not is_folder:
                    truncates = bool(flags & os.O_TRUNC and flags & (os.O_WRONLY | os.O_RDWR))
                    self.log.append(("open", self._count, key, bool(flags & os.O_CREAT), truncates))
                return number

        def os_close(number: int) -> None:
            with self._gate:
                self._open.pop(number, None)
                real["close"](number)

        def os_write(number: int, data: Any, offset: int | None = None) -> int:
            with self._gate:
                count = int(real["write"](number, data) if offset is None else real["pwrite"](number, data, offset))
                if (file := self._open.get(number)) is not None:
                    place = offset if offset is not None else -1 if file.append else file.offset
                    self.log.append(("write", file.number, place, bytes(memoryview(data).cast("B")[:count])))
                    file.offset += count if offset is None else 0
                return count

        def seek(number: int, offset: int, whence: int) -> int:
            with self._gate:
                self._open[number].offset = os.lseek(number, offset, whence)
                return self._open[number].offset

        def os_fsync(number: int) -> None:
            with self._gate:  # the real call would only cost time
                if (file := self._open.get(number)) is not None:
                    self.log.append(("fsync_folder", file.key) if file.folder else ("fsync", file.number))

        def os_ftruncate(number: int, size: int) -> None:
            with self._gate:
                real["ftruncate"](number, size)
                if (file := self._open.get(number)) is not None:
                    self.log.append(("truncate", file.number, size))

        def change(name: str, kind: str, paths: int = 1) -> Callable[..., None]:
            def call(*arguments: Any, **options: Any) -> None:
                keys = [self._key(path) for path in arguments[:paths]]
                with self._change():
                    real[name](*arguments, **options)
                    if None not in keys and not any(options.values()):
                        self.log.append((kind, *keys))

            return call

        def builtin_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+") or self._key(file) is None:
                return real_open(file, mode, *arguments, **options)
            how = {"w": os.O_CREAT | os.O_TRUNC, "a": os.O_CREAT | os.O_APPEND, "x": os.O_CREAT | os.O_EXCL, "r": 0}
            raw = RecordedFile(os_open(file, os.O_RDWR | how[mode.strip("bt+")], 0o666), os_write, seek, os_close)
            whole = io.BufferedWriter(raw)
            return whole if "b" in mode else io.TextIOWrapper(whole, options.get("encoding"))

        return {
            "open": os_open,
            "close": os_close,
            "write": os_write,
            "pwrite": os_write,
            "fsync": os_fsync,
            "fdatasync": os_fsync,
            "ftruncate": os_ftruncate,
            "rename": change("rename", "rename", 2),
            "replace": change("replace", "rename", 2),
            "link": change("link", "link", 2),
            "unlink": change("unlink", "unlink"),
            "remove": change("remove", "unlink"),
            "mkdir": change("mkdir", "mkdir"),
            "rmdir": change("rmdir", "unlink"),
            "builtin_open": builtin_open,
        }


class RecordedFile(io.RawIOBase):
    """A file for writing whose bytes the recorder sees."""

    def __init__(
        self,
        number: int,
        write: Callable[[int, Any], int],
        seek: Callable[[int, int, int], int],
        close: Callable[[int], None],
    ) -> None:
        self._number, self._write, self._seek, self._close = number, write, seek, close

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._seek(self._number, offset, whence)

    def fileno(self) -> int:
        return self._number

    def write(self, data: Any) -> int:
        return self._write(self._number, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._close(self._number)
