"""The storage of a path or URL, and the error for one without a store."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import PurePath

from stratalens.store.errors import InputError, join_names
from stratalens.store.files import user_path
from stratalens.store.storage.base import PRIVATE, Storage
from stratalens.store.storage.local import LocalStorage


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a URL for fsspec.

    >>> is_url("s3://bucket/run.zarr"), is_url("runs/run.zarr"), is_url("file:///runs/run.zarr")
    (True, False, False)
    """
    return isinstance(path, str) and "://" in path and not path.startswith("file://")


def storage_at(path: str | os.PathLike[str]) -> Storage:
    """Return the storage of a folder or an fsspec URL; a leading ~ is the home folder."""
    if isinstance(path, str) and is_url(path):
        return _remote_storage(path)
    return LocalStorage(user_path(str(path).removeprefix("file://")))


def _remote_storage(url: str) -> Storage:
    from stratalens.store.storage.http_server import HttpStorage
    from stratalens.store.storage.hub import HubStorage, is_hub_repository
    from stratalens.store.storage.object_store import RemoteStorage

    if url.startswith(("http://", "https://")):
        return HttpStorage(url)
    return HubStorage(url) if is_hub_repository(url) else RemoteStorage(url)


def check_writable(storage: Storage) -> None:
    """Raise InputError if nothing can be written to a storage."""
    if storage.read_only:
        raise InputError(f"{storage.root} cannot be written: {storage.read_only}")


def no_store_error(storage: Storage) -> InputError:
    """Return the error for a path that contains no store."""
    root = storage.root
    if storage.read_only:
        return InputError(
            f"there is no store at {root}: it has no zarr.json. Check the address; it is that of the folder that "
            "contains zarr.json, not that of a page about it"
        )
    kind = storage.kind()
    if kind == "nothing":
        return InputError(
            f"there is no store at {root}: {_similar_stores(storage)}record one with "
            f"stratalens.capture(..., {str(root)!r})"
        )
    if kind == "file":
        return InputError(f"{root} is a file, but a store is a folder: give the folder that contains zarr.json")
    if storage.list(PRIVATE):
        return InputError(
            f"{root} is a store whose creation was interrupted, or whose zarr.json was removed: run the capture "
            "again, or `stratalens verify --repair`"
        )
    inner = storage.inner_stores()
    hint = f"; did you mean {storage.path(inner[0])}?" if inner else ""
    return InputError(f"{root} holds no store (no zarr.json){hint}")


def _similar_stores(storage: Storage) -> str:
    """Name stores of the same folder: those with a similar name, or else the first five."""
    paths = {PurePath(path).stem: path for path in storage.neighbours()}
    similar = get_close_matches(PurePath(str(storage.root)).stem, paths, n=3)
    if similar:
        return f"did you mean {' or '.join(paths[stem] for stem in similar)}? Else "
    if not paths:
        return ""
    return f"its folder contains {join_names(paths.values(), 5)}. Else "
