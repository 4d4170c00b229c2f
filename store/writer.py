"""ActivationWriter: who may write a store, what a killed writer left, and the stages.

Writing the blocks of one stage is in `stagewriter`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from stratalens.store import commits, metadata
from stratalens.store.background import Background
from stratalens.store.buffers import Allocate, Block, Memory
from stratalens.store.errors import InputError, StoreBusyError
from stratalens.store.history import log, mend_history
from stratalens.store.locks import busy
from stratalens.store.manifest import StageEntry, Store, load
from stratalens.store.measured import record_errors
from stratalens.store.places import storage_at
from stratalens.store.provenance import check_stage
from stratalens.store.publishing import add_stage, publish
from stratalens.store.seam import PRIVATE, Lock
from stratalens.store.stagewriter import StageWriter, compact

__all__ = ["ActivationWriter", "StageWriter"]


class ActivationWriter:
    """Writes blocks of activations into a store; holds the store's lock until it is closed.

    Parameters
    ----------
    store
        Path of a store, or what `create` returned.
    allocate
        Function from a number of bytes to a uint8 array of that size, for
        instance pinned memory; called a few times, the memory is reused.
    shared
        True lets other writers with shared=True write other blocks of the
        store at the same time (the ranks of one job). A block that two of them
        want goes to one; the other gets `StoreBusyError`.

    Raises
    ------
    StoreBusyError
        Another living process writes the store. Locks of killed writers do not count.
    """

    def __init__(
        self, store: Store | str | os.PathLike[str], *, allocate: Allocate | None = None, shared: bool = False
    ) -> None:
        self.store = store if isinstance(store, Store) else load(storage_at(store))
        self.shared = shared
        self._storage = self.store.storage
        self._lock = self._take_lock()
        self._claims: dict[tuple[int, int], Lock] = {}
        try:
            self.store = load(self._storage)
            self.background = Background(lambda: Memory(self.store.layouts, allocate))
        except BaseException:
            self._lock.release()
            raise

    def _take_lock(self) -> Lock:
        lock = self._storage.writer_lock()
        try:
            # The processes of one job begin at the same moment: while the first one recovers, the others wait here.
            with self._storage.structure_lock():
                if lock.try_acquire():
                    lock.note()
                    self._recover()
                    if self.shared:
                        lock.clear_note()
                        lock.downgrade()
                    return lock
                if self.shared and lock.try_acquire(shared=True):
                    return lock
        except OSError as error:
            lock.release()
            raise InputError(
                f"{self._storage.root} cannot be written ({error.strerror}): make it writable to record to it"
            ) from error
        except BaseException:
            lock.release()
            raise
        raise busy(self._storage.root, lock.holder())

    def _recover(self) -> None:
        """Put right what a killed writer has left; only under the exclusive lock, and that of the structure."""
        storage = self._storage
        storage.remove_temporaries(own_only=False)
        mend_history(storage)
        storage.clear_claims()
        store = load(storage)
        documents = store.arrays()
        stages = len(store.stages)
        for name in ("stage", "stage_order", "weights_fingerprint"):
            extra = [n for n in storage.list(name) if n.startswith("c.") and int(n[2:]) >= stages]
            storage.delete(f"{name}/{n}" for n in extra)
        for name in storage.list(""):
            known = name in documents or name == PRIVATE
            if not known and storage.is_folder(name) and storage.list(name) == ["zarr.json"]:
                storage.delete([f"{name}/zarr.json"])
                storage.remove_folder(name)
        publish(store, first=stages)
        self._finish_compactions(store)
        record_errors(store)

    def _finish_compactions(self, store: Store) -> None:
        for name in commits.block_records(self._storage):
            stage, group = map(int, name.split("."))
            if stage < len(store.stages) and group < len(store.groups):
                compact(store, stage, group)

    @property
    def block_size(self) -> int:
        """Entity rows in a block."""
        return self.store.block_size

    def blocks(self) -> list[Block]:
        """All blocks of the store."""
        geometry = self.store.geometry
        names = tuple(self.store.layouts)
        return [Block(b, *geometry.rows(b), names) for b in range(geometry.blocks)]

    def stage(
        self,
        name: str,
        *,
        order: int,
        fingerprint: str,
        provenance: Mapping[str, Any] | None = None,
        allow_same_weights: bool = False,
    ) -> StageWriter:
        """Add a stage, or resume it; a context manager.

        Parameters
        ----------
        name
            Name of the training checkpoint; never becomes a path.
        order
            Its place in training; 0 is the untrained one where there is one.
        fingerprint
            Hash of the weights.
        provenance
            Further facts about the stage that refuse on mismatch, JSON.
        allow_same_weights
            Accept two stages with the same fingerprint.

        Raises
        ------
        MismatchError
            The store holds the stage with other weights, order or provenance.
        """
        self.background.check()
        facts = metadata.plain(provenance or {}, "provenance")
        entry = StageEntry(str(name), int(order), str(fingerprint), facts)
        with self._storage.structure_lock():
            fresh = load(self._storage)
            if fresh.groups != self.store.groups:
                raise StoreBusyError(
                    f"variables were added to {self._storage.root} since this writer was opened: open it again"
                )
            self.store = fresh
            index = check_stage(self.store, entry, allow_same_weights=allow_same_weights)
            if index is None:
                index = len(self.store.stages)
                self.store = add_stage(self.store, entry)
                log(self._storage, "stage added", stage=entry.name)
        return StageWriter(self, index, entry)

    def claim(self, stage: int, block: int) -> None:
        """Make sure that no other living process writes this block."""
        if not self.shared or (stage, block) in self._claims:
            return
        lock = self._storage.claim_lock(f"{stage:04d}.{block:07d}")
        if not lock.try_acquire():
            raise StoreBusyError(
                f"block {block} of stage {self.store.stages[stage].name!r} in {self._storage.root} is being written by "
                f"{lock.holder()}: give each process its own blocks, stage.pending(rank, size) does"
            )
        lock.note()
        self._claims[stage, block] = lock

    def unclaim(self, stage: int, block: int) -> None:
        """Let others have the block."""
        if lock := self._claims.pop((stage, block), None):
            lock.release(unlink=True)

    def close(self) -> None:
        """Write what is queued, let go of the lock, and raise what went wrong in the background."""
        if not self._lock.held:
            return
        try:
            self.background.close()
            for key in list(self._claims):
                self.unclaim(*key)
            self._storage.remove_temporaries(own_only=True)
            if not self.shared:
                self._lock.clear_note()
        finally:
            self._lock.release()
            self.background.check()  # what went wrong first says more than what follows from it

    def _repr_html_(self) -> str:
        from stratalens.store.info import info
        from stratalens.store.notebook import store_html

        return store_html(info(self.store.storage.root))

    def __enter__(self) -> ActivationWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as late:
            if error is None or late is error:
                raise
            error.add_note(f"and writing in the background failed: {late}")
