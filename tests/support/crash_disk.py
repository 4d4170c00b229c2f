"""A model of a disk that replays recorded changes, and of what it may hold after a crash.

After a kill, everything that was visible stays. After a loss of power, the contents of a file may be any mixture of
its writes since its last fsync, and the names in a folder any subset of their changes since the last fsync of that
folder. A rename never loses the old name before the new one is durable.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.crash_recorder import Operation

MODES = ("kill", "none", "names", "data", "any")
"""kill: SIGKILL. none: nothing that was not fsynced stays. names: all names stay, no contents. data: all contents stay,
any names. any: any of both."""

State = dict[str, bytes | None]  # contents by path; None for a folder


class Node:
    """A file or folder: what is visible, and what is durable."""

    def __init__(self, folder: bool) -> None:
        self.folder = folder
        self.content = bytearray()
        self.durable_content = b""
        self.writes: list[tuple[Any, ...]] = []  # since the last fsync
        self.names: dict[str, Node] = {}
        self.durable_names: dict[str, Node] = {}
        self.changes: list[Change] = []  # of names, since the last fsync


class Change:
    """One change of a name in a folder; `node` is None for a removal, `after` a change that must be durable before."""

    def __init__(self, folder: Node, name: str, node: Node | None, after: Change | None) -> None:
        self.folder, self.name, self.node, self.after, self.durable = folder, name, node, after, False

    def make_durable(self) -> None:
        if self.durable:
            return
        if self.after is not None:
            self.after.make_durable()
        self.durable = True
        _put(self.folder.durable_names, self.name, self.node)


def _put(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _write(content: bytearray, write: tuple[Any, ...]) -> None:
    kind, place, *data = write
    if kind == "truncate":
        del content[place:]
        content.extend(bytes(place - len(content)))
    else:
        content.extend(bytes(max(0, place - len(content))))
        content[place : place + len(data[0])] = data[0]


class Disk:
    """A disk that starts with the files of a folder, all of them durable."""

    def __init__(self, start: Path) -> None:
        self.top = Node(True)
        self._handles: dict[Any, Node] = {}
        self._load(self.top, start)

    def _load(self, node: Node, path: Path) -> None:
        for entry in path.iterdir():
            child = Node(entry.is_dir())
            node.names[entry.name] = node.durable_names[entry.name] = child
            if child.folder:
                self._load(child, entry)
            else:
                child.durable_content = entry.read_bytes()
                child.content[:] = child.durable_content

    def _at(self, key: str) -> Node:
        node = self.top
        for part in filter(None, key.split("/")):
            node = node.names[part]
        return node

    def _parent(self, key: str) -> tuple[Node, str]:
        head, _, name = key.rpartition("/")
        return self._at(head), name

    def _set_name(self, folder: Node, name: str, node: Node | None, after: Change | None = None) -> Change:
        _put(folder.names, name, node)
        change = Change(folder, name, node, after)
        folder.changes.append(change)
        return change

    def apply(self, operation: Operation, run: int = 0) -> None:
        """Apply one recorded change; `run` distinguishes the open files of several recordings."""
        kind, first, *rest = operation
        if kind == "open":
            folder, name = self._parent(rest[0])
            if name not in folder.names:
                self._set_name(folder, name, Node(False))
            node = self._handles[run, first] = folder.names[name]
            if rest[2] and node.content:
                node.content.clear()
                node.writes.append(("truncate", 0))
        elif kind in ("write", "truncate"):
            node = self._handles[run, first]
            place = len(node.content) if rest[0] == -1 else rest[0]
            write = (kind, place, *rest[1:])
            _write(node.content, write)
            node.writes.append(write)
        elif kind == "fsync":
            node = self._handles[run, first]
            node.durable_content, node.writes = bytes(node.content), []
        elif kind == "fsync_folder":
            folder = self._at(first)
            for change in folder.changes:
                change.make_durable()
            folder.changes = []
        elif kind in ("rename", "link"):
            (source, old), (target, new) = self._parent(first), self._parent(rest[0])
            change = self._set_name(target, new, source.names[old])
            if kind == "rename":
                self._set_name(source, old, None, change)
        elif kind == "unlink":
            self._set_name(*self._parent(first), None)
        elif kind == "mkdir":
            self._set_name(*self._parent(first), Node(True))

    def after_crash(self, mode: str, choose: random.Random) -> State:
        """Return files and folders as a crash may leave them.

        Args:
            mode: one of `MODES`.
            choose: decides what is lost where the mode leaves a choice.
        """
        state: State = {}
        self._collect(self.top, "", mode, choose, state, {})
        return state

    def _collect(
        self, node: Node, path: str, mode: str, choose: random.Random, state: State, views: dict[int, dict[str, Node]]
    ) -> None:
        for name, child in sorted(_names_after(node, mode, choose, views).items()):
            key = f"{path}{name}"
            if child.folder:
                state[key] = None
                self._collect(child, f"{key}/", mode, choose, state, views)
            else:
                state[key] = _content_after(child, mode, choose)


def _names_after(node: Node, mode: str, choose: random.Random, views: dict[int, dict[str, Node]]) -> dict[str, Node]:
    if mode == "kill":
        return node.names
    names = dict(node.durable_names)
    views[id(node)] = names
    for change in node.changes:
        if change.durable or mode == "none" or (mode in ("data", "any") and choose.random() < 0.5):
            continue
        new = change.after
        if new is not None and not new.durable:
            there = names if new.folder is node else views.get(id(new.folder), {})
            if there.get(new.name) is not new.node:
                continue  # the new name is not there, so the old one is
        _put(names, change.name, change.node)
    return names


def _content_after(node: Node, mode: str, choose: random.Random) -> bytes:
    if mode in ("kill", "data") or not node.writes:
        return bytes(node.content)
    if mode in ("none", "names"):
        return node.durable_content
    how = choose.choice(["old", "all", "some", "first", "zeros", "torn"])
    if how == "old":
        return node.durable_content
    if how == "all":
        return bytes(node.content)
    content = bytearray(node.durable_content)
    if how == "zeros":
        size = len(node.content)
        return bytes(content[:size]) + bytes(max(0, size - len(content)))
    for write in _chosen(node.writes, how, choose):
        _write(content, write)
    return bytes(content)


def _chosen(writes: Sequence[tuple[Any, ...]], how: str, choose: random.Random) -> Iterator[tuple[Any, ...]]:
    if how == "first":
        yield from writes[: choose.randint(0, len(writes))]
    elif how == "some":
        yield from (write for write in writes if choose.random() < 0.5)
    else:
        yield from writes[:-1]
        kind, place, *data = writes[-1]
        yield (kind, place, data[0][: choose.randrange(len(data[0]) + 1)]) if data else writes[-1]


def build(state: State, target: Path) -> None:
    """Write a state into a folder that does not exist."""
    target.mkdir(parents=True)
    for key in sorted(state):
        content = state[key]
        if content is None:
            (target / key).mkdir(exist_ok=True)
        else:
            (target / key).write_bytes(content)
