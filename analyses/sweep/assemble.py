"""From one result per slab to one labelled result over all stages and layers.

`Layout` is learned from one result and holds every other one to it, filled at
once (`Filled`) or lazily (`lazy`). Running the slabs is in sweep.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
import xarray as xr

from stratalens.analyses.data.groups import Array
from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.sweep.tasks import SharedContext, SlabTask, run_slab_task
from stratalens.store.errors import InputError

_dask: Any = dask  # their functions have no types


_da: Any = da


BARE = "__bare__"  # the variable that stands for a result that was a DataArray


def as_dataset(result: object) -> xr.Dataset:
    """A DataArray, Dataset or scalar as a Dataset without scalar coordinates (they differ from slab to slab)."""
    if isinstance(result, xr.DataArray):
        scalars = [k for k, c in result.coords.items() if c.ndim == 0]
        bare = result.drop_vars(scalars).rename(None)
        found = bare.to_dataset(name=BARE).assign_attrs({} if result.name is None else {BARE: str(result.name)})
        return _of_any_length(found)
    if isinstance(result, xr.Dataset):
        return _of_any_length(result.drop_vars([k for k, c in result.coords.items() if c.ndim == 0]))
    if isinstance(result, int | float | np.generic):
        return xr.Dataset({BARE: ((), result)})
    raise InputError(
        f"the function gave back a {type(result).__name__}; it must give a DataArray or Dataset, so that results "
        f"stay labelled (e.g. slab.mean('entity'), or xr.DataArray(array, dims=('token', ...)))"
    )


def multi_indexed(result: xr.Dataset) -> list[Hashable]:
    """Coordinates that are, or are levels of, a MultiIndex."""
    return [k for k, index in result.xindexes.items() if isinstance(index, xr.indexes.PandasMultiIndex)]


def _of_any_length(result: xr.Dataset) -> xr.Dataset:
    """Text of a fixed width as Python's: the width of one slab's would cut that of another, and zarr has none."""
    several = multi_indexed(result)
    texts = {k: (v.dims, v.values.astype(object), v.attrs) for k, v in result.variables.items() if v.dtype.kind == "U"}
    labels = {k: v for k, v in texts.items() if k in result.coords and k not in several}
    return result.assign({k: v for k, v in texts.items() if k in result.data_vars}).assign_coords(labels)


def unwrap(result: xr.Dataset) -> xr.DataArray | xr.Dataset:
    """What `as_dataset` made of a DataArray, as a DataArray again."""
    if list(result.data_vars) != [BARE]:
        return result
    return result[BARE].rename(result.attrs.get(BARE))


def noise_slab(slab: Slab) -> xr.DataArray:
    """Standard normal noise with the shape and labels of a slab; nothing is read."""
    shape = (len(slab.rows), *slab.array.shape[1:])
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    coords = {
        k: c.isel(entity=slab.rows).variable if "entity" in c.dims else c.variable for k, c in slab.array.coords.items()
    }
    return xr.DataArray(noise, dims=slab.array.dims, coords=coords, name=slab.array.name, attrs=slab.array.attrs)


class Layout:
    """Names, dims, shapes and labels of a slab's result, which all other slabs must share."""

    def __init__(self, example: xr.Dataset) -> None:
        for dim in ("stage", "layer"):
            if dim in example.dims:
                raise InputError(f"the function's result has a dim {dim!r}, which the sweep adds; rename it")
        self.example = example
        self.names = [str(name) for name in example.data_vars]

    def arrays(self, result: xr.Dataset, where: str) -> list[Array]:
        """Values of a result in the order and dtypes of the layout.

        Raises:
            InputError: it differs in variables, dims, shape, dtype or labels; says how, and at which slab.
        """
        if {str(n) for n in result.data_vars} != {*self.names}:
            raise InputError(f"{where}: the result has {list(result.data_vars)}, other slabs have {self.names}")
        out = []
        for name in self.names:
            mine, other = result[name], self.example[name]
            if mine.dims != other.dims or mine.shape != other.shape:
                raise InputError(
                    f"{where}: the result{_of(name)} has {dict(mine.sizes)}, other slabs (or the template) have "
                    f"{dict(other.sizes)}; results must have one shape, whatever the values (and the rows recorded)"
                )
            # Only a float may lose digits; a narrower integer or text would lose what it says.
            rule: Literal["same_kind", "safe"] = "same_kind" if other.dtype.kind in "fc" else "safe"
            if not np.can_cast(mine.dtype, other.dtype, rule):
                raise InputError(f"{where}: the result{_of(name)} is {mine.dtype}, other slabs have {other.dtype}")
            out.append(np.asarray(mine.values, dtype=other.dtype))
        for key, coord in self.example.coords.items():
            if key not in result.coords or not coord.variable.equals(result.coords[key].variable):
                raise InputError(f"{where}: the labels {key!r} of the result differ from those of other slabs")
        return out

    def dataset(self, arrays: Sequence[Any]) -> xr.Dataset:
        """Arrays with (stage, layer) in front as a Dataset."""
        variables = {
            name: (("stage", "layer", *self.example[name].dims), array, self.example[name].attrs)
            for name, array in zip(self.names, arrays, strict=True)
        }
        coords = {k: c.variable for k, c in self.example.coords.items()}
        return xr.Dataset(variables, coords=coords, attrs=self.example.attrs)

    def lazy(self, common: SharedContext, slabs: Sequence[Slab], shape: tuple[int, int]) -> xr.Dataset:
        """Dask-backed Dataset, one task a slab; every variable of a slab comes from the same task."""
        one = _dask.delayed(_one, nout=len(self.names), traverse=False)
        parcels = [common.pack(slab) for slab in slabs]
        layout, shared = (_dask.delayed(part, traverse=False, pure=False) for part in (self, common))
        parts = [one(layout, shared, parcel) for parcel in parcels]
        arrays = []
        for k, name in enumerate(self.names):
            example = self.example[name]
            blocks = [_da.from_delayed(part[k], example.shape, example.dtype) for part in parts]
            stacked = _da.stack(blocks)
            arrays.append(stacked.reshape(*shape, *example.shape) if example.ndim == 0 else _fold(stacked, shape))
        return self.dataset(arrays)


class Filled:
    """Results in memory, filled slab by slab in any order."""

    def __init__(self, layout: Layout, shape: tuple[int, int]) -> None:
        self.layout, self.shape = layout, shape
        self.arrays = [np.empty((*shape, *layout.example[n].shape), layout.example[n].dtype) for n in layout.names]

    def put(self, slab: Slab, result: xr.Dataset) -> None:
        """Put one slab's result in its place."""
        for whole, part in zip(self.arrays, self.layout.arrays(result, slab.where), strict=True):
            whole[slab.position] = part


def _one(layout: Layout, common: SharedContext, parcel: SlabTask) -> list[Array]:
    slab = parcel.unpack(common)
    return layout.arrays(run_slab_task(common.function, slab), slab.where)


def _fold(stacked: Any, shape: tuple[int, int]) -> Any:
    rows = [stacked[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]
    return _da.stack(rows)


def _of(name: str) -> str:
    return "" if name == BARE else f" {name!r}"
