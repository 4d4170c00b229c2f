"""Which stages a capture set out to record: kept in the store until all of them are complete.

The plan plays no part in reading or in what is compared; a finished store has none,
so that it is the same file for file however it came about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from stratalens.store.state.manifest import Store, load
from stratalens.store.storage.base import PRIVATE, Storage

PLANNED = f"{PRIVATE}/planned.json"


def plan_stages(store: Store, names: Sequence[str]) -> list[str]:
    """Note what is going to be recorded, in training order; it takes the place of what an earlier capture noted.

    Returns:
        What the earlier capture had noted, for `restore_plan`.
    """
    storage = store.storage
    wanted = json.dumps(list(names), ensure_ascii=False).encode() + b"\n" if _lacking(store, names) else None
    with storage.structure_lock():
        before = storage.get(PLANNED)
        if wanted is None and before is not None:
            storage.delete([PLANNED])
        elif wanted is not None and before != wanted:
            storage.put(PLANNED, wanted)
    return _names(before)


def restore_plan(storage: Storage, before: Sequence[str], refused: str | None = None) -> None:
    """Put back the plan that a refused capture found, as far as it is still open.

    Args:
        storage: of the store.
        before: what `plan_stages` returned.
        refused: a stage that does not fit the store. It is left out of the plan even where it was noted
            before (by a capture that was interrupted before it came to this stage): no capture can record it.
    """
    plan_stages(load(storage), [name for name in before if name != refused])


def clear_if_complete(storage: Storage) -> None:
    """Forget the plan once all of it is recorded."""
    if not planned_stages(storage):
        return
    with storage.structure_lock():
        if not _lacking(load(storage), planned_stages(storage)):
            storage.delete([PLANNED])


def planned_stages(storage: Storage) -> list[str]:
    """Stages of a capture that has not finished; empty where there is none, or where the note of it is unreadable."""
    return _names(storage.get(PLANNED))


def _names(raw: bytes | None) -> list[str]:
    try:
        names = json.loads(raw) if raw else []
    except ValueError:
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def missing_stages(store: Store) -> list[str]:
    """Planned stages that the store does not have at all."""
    held = {stage.name for stage in store.stages}
    return [name for name in planned_stages(store.storage) if name not in held]


def _lacking(store: Store, names: Sequence[str]) -> list[str]:
    state = store.commits()
    index = {stage.name: number for number, stage in enumerate(store.stages)}
    return [name for name in names if name not in index or not state.complete(index[name])]
