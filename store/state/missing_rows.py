"""Reasons for which rows of a store are missing: not started, interrupted, repaired, or damaged records.

Commit records say which blocks exist. The history says why others do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stratalens.store.errors import join_names
from stratalens.store.format.layout import consecutive_runs
from stratalens.store.state.capture_plan import missing_stages
from stratalens.store.state.commit_log import Commits
from stratalens.store.state.history import read_events
from stratalens.store.state.manifest import Store

Reason = Literal["not started", "interrupted", "repaired", "damaged"]

_RESUME = "run the capture again to record them"

_SENTENCES: dict[Reason, str] = {
    "not started": f"the capture has not started this stage; {_RESUME}",
    "interrupted": f"the capture was interrupted, or is still running; {_RESUME}",
    "repaired": f"`verify --repair` removed these damaged rows; {_RESUME}",
    "damaged": "their commit record was lost, although their files exist; run `stratalens verify --repair`",
}


@dataclass(frozen=True)
class MissingRows:
    """Rows of one stage that are missing for one reason.

    Attributes:
        stage: name of the stage.
        reason: "not started", "interrupted", "repaired" or "damaged".
        rows: ranges of entity rows, the last row excluded; empty for a stage that was not started.
    """

    stage: str
    reason: Reason
    rows: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        ranges = join_names((f"{low} to {high - 1}" for low, high in self.rows), 5)
        where = f", entity rows {ranges}" if self.rows else ""
        return f"stage {self.stage!r}{where}: {self.reason} ({_SENTENCES[self.reason]})"


def missing_rows(store: Store, commits: Commits) -> list[MissingRows]:
    """List the missing rows of a store by stage and reason.

    Args:
        store: the store.
        commits: its commit state. If all is recorded, only the capture plan is read.

    Returns:
        Missing rows in the order of the stages on disk, then the stages that were planned and not started.
    """
    result = []
    absent = ~np.asarray(commits.present.all(axis=0))
    if absent.any():
        events = read_events(store.storage)
        repaired, complete = _repaired_blocks(store, events), _complete_groups(store, events)
        commits = store.commits()  # after the history, so that a writer at work seems to have lost no record
        absent = ~np.asarray(commits.present.all(axis=0))
        for stage, entry in enumerate(store.stages):
            by_reason: dict[Reason, list[int]] = {}
            for block in np.flatnonzero(absent[stage]).tolist():
                groups = np.flatnonzero(~commits.present[:, stage, block]).tolist()
                reason: Reason = "interrupted"
                if any((stage, group, block) in repaired for group in groups):
                    reason = "repaired"
                elif any((stage, group) in complete for group in groups):
                    reason = "damaged"
                by_reason.setdefault(reason, []).append(block)
            result += [MissingRows(entry.name, reason, _ranges(store, b)) for reason, b in sorted(by_reason.items())]
    return result + [MissingRows(name, "not started") for name in missing_stages(store)]


def reasons_for(attrs: Mapping[Any, Any], stages: Iterable[object]) -> str:
    """Return the reasons for missing rows of some stages, to be appended to a message; "" without reasons.

    Args:
        attrs: attributes of the variable `recorded`.
        stages: names of the stages that miss rows.

    Example:
        >>> reasons_for({"missing": ["stage 'a': interrupted", "stage 'b': repaired"]}, ["b"])
        ". stage 'b': repaired"
    """
    starts = tuple(f"stage {str(stage)!r}" for stage in stages)
    lines = [line for line in attrs.get("missing", ()) if line.startswith(starts)]
    return f". {'; '.join(lines[:5])}" if lines else ""


def lost_records(store: Store) -> list[tuple[int, int, int]]:
    """List blocks without a commit record although the history calls their stage complete and their files exist.

    Returns:
        (stage, group, block) of each.
    """
    events = read_events(store.storage)  # before the records, so that a writer at work loses none
    commits = store.commits()
    if commits.present.all():
        return []
    repaired = _repaired_blocks(store, events)
    sizes = {name: store.storage.sizes(name) for name in store.layouts}
    lost = []
    for stage, group in sorted(_complete_groups(store, events)):
        for block in np.flatnonzero(~commits.present[group, stage]).tolist():
            layouts = [store.layouts[variable.name] for variable in store.groups[group]]
            files = all(layout.file_name(stage, block) in sizes[layout.variable.name] for layout in layouts)
            if files and (stage, group, block) not in repaired:
                lost.append((stage, group, block))
    return lost


def _repaired_blocks(store: Store, events: Iterable[dict[str, Any]]) -> set[tuple[int, int, int]]:
    blocks = set()
    for event in events:
        stage = store.stage_index(str(event.get("stage")))
        if event["event"] == "block removed" and stage is not None:
            blocks.add((stage, int(event.get("group", 0)), int(event.get("block", -1))))
    return blocks


def _complete_groups(store: Store, events: Iterable[dict[str, Any]]) -> set[tuple[int, int]]:
    """Return (stage, group) of every group that the history calls complete."""
    groups = set()
    for event in events:
        stage, group = store.stage_index(str(event.get("stage"))), event.get("group", -1)
        if event["event"] == "stage complete" and stage is not None and group in range(len(store.groups)):
            groups.add((stage, int(group)))
    return groups


def _ranges(store: Store, blocks: list[int]) -> tuple[tuple[int, int], ...]:
    """Return ranges of rows of sorted blocks."""
    runs = consecutive_runs(blocks)
    return tuple((store.geometry.rows(first)[0], store.geometry.rows(first + n - 1)[1]) for _, first, n in runs)
