"""Notices that an open store was moved, removed or replaced.

An open dataset stays correct while the store grows: committed data never changes, stages and variables are only added.
It is wrong if the labels change, or if another store replaces this one: old labels then name other values.
A repair can remove a damaged block and its commit record; the block is missing afterwards.
"""

from __future__ import annotations

import time
from typing import Any

from stratalens.store.errors import InputError, MismatchError
from stratalens.store.format import metadata
from stratalens.store.state.index import attach_index
from stratalens.store.state.manifest import Store, load

SECONDS = 10.0  # between two looks over a network


class LabelsChangedError(MismatchError):
    """Labels that were changed while a dataset is open."""


class StalenessCheck:
    """Comparison of the root zarr.json of an open store with the one that was opened."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stamp: Any = ()
        self._checked_at = time.monotonic()  # the root was just read

    def check(self, *, now: bool = False) -> None:
        """Raise unless the path still holds the opened store.

        More stages and variables are allowed.

        Args:
            now: check a remote store even if the last check is less than `SECONDS` ago.

        Raises:
            InputError: the store was moved or removed.
            MismatchError: its labels changed, or another store replaced it.
        """
        storage = self._store.storage
        if storage.is_pinned(metadata.ROOT):
            return
        if storage.high_latency and not now and time.monotonic() - self._checked_at < SECONDS:
            return
        stamp = storage.stamp(metadata.ROOT)
        self._checked_at = time.monotonic()
        if stamp == self._stamp and stamp is not None:
            return
        if stamp is None:
            raise InputError(
                f"the store at {storage.root} was moved or removed since it was opened: open it where it is now"
            )
        current = load(storage)
        if not current.extends(self._store):
            if current.extends(self._store, labels_too=True):
                raise LabelsChangedError(
                    f"the labels of {storage.root} were changed since it was opened: open it again"
                )
            raise MismatchError(
                f"another store was made at {storage.root} since it was opened: open it again; values read before "
                "belong to the old store"
            )
        self._stamp = stamp

    def is_committed(self, variable: str, stage: int, block: int) -> bool:
        """Return whether a block is committed now."""
        store = load(self._store.storage)
        attach_index(store)
        return bool(store.commits().present[store.group_of[variable]][stage, block])
