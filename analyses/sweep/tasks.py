"""What a task carries to the worker that runs it: how to read one slab, a few kilobytes.

What all slabs of a sweep have in common (the function, the labels of rows, which
rows are used) travels once, as one object that every task names. The
activations do not travel at all, unless they only exist in this process's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask
import numpy as np
import xarray as xr

from stratalens.analyses.data.groups import Array
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.threads import blas_threads
from stratalens.store.reading.selection import stored_selection

_dask: Any = dask  # its functions have no types


class SharedContext:
    """Function, labels and rows that all slabs of one sweep share.

    Args:
        function: function of a Slab.
        source: of the slabs.
        slabs: all of them, as what they share must be whole before the first parcel is sent.

    Attributes:
        function: function of a Slab.
        labels: [Dataset without variables] coordinates that are the same in all slabs, with their indexes.
        rows: the different selections of rows (those of most stages are equal).
        array: [DataArray] all slabs, where they are in a store that workers open by themselves; else None.
    """

    # A plain class, like Slab: dask looks inside dataclasses.
    def __init__(self, function: Callable[[Slab], Any], source: SiteData, slabs: Sequence[Slab]) -> None:
        self.function = function
        coords = source.array.coords
        self.array = None if stored_selection(source.array.variable) is None else source.array
        self.labels = coords.to_dataset().drop_vars([k for k, c in coords.items() if {"stage", "layer"} & {*c.dims}])
        self.rows: list[Array] = []
        self._number: dict[int, int] = {}  # by identity: the layers of a stage share one array
        for rows in {id(slab.rows): slab.rows for slab in slabs}.values():
            same = (i for i, other in enumerate(self.rows) if np.array_equal(other, rows))
            self._number[id(rows)] = next(same, len(self.rows))
            if self._number[id(rows)] == len(self.rows):
                self.rows.append(rows)

    def __getstate__(self) -> dict[str, Any]:
        """Identities mean nothing elsewhere."""
        return {**self.__dict__, "_number": {}}

    def pack(self, slab: Slab) -> SlabTask:
        """The parcel of one of the slabs."""
        number = self._number[id(slab.rows)]
        if self.array is not None:
            return SlabTask(slab, None, {}, number)
        own = {k: v for k, v in slab.array.coords.variables.items() if k not in self.labels}
        return SlabTask(slab, slab.array, own, number)


class SlabTask:
    """One slab without what it has in common with the others: its place alone, or also its activations."""

    def __init__(self, slab: Slab, array: xr.DataArray | None, coords: dict[Any, xr.Variable], rows: int) -> None:
        self._variable = None if array is None else array.variable
        if array is not None and array.chunks is not None:  # without the tasks of all other slabs
            (data,) = _dask.optimize(array.data)
            self._variable = array.variable.copy(data=data)
        self._name, self._coords, self._rows = None if array is None else array.name, coords, rows
        self._slab = slab.stage, slab.layer, slab.position

    def unpack(self, common: SharedContext) -> Slab:
        """The slab again."""
        if self._variable is None:
            assert common.array is not None
            array = common.array[self._slab[2]]
        else:
            array = xr.DataArray(self._variable, name=self._name).assign_coords(common.labels.coords)
        return Slab(array.assign_coords(self._coords), *self._slab, common.rows[self._rows])


def run_slab_tasks(parcels: Sequence[SlabTask], common: SharedContext) -> list[Any]:
    """Results of some slabs, one after the other, in the worker."""
    return [run_slab_task(common.function, parcel.unpack(common)) for parcel in parcels]


def run_slab_task(function: Callable[[Slab], Any], slab: Slab) -> Any:
    """Run `function` on a slab with one BLAS thread; errors say at which slab."""
    try:
        with blas_threads():
            return function(slab)
    except Exception as error:
        error.add_note(f"while working on {slab.where}")
        raise
