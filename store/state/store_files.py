"""Checks that a store has the files that its root needs: its hidden folder, and a label file for all of its rows."""

from __future__ import annotations

from stratalens.store.errors import DamagedError
from stratalens.store.state.manifest import Store
from stratalens.store.storage.base import PRIVATE, Storage


def has_private_folder(storage: Storage) -> bool:
    """Return whether the hidden folder with the commit records exists."""
    return bool(storage.list(PRIVATE))


def no_private_folder_error(storage: Storage) -> DamagedError:
    """Return the error for a store without its hidden folder."""
    return DamagedError(
        f"{storage.root} has no folder {PRIVATE}, which says what was recorded: a copy that leaves hidden folders out "
        f"loses it. Copy the store again with all files (cp -r, rsync -a), or run `stratalens verify --repair "
        f"{storage.root}`: it rebuilds the commit records from the checksums of the data"
    )


def check_store_files(store: Store) -> None:
    """Check that a store has its hidden folder, and as many label files as its rows need.

    A count in the root that the files do not support must not cost memory or time.

    Raises:
        DamagedError: the hidden folder or label files are missing.
    """
    storage = store.storage
    if not has_private_folder(storage):
        raise no_private_folder_error(storage)
    check_row_count(store)


def check_row_count(store: Store) -> None:
    """Check that there are as many label files as the rows of a store need.

    Raises:
        DamagedError: label files are missing.
    """
    storage = store.storage
    needed = -(-store.entities // store.label_chunk)
    if needed <= 4:
        return
    if storage.lists_folders:
        complete = len(storage.list("entity")) >= needed
    else:  # the last file, with one request
        last = store.label_key("entity", needed - 1)
        complete = storage.is_pinned(last) or storage.size(last) is not None
    if not complete:
        raise DamagedError(
            f"the root metadata of {store.path} names {store.entities} rows, but the {needed} label files of 'entity' "
            "that these need do not exist: restore the store from a copy"
        )
