"""The capture plan: stages that a capture still has to record, stored until all of them are complete.

The plan does not affect reading. A finished store contains no plan, so its files do not depend on interruptions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from stratalens.store.state.manifest import Store, load
from stratalens.store.storage.base import PRIVATE, Storage

PLANNED = f"{PRIVATE}/planned.json"


def plan_stages(store: Store, names: Sequence[str]) -> list[str]:
    """Replace the capture plan.

    Args:
        store: the store.
        names: all stages of the capture, in training order. If all of them are complete, the plan is removed.

    Returns:
        The previous plan, for `restore_plan`.
    """
    storage = store.storage
    plan = json.dumps(list(names), ensure_ascii=False).encode() + b"\n" if _incomplete(store, names) else None
    with storage.structure_lock():
        previous = storage.get(PLANNED)
        if plan is None and previous is not None:
            storage.delete([PLANNED])
        elif plan is not None and previous != plan:
            storage.put(PLANNED, plan)
    return _parse(previous)


def restore_plan(storage: Storage, previous: Sequence[str], refused: str | None = None) -> None:
    """Restore the plan that `plan_stages` replaced, after the store refused the new capture.

    Args:
        storage: storage of the store.
        previous: the list that `plan_stages` returned.
        refused: a stage that does not fit the store. It leaves the plan, because no capture can record it. An
            interrupted capture may have planned it before.
    """
    plan_stages(load(storage), [name for name in previous if name != refused])


def clear_if_complete(storage: Storage) -> None:
    """Remove the plan if all of its stages are recorded."""
    if not planned_stages(storage):
        return
    with storage.structure_lock():
        if not _incomplete(load(storage), planned_stages(storage)):
            storage.delete([PLANNED])


def planned_stages(storage: Storage) -> list[str]:
    """List the stages of an unfinished capture; empty if there is no readable plan."""
    return _parse(storage.get(PLANNED))


def _parse(raw: bytes | None) -> list[str]:
    try:
        names = json.loads(raw) if raw else []
    except ValueError:
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def missing_stages(store: Store) -> list[str]:
    """List the planned stages that the store does not contain."""
    stages = {stage.name for stage in store.stages}
    return [name for name in planned_stages(store.storage) if name not in stages]


def _incomplete(store: Store, names: Sequence[str]) -> list[str]:
    state = store.commits()
    index = {stage.name: number for number, stage in enumerate(store.stages)}
    return [name for name in names if name not in index or not state.complete(index[name])]
