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

from stratalens.analyses.engine.slabs import SiteData, Slab
from stratalens.analyses.engine.threads import blas_threads
from stratalens.analyses.labels import Array

_dask: Any = dask  # its functions have no types


class Common:
    """Function, labels and rows that all slabs of one sweep share.

    Attributes:
        function: function of a Slab.
        labels: [Dataset without variables] coordinates that are the same in all slabs, with their indexes.
        rows: the different selections of rows (those of most stages are equal).
    """

    # A plain class, like Slab: dask looks inside dataclasses.
    def __init__(self, function: Callable[[Slab], Any], source: SiteData) -> None:
        self.function = function
        coords = source.array.coords
        self.labels = coords.to_dataset().drop_vars([k for k, c in coords.items() if {"stage", "layer"} & {*c.dims}])
        self.rows: list[Array] = []

    def pack(self, slab: Slab) -> Parcel:
        """The parcel of one of the slabs."""
        number = next((i for i, rows in enumerate(self.rows) if np.array_equal(rows, slab.rows)), len(self.rows))
        if number == len(self.rows):
            self.rows.append(slab.rows)
        return Parcel(slab, {k: c.variable for k, c in slab.array.coords.items() if k not in self.labels}, number)


class Parcel:
    """One slab without what it has in common with the others.

    Attributes:
        where: names the slab in messages.
    """

    def __init__(self, slab: Slab, coords: dict[Any, xr.Variable], rows: int) -> None:
        self.where = slab.where
        self._variable = slab.array.variable
        if slab.array.chunks is not None:  # without the tasks of all other slabs
            (data,) = _dask.optimize(slab.array.data)
            self._variable = self._variable.copy(data=data)
        self._name, self._coords, self._rows = slab.array.name, coords, rows
        self._slab = slab.stage, slab.layer, slab.position

    def unpack(self, common: Common) -> Slab:
        """The slab again."""
        array = xr.DataArray(self._variable, name=self._name).assign_coords(common.labels.coords)
        return Slab(array.assign_coords(self._coords), *self._slab, common.rows[self._rows])


def run_parcel(parcel: Parcel, common: Common) -> Any:
    """Result of one slab, in the worker."""
    return run_one(common.function, parcel.unpack(common))


def run_parcels(parcels: Sequence[Parcel], common: Common) -> list[Any]:
    """Results of some slabs, one after the other."""
    return [run_parcel(parcel, common) for parcel in parcels]


def run_one(function: Callable[[Slab], Any], slab: Slab) -> Any:
    """Run `function` on a slab with one BLAS thread; errors say at which slab."""
    try:
        with blas_threads():
            return function(slab)
    except Exception as error:
        error.add_note(f"while working on {slab.where}")
        raise
