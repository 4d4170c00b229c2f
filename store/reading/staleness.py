"""Notices when a store that is open for reading was moved, removed, or replaced by another at the same place.

What is committed never changes under a reader, and stages and variables are only
added; so an open dataset stays right while the store grows. It does not where somebody
changes the labels, or removes the store and records another one there: its values under
the old labels. And a repair takes a damaged block back, file and commit record, which
then is missing.
"""

from __future__ import annotations

import time
from typing import Any

from stratalens.store.errors import InputError, MismatchError
from stratalens.store.format import metadata
from stratalens.store.state.manifest import Store, load

SECONDS = 10.0  # between two looks over a network


class StalenessCheck:
    """Looks at the root zarr.json of an open store before values are read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stamp: Any = ()
        self._looked = float("-inf")

    def check(self, *, now: bool = False) -> None:
        """Raise unless the store is still there: the one that was opened, perhaps with more stages or variables.

        Raises
        ------
        InputError
            The store was moved or removed.
        MismatchError
            Its labels were changed, or another store was made in its place.
        """
        storage = self._store.storage
        if storage.high_latency and not now and time.monotonic() - self._looked < SECONDS:
            return
        stamp = storage.stamp(metadata.ROOT)
        self._looked = time.monotonic()
        if stamp == self._stamp and stamp is not None:
            return
        if stamp is None:
            raise InputError(
                f"the store at {storage.root} was moved or removed since it was opened: open it where it is now"
            )
        current = load(storage)
        if not current.extends(self._store):
            if current.extends(self._store, labels_too=True):
                raise MismatchError(f"the labels of {storage.root} were changed since it was opened: open it again")
            raise MismatchError(
                f"another store was made at {storage.root} since it was opened: open it again; what was read before "
                "belongs to the old one"
            )
        self._stamp = stamp

    def committed(self, variable: str, stage: int, block: int) -> bool:
        """Whether a block is committed at this moment, whatever it was when the store was opened."""
        storage = self._store.storage
        store = load(storage)
        return bool(store.commits().present[store.group_of[variable]][stage, block])
