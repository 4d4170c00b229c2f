"""push_store: a shared copy of a store in a bucket, a folder or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from stratalens.store.interop.push_hub import dataset_address, push_to_hub
from stratalens.store.interop.push_plan import plan_push
from stratalens.store.interop.push_storage import Progress, push_to_storage
from stratalens.store.storage.hub import is_hub_repository
from stratalens.store.storage.resolve import check_writable, storage_at


def check_address(url: str) -> None:
    """Raise InputError if nothing can be pushed to a URL, whatever it holds."""
    if is_hub_repository(url):
        dataset_address(url)
    else:
        check_writable(storage_at(url))


def push_store(
    store: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    extra: Mapping[str, bytes] | None = None,
    private: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Copy a store with an index, from which readers of a URL open it in a few requests.

    Every data file is compared with its checksum first. Files that the copy has already are not sent again, so a
    repeated call resumes an interrupted one, and adds what was recorded since. The root is written last.

    Args:
        store: folder of the store.
        url: hf://datasets/USER/NAME[@BRANCH], a bucket such as s3://BUCKET/run.zarr, or a folder.
        extra: further files, by key.
        private: create a repository of the hub as a private one.
        progress: function called with (bytes done, bytes in total).

    Returns:
        A dict: url, files and bytes that were sent, total_files, total_bytes, and commit for the hub.

    Raises:
        InputError: there is no store, or the address cannot be written.
        MismatchError: the address holds another store.
        StoreBusyError: another process writes to it.
        UnreachableError: the hub does not answer.
        DamagedError: a file of the store is damaged; nothing of the copy is visible.
    """
    address = os.fspath(url)
    check_address(address)
    plan = plan_push(storage_at(store))
    if is_hub_repository(address):
        sent = push_to_hub(plan, address, extra or {}, private=private, progress=progress)
    else:
        sent = push_to_storage(plan, storage_at(address), extra or {}, progress)
    return {"url": address, **sent, "total_files": len(plan.data), "total_bytes": plan.nbytes}
