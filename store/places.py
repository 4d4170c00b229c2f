"""From a path or URL to the storage behind it."""

from __future__ import annotations

import os

from stratalens.store.seam import Storage
from stratalens.store.storage import LocalStorage


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path names something that fsspec reaches.

    >>> is_url("s3://bucket/run.zarr"), is_url("runs/run.zarr"), is_url("file:///runs/run.zarr")
    (True, False, False)
    """
    return isinstance(path, str) and "://" in path and not path.startswith("file://")


def storage_at(path: str | os.PathLike[str]) -> Storage:
    """The storage of a store at a folder or an fsspec URL."""
    if isinstance(path, str) and is_url(path):
        from stratalens.store.remote import RemoteStorage

        return RemoteStorage(path)
    return LocalStorage(str(path).removeprefix("file://"))
