"""What int8 lost, as it was measured while writing: one number for each stage, in the root zarr.json.

Every row's error is an array of the store (`scaling`). When a stage is complete the
largest and the mean of them are put into the root, and from there into the attributes
of the site, so that plain readers and `info` see them without reading anything. They
follow from the data alone, so an interrupted writer ends with the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stratalens.store.reading.slabs import SlabReader
from stratalens.store.state.manifest import Store
from stratalens.store.state.publish import commit_root

Entry = tuple[float, float, int]


def update_quantization_errors(store: Store) -> Store:
    """Measure stages that became complete, forget those that are no longer; under the structure lock."""
    scaled = [layout.variable for layout in store.layouts.values() if layout.variable.scaled_by]
    if not scaled:
        return store
    present = store.commits().present
    wanted: dict[str, list[Any]] = {}
    for variable in scaled:
        whole = present[store.group_of[variable.name]].all(axis=1)
        held = [*store.measured.get(variable.name, []), *[None] * len(store.stages)]
        wanted[variable.name] = [
            (held[stage] or list(_measure(store, variable.attrs["error"], stage))) if complete else None
            for stage, complete in enumerate(whole.tolist())
        ]
    wanted = {name: stages for name, stages in wanted.items() if any(stages)}
    same = wanted == {name: list(stages) for name, stages in store.measured.items() if any(stages)}
    return store if same else commit_root(replace(store, measured=wanted), first=len(store.stages))


def _measure(store: Store, name: str, stage: int) -> Entry:
    """Largest error, mean error and number of rows, block by block."""
    layout = store.layouts[name]
    reader = SlabReader(
        storage=store.storage,
        layout=layout,
        entities=store.entities,
        committed=store.commits().present[store.group_of[name]],
        stage_names=[s.name for s in store.stages],
        layer_names=store.layers,
    )
    largest, total, rows = 0.0, 0.0, 0
    for block in range(store.geometry.blocks):
        part = slice(*store.geometry.rows(block))
        values = reader.read([stage], range(layout.layers), part, range(layout.tokens))
        values = values[~np.isnan(values)]
        if values.size:
            largest, total = max(largest, float(values.max())), total + float(values.sum(dtype=np.float64))
            rows += values.size
    return largest, total / max(rows, 1), rows
