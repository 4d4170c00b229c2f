"""Lazy arrays that are no variable of a store: label columns, flags of several groups, exposure.

What they are made from is in `arrays`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store import labels
from stratalens.store.arrays import LazyArray
from stratalens.store.manifest import Store
from stratalens.store.rows import Selection
from stratalens.store.watch import Watch


class LabelArray(LazyArray):
    """One label column, decoded chunk by chunk when asked for."""

    def __init__(self, store: Store, name: str, watch: Watch) -> None:
        self.store, self.name, self.watch = store, name, watch
        self.data_type, self.chunk = store.label_types[name], store.label_chunk
        self.shape = (store.entities,)
        self.dtype = np.dtype(object) if self.data_type == "string" else np.dtype(self.data_type)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Labels of a selection of rows."""
        (selection,) = selections
        rows = np.arange(self.shape[0])[selection]
        out = np.empty(len(rows), dtype=self.dtype)
        keys = {int(n): self.store.label_key(self.name, int(n)) for n in np.unique(rows // self.chunk)}
        raw = {number: self.store.storage.get(key) for number, key in keys.items()}
        self.watch.check(now=True)  # what was read belongs to the labels of this store, not to later ones
        for number, key in keys.items():
            where = f"label column {self.name!r} ({self.store.storage.path(key)})"
            part = labels.decode_chunk(raw[number], self.data_type, where)
            inside = rows // self.chunk == number
            out[inside] = part[rows[inside] - number * self.chunk]
        return out


class FunctionArray(LazyArray):
    """An array computed from others: `function(selections)`."""

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], function: Callable[[Sequence[Selection]], NDArray[Any]]
    ) -> None:
        self.shape, self.dtype, self.function = shape, dtype, function

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """What the function says."""
        return self.function(selections)


class AllOf:
    """`recorded` of a store whose variables came in several groups: a row counts where all groups have it."""

    def __init__(self, parts: Sequence[LazyArray]) -> None:
        self.parts = list(parts)

    def __call__(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Flags of a selection."""
        everywhere: NDArray[Any] = np.logical_and.reduce([part.select(selections) for part in self.parts])
        return everywhere


class Exposure:
    """stage_order minus the order of the stage a row was trained on; NaN where that is unknown."""

    def __init__(self, stage_order: NDArray[np.int64], orders: dict[str, int], trained: LazyArray) -> None:
        self.stage_order, self.orders, self.trained = stage_order, orders, trained

    def __call__(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Exposure of a selection."""
        stage, entity = selections
        trained = self.trained.select([entity])
        if trained.dtype == object:
            order = np.array([self.orders.get(t, math.nan) for t in trained], dtype=np.float32)
        else:
            order = trained.astype(np.float32)
        return (self.stage_order[stage].astype(np.float32)[:, None] - order[None]).astype(np.float32)
