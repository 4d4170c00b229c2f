"""From a path or URL to the storage behind it; and what to say where it holds no store."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import PurePath

from stratalens.store.errors import InputError
from stratalens.store.storage.base import PRIVATE, Storage
from stratalens.store.storage.local import LocalStorage


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path names something that fsspec reaches.

    >>> is_url("s3://bucket/run.zarr"), is_url("runs/run.zarr"), is_url("file:///runs/run.zarr")
    (True, False, False)
    """
    return isinstance(path, str) and "://" in path and not path.startswith("file://")


def storage_at(path: str | os.PathLike[str]) -> Storage:
    """The storage of a store at a folder or an fsspec URL."""
    if isinstance(path, str) and is_url(path):
        from stratalens.store.storage.object_store import RemoteStorage

        return RemoteStorage(path)
    return LocalStorage(str(path).removeprefix("file://"))


def no_store_error(storage: Storage) -> InputError:
    """The error for a path that holds no store."""
    root = storage.root
    kind = storage.kind()
    if kind == "nothing":
        return InputError(
            f"there is no store at {root}: {_beside(storage)}record one with stratalens.capture(..., {str(root)!r})"
        )
    if kind == "file":
        return InputError(f"{root} is a file, a store is a folder: give the folder that holds zarr.json")
    if storage.list(PRIVATE):
        return InputError(
            f"{root} is a store whose creation was interrupted, or whose zarr.json was removed: run the capture "
            "again, or `stratalens verify --repair`"
        )
    inner = storage.inner_stores()
    hint = f"; did you mean {storage.path(inner[0])}?" if inner else ""
    return InputError(f"{root} holds no store (no zarr.json){hint}")


def _beside(storage: Storage) -> str:
    """Stores in the same folder, those with a near name first."""
    paths = {PurePath(path).stem: path for path in storage.neighbours()}
    near = get_close_matches(PurePath(str(storage.root)).stem, paths, n=3)
    if near:
        return f"did you mean {' or '.join(paths[stem] for stem in near)}? Else "
    if not paths:
        return ""
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return f"beside it {'lies' if len(paths) == 1 else 'lie'} {', '.join(list(paths.values())[:5])}{more}. Else "
