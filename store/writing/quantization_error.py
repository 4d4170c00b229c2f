"""The quantization error of every int8 site and stage, in the root zarr.json.

The store has the error of every row as an array. When a stage is complete, the largest and the mean error go into the
root and the attributes of the site, where plain readers and `info` see them without reading data. They follow from the
data alone, so a writer that was interrupted ends with the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stratalens.store.reading.slabs import SlabReader
from stratalens.store.state.manifest import Store
from stratalens.store.state.publish import commit_root


def update_quantization_errors(store: Store) -> Store:
    """Add the errors of complete stages and remove those of others.

    The caller holds the structure lock.
    """
    scaled = [layout.variable for layout in store.layouts.values() if layout.variable.scaled_by]
    if not scaled:
        return store
    present = store.commits().present
    errors: dict[str, list[Any]] = {}
    for variable in scaled:
        complete = present[store.group_of[variable.name]].all(axis=1).tolist()
        known = [*store.measured.get(variable.name, []), *[None] * len(store.stages)]
        stages = [
            (known[stage] or list(_stage_error(store, variable.attrs["error"], stage))) if complete[stage] else None
            for stage in range(len(complete))
        ]
        if any(stages):
            errors[variable.name] = stages
    if errors == {name: list(stages) for name, stages in store.measured.items() if any(stages)}:
        return store
    return commit_root(replace(store, measured=errors), first=len(store.stages))


def _stage_error(store: Store, name: str, stage: int) -> tuple[float, float, int]:
    """Return the largest and the mean error of a stage, and its rows."""
    layout = store.layouts[name]
    reader = SlabReader(store, layout, committed=store.commits().present[store.group_of[name]])
    largest, total, rows = 0.0, 0.0, 0
    for block in range(store.geometry.blocks):
        entities = slice(*store.geometry.rows(block))
        values = reader.read([stage], range(layout.layers), entities, range(layout.tokens))
        values = values[~np.isnan(values)]
        if values.size:
            largest = max(largest, float(values.max()))
            total += float(values.sum(dtype=np.float64))
            rows += values.size
    return largest, total / max(rows, 1), rows
