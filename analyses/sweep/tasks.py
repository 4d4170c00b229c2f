"""Slabs as tasks for workers: how to read one slab, in a few kilobytes.

The context that all slabs of a sweep share (function, labels, rows) travels once, as one object that every task names.
Activations travel only if they exist in the memory of this process alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from dask.base import optimize

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep import threads
from stratalens.store.reading.selection import stored_selection


class SharedContext:
    """Function, labels and rows that all slabs of one sweep share.

    Args:
        function: function of a Slab.
        source: site that the slabs come from.
        slabs: all slabs, because the context must be complete before the first task is sent.

    Attributes:
        function: function of a Slab.
        labels: Dataset without variables: coordinates that are the same in all slabs, with their indexes.
        rows: the different selections of rows; those of most stages are equal.
        array: DataArray of all slabs, if workers can open its store themselves; else None.
    """

    # A plain class, like Slab: dask looks inside dataclasses.
    def __init__(self, function: Callable[[Slab], Any], source: SiteData, slabs: Sequence[Slab]) -> None:
        self.function = function
        coords = source.array.coords
        self.array = None if stored_selection(source.array.variable) is None else source.array
        self.labels = coords.to_dataset().drop_vars([k for k, c in coords.items() if {"stage", "layer"} & {*c.dims}])
        self.rows: list[Array] = []
        self._number: dict[int, int] = {}  # by identity, because the layers of a stage share one array
        for rows in {id(slab.rows): slab.rows for slab in slabs}.values():
            equal = (i for i, other in enumerate(self.rows) if np.array_equal(other, rows))
            self._number[id(rows)] = next(equal, len(self.rows))
            if self._number[id(rows)] == len(self.rows):
                self.rows.append(rows)

    def __getstate__(self) -> dict[str, Any]:
        """Identities have no meaning in another process."""
        return {**self.__dict__, "_number": {}}

    def pack(self, slab: Slab) -> SlabTask:
        """Pack one of the slabs into a task."""
        number = self._number[id(slab.rows)]
        if self.array is not None:
            return SlabTask(slab, None, {}, number)
        own = {k: v for k, v in slab.array.coords.variables.items() if k not in self.labels}
        return SlabTask(slab, slab.array, own, number)


class SlabTask:
    """One slab without the shared context: its position, and its activations if workers cannot read them.

    Args:
        slab: the slab.
        array: its activations; None if workers read them from the store.
        coords: coordinates that differ from slab to slab.
        rows: index of its selection of rows in the shared context.
    """

    def __init__(self, slab: Slab, array: xr.DataArray | None, coords: dict[Any, xr.Variable], rows: int) -> None:
        self._variable = None if array is None else array.variable
        if array is not None and array.chunks is not None:  # without the dask tasks of all other slabs
            (data,) = optimize(array.data)
            self._variable = array.variable.copy(data=data)
        self._name = None if array is None else array.name
        self._coords, self._rows = coords, rows
        self._stage, self._layer, self._position = slab.stage, slab.layer, slab.position

    def unpack(self, context: SharedContext) -> Slab:
        """Rebuild the slab."""
        if self._variable is not None:
            array = xr.DataArray(self._variable, name=self._name).assign_coords(context.labels.coords)
        elif context.array is not None:
            array = context.array[self._position]
        else:
            raise ValueError("a task without activations needs a context whose array workers can read")
        rows = context.rows[self._rows]
        return Slab(array.assign_coords(self._coords), self._stage, self._layer, self._position, rows)


def run_slab_tasks(tasks: Sequence[SlabTask], context: SharedContext) -> list[Any]:
    """Run some tasks one after the other in the worker."""
    return [run_slab_task(context.function, task.unpack(context)) for task in tasks]


def run_slab_task(function: Callable[[Slab], Any], slab: Slab) -> Any:
    """Run `function` on a slab, with one BLAS thread unless the sweep allows more; a note on errors names the slab."""
    try:
        with threads.blas_limit.at_most():
            return function(slab)
    except Exception as error:
        error.add_note(f"while working on {slab.where}")
        raise
