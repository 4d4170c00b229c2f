"""Assembly: from one result per slab to one labelled result over all stages and layers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.sweep.tasks import SharedContext, SlabTask, run_slab_task
from stratalens.store.errors import InputError

UNNAMED = "__bare__"  # the variable of a Dataset that was a DataArray, and the attribute with its name


def as_dataset(result: object) -> xr.Dataset:
    """Convert a DataArray, Dataset or scalar to a Dataset without scalar coordinates, which differ between slabs.

    Raises:
        InputError: the result has another type.
    """
    if isinstance(result, xr.Dataset | xr.DataArray):
        unscaled = result.drop_vars([k for k, c in result.coords.items() if c.ndim == 0])
        if isinstance(unscaled, xr.Dataset):
            return with_text_as_objects(unscaled)
        dataset = unscaled.rename(None).to_dataset(name=UNNAMED)
        return with_text_as_objects(dataset.assign_attrs({} if result.name is None else {UNNAMED: str(result.name)}))
    if isinstance(result, int | float | np.generic):
        return xr.Dataset({UNNAMED: ((), result)})
    raise InputError(
        f"the function returned a {type(result).__name__}; it must return a DataArray or Dataset, so that results "
        f"stay labelled (e.g. slab.mean('entity'), or xr.DataArray(array, dims=('token', ...)))"
    )


def unwrap(result: xr.Dataset) -> xr.DataArray | xr.Dataset:
    """Convert a Dataset that `as_dataset` built from a DataArray back to a DataArray."""
    if list(result.data_vars) != [UNNAMED]:
        return result
    return result[UNNAMED].rename(result.attrs.get(UNNAMED))


def multi_indexed(result: xr.Dataset) -> list[Hashable]:
    """Coordinates that are a MultiIndex, or one of its levels."""
    return [k for k, index in result.xindexes.items() if isinstance(index, xr.indexes.PandasMultiIndex)]


def with_text_as_objects(result: xr.Dataset) -> xr.Dataset:
    """Convert text of fixed width, and that of zarr, to Python strings: one slab's width would cut another's text."""
    levels = multi_indexed(result)
    texts = {
        k: (v.dims, v.values.astype(object), v.attrs)
        for k, v in result.variables.items()
        if v.dtype.kind in "UT" and k not in levels
    }
    labels = {k: v for k, v in texts.items() if k in result.coords}
    return result.assign({k: v for k, v in texts.items() if k not in labels}).assign_coords(labels)


def noise_slab(slab: Slab) -> xr.DataArray:
    """Standard normal noise with the shape and labels of a slab; reads nothing."""
    shape = (len(slab.rows), *slab.array.shape[1:])
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    coords = {
        k: c.isel(entity=slab.rows).variable if "entity" in c.dims else c.variable for k, c in slab.array.coords.items()
    }
    return xr.DataArray(noise, dims=slab.array.dims, coords=coords, name=slab.array.name, attrs=slab.array.attrs)


class Layout:
    """Names, dims, shapes and labels of a slab's result, which the results of all other slabs must have too.

    Args:
        example: result of one slab.

    Raises:
        InputError: the result has a dim `stage` or `layer`.
    """

    def __init__(self, example: xr.Dataset) -> None:
        for dim in ("stage", "layer"):
            if dim in example.dims:
                raise InputError(f"the function's result has a dim {dim!r}, which the sweep adds; rename it")
        self.example = example
        self.names = [str(name) for name in example.data_vars]

    def arrays(self, result: xr.Dataset, where: str) -> list[Array]:
        """Values of a result in the order and dtypes of the layout.

        Args:
            result: result of one slab.
            where: description of the slab, for messages.

        Raises:
            InputError: the result differs in variables, dims, shape, dtype or labels; says how.
        """
        if {str(n) for n in result.data_vars} != {*self.names}:
            raise InputError(f"{where}: the result has {list(result.data_vars)}, other slabs have {self.names}")
        arrays = []
        for name in self.names:
            mine, other = result[name], self.example[name]
            described = "" if name == UNNAMED else f" {name!r}"
            if mine.dims != other.dims or mine.shape != other.shape:
                raise InputError(
                    f"{where}: the result{described} has {dict(mine.sizes)}, other slabs (or the template) have "
                    f"{dict(other.sizes)}; results must have one shape, whatever the values (and the rows recorded)"
                )
            # Only a float may lose digits; a narrower integer or text would lose information.
            rule: Literal["same_kind", "safe"] = "same_kind" if other.dtype.kind in "fc" else "safe"
            if not np.can_cast(mine.dtype, other.dtype, rule):
                raise InputError(f"{where}: the result{described} is {mine.dtype}, other slabs have {other.dtype}")
            arrays.append(np.asarray(mine.values, dtype=other.dtype))
        for key, coord in self.example.coords.items():
            if key not in result.coords or not coord.variable.equals(result.coords[key].variable):
                raise InputError(f"{where}: the labels {key!r} of the result differ from those of other slabs")
        return arrays

    def dataset(self, arrays: Sequence[Any]) -> xr.Dataset:
        """Combine arrays with leading dims (stage, layer), one for each variable, into a Dataset."""
        variables = {
            name: (("stage", "layer", *self.example[name].dims), array, self.example[name].attrs)
            for name, array in zip(self.names, arrays, strict=True)
        }
        coords = {k: c.variable for k, c in self.example.coords.items()}
        return xr.Dataset(variables, coords=coords, attrs=self.example.attrs)

    def lazy(self, context: SharedContext, slabs: Sequence[Slab], shape: tuple[int, int]) -> xr.Dataset:
        """Build a dask-backed Dataset with one task a slab, which computes all variables of the slab."""
        run = delayed(_run_task, nout=len(self.names), traverse=False)
        layout, shared = (delayed(value, traverse=False, pure=False) for value in (self, context))
        results = [run(layout, shared, context.pack(slab)) for slab in slabs]
        arrays = []
        for k, name in enumerate(self.names):
            example = self.example[name]
            blocks = [da.from_delayed(result[k], example.shape, example.dtype) for result in results]
            rows = [da.stack(blocks[i * shape[1] : (i + 1) * shape[1]]) for i in range(shape[0])]
            arrays.append(da.stack(rows))
        return self.dataset(arrays)


class ResultBuffer:
    """Results in memory, one slab after the other in any order.

    Args:
        layout: of each slab's result.
        shape: (stages, layers).
    """

    def __init__(self, layout: Layout, shape: tuple[int, int]) -> None:
        self.layout, self.shape = layout, shape
        self.arrays = [np.empty((*shape, *layout.example[n].shape), layout.example[n].dtype) for n in layout.names]

    def put(self, slab: Slab, result: xr.Dataset) -> None:
        """Write one slab's result to its position."""
        for array, values in zip(self.arrays, self.layout.arrays(result, slab.where), strict=True):
            array[slab.position] = values


def _run_task(layout: Layout, context: SharedContext, task: SlabTask) -> list[Array]:
    slab = task.unpack(context)
    return layout.arrays(run_slab_task(context.function, slab), slab.where)
