"""Paths of users, durable names in a folder, and atomic replacement of text files next to a store."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a local path as the user means it: a leading ~ is the home folder.

    >>> str(user_path("runs/~.zarr")), user_path("~/run.zarr").is_absolute()
    ('runs/~.zarr', True)
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where there is no home folder


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text durably under a temporary name, then rename it; return the path."""
    target = user_path(path)
    temporary = target.with_name(target.name + ".part")
    with temporary.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    fsync_folder(target.parent)
    return target


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
