"""Arrays of other programs as one source: NumPy, memory maps, torch, dask, zarr and xarray, read by rows.

Nothing is read before it is asked for, so the memory of an import does not depend on the size of the arrays.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from stratalens.store.errors import InputError, join_names, suggest

AXES = ("stage", "layer", "entity", "token")
OPTIONAL = ("stage", "layer", "token")  # an array may leave these out where the store has one of them
FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Layout:
    """The dims that every array has in the store.

    Attributes:
        stages: names of the stages.
        layers: block indices; empty if no array has layers.
        tokens: labels of the positions.
        rows: number of rows.
        one_layer: whether the caller names a single layer, so that arrays without an axis for it belong to it.
    """

    stages: tuple[str, ...]
    layers: tuple[int, ...]
    tokens: tuple[Any, ...]
    rows: int
    one_layer: bool = False

    def size(self, dim: str) -> int:
        """Return the size of one of the four dims."""
        return {
            "stage": len(self.stages),
            "layer": len(self.layers),
            "entity": self.rows,
            "token": len(self.tokens),
        }[dim]


@dataclass(frozen=True)
class Leaf:
    """One array with named dims.

    Attributes:
        array: anything with shape, dtype and slices.
        dims: name of every axis.
    """

    array: Any
    dims: tuple[str, ...]

    @property
    def dtype(self) -> str:
        """Name of the dtype, without the library's prefix."""
        return dtype_name(self.array)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Sizes of the axes that are not stage, layer, entity or token."""
        return tuple(int(n) for n, dim in zip(self.array.shape, self.dims, strict=True) if dim not in AXES)

    @property
    def feature_dims(self) -> tuple[str, ...]:
        """Names of the axes that are not stage, layer, entity or token."""
        return tuple(dim for dim in self.dims if dim not in AXES)

    def read(self, stage: int, layers: slice, rows: slice) -> NDArray[Any]:
        """Read some rows as an array of shape (layers, rows, tokens, *features); absent axes have size one."""
        place = {"stage": stage, "layer": layers, "entity": rows}
        index = tuple(place.get(dim, slice(None)) for dim in self.dims)
        values = to_numpy(self.array[index])
        dims = [dim for dim in self.dims if dim != "stage"]
        order = [dim for dim in ("layer", "entity", "token") if dim in dims] + list(self.feature_dims)
        values = values.transpose([dims.index(dim) for dim in order])
        for axis, dim in enumerate(("layer", "entity", "token")):
            if dim not in dims:
                values = np.expand_dims(values, axis)
        return values


@dataclass(frozen=True)
class ArraySource:
    """The values of one variable at every stage and layer.

    Attributes:
        name: name of the variable.
        leaves: the arrays by stage; the key None is for all stages.
        by_layer: whether each stage has one array for every layer.
    """

    name: str
    leaves: Mapping[str | None, tuple[Leaf, ...]]
    by_layer: bool = False
    layered: bool = True
    first: Leaf = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", next(iter(self.leaves.values()))[0])

    def read(self, stage: int, name: str, layers: slice, rows: slice) -> NDArray[Any]:
        """Read rows of one stage as an array of shape (layers, rows, tokens, *features)."""
        leaves = self.leaves[None] if None in self.leaves else self.leaves[name]
        if not self.by_layer:
            return leaves[0].read(stage, layers, rows)
        return np.concatenate([leaf.read(stage, slice(0, 1), rows) for leaf in leaves[layers]])

    def row_nbytes(self) -> int:
        """Return the bytes of one row in one layer."""
        tokens = [n for n, dim in zip(self.first.array.shape, self.first.dims, strict=True) if dim == "token"]
        size = 2 if self.first.dtype in ("float16", "bfloat16") else 8 if self.first.dtype == "float64" else 4
        return math.prod(self.first.feature_shape) * math.prod(map(int, tokens)) * size


def dtype_name(array: Any) -> str:
    """Return the name of an array's dtype: "float32" for NumPy's and for torch's.

    >>> dtype_name(np.zeros(2, np.float32))
    'float32'
    """
    name = getattr(array.dtype, "name", None) or str(array.dtype).rpartition(".")[2]
    return str(name)


def to_numpy(values: Any) -> NDArray[Any]:
    """Return what a slice gave as a NumPy array; bfloat16 has the dtype of ml_dtypes."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:
            import ml_dtypes

            bits: NDArray[Any] = values.contiguous().view(torch.int16).numpy()
            return bits.view(ml_dtypes.bfloat16)
        return np.asarray(values.numpy())
    if isinstance(values, xr.DataArray):
        return np.asarray(values.values)
    return np.asarray(values)  # dask computes here


def is_array(value: Any) -> bool:
    """Return whether a value has the parts of an array: shape, dtype and slices."""
    return all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__")) and not isinstance(value, Mapping)


def as_source(
    name: str, value: Any, layout: Layout, features: Sequence[str], *, axes: Sequence[str], dims: Sequence[str] | None
) -> ArraySource:
    """Check the arrays of one variable and name their dims.

    Args:
        name: name of the variable.
        value: an array; {stage: array}; {layer: array}; or {stage: {layer: array}}.
        layout: dims of the store.
        features: names of the feature dims, for arrays that do not name their own.
        axes: those of stage, layer, entity and token that the variable has in the store.
        dims: dims of every array as the caller names them; None recognises them by their number.

    Raises:
        InputError: a value is not an array, a stage or layer is missing, or a shape or a dtype is wrong.
    """
    groups, by_layer = _split(name, value, layout, "layer" in axes)
    resolved = [dim for dim, split in (("stage", None not in groups), ("layer", by_layer)) if split]
    leaves: dict[str | None, tuple[Leaf, ...]] = {}
    for stage, arrays in groups.items():
        labels = [_label(name, stage, layer if by_layer else None) for layer in (layout.layers if by_layer else (0,))]
        leaves[stage] = tuple(
            _leaf(label, array, layout, features, [a for a in axes if a not in resolved], dims)
            for label, array in zip(labels, arrays, strict=True)
        )
    _check_equal(name, [leaf for group in leaves.values() for leaf in group])
    return ArraySource(name, leaves, by_layer, "layer" in axes)


def _split(name: str, value: Any, layout: Layout, layered: bool) -> tuple[dict[str | None, list[Any]], bool]:
    """Return the arrays by stage (None: one array for all), and whether there is one for every layer."""
    if not isinstance(value, Mapping):
        return {None: [value]}, False
    if not value:
        raise InputError(f"{name}: the mapping is empty; give an array, {{stage: array}} or {{layer: array}}")
    if layered and all(isinstance(key, int | np.integer) for key in value):
        return {None: _by_layer(name, value, layout)}, True
    _check_keys(name, "stage", list(value), list(layout.stages))
    groups: dict[str | None, list[Any]] = {}
    nested = [isinstance(value[stage], Mapping) for stage in layout.stages]
    if any(nested) and not (all(nested) and layered):
        raise InputError(f"{name}: give {{layer: array}} at every stage, or one array at every stage")
    for stage in layout.stages:
        groups[stage] = _by_layer(f"{name}, stage {stage!r}", value[stage], layout) if any(nested) else [value[stage]]
    return groups, any(nested)


def _by_layer(name: str, arrays: Mapping[Any, Any], layout: Layout) -> list[Any]:
    _check_keys(name, "layer", list(arrays), list(layout.layers))
    return [arrays[layer] for layer in layout.layers]


def _check_keys(name: str, dim: str, keys: Sequence[Any], expected: Sequence[Any]) -> None:
    absent = [key for key in expected if key not in keys]
    unknown = [key for key in keys if key not in expected]
    if absent or unknown:
        problem = f"no {dim} {absent[0]!r}" if absent else f"unknown {dim} {unknown[0]!r}"
        raise InputError(
            f"{name}: {problem}; it has {join_names(keys)}. {dim}s={list(expected)[:10]!r} needs one array for each"
        )


def _label(name: str, stage: str | None, layer: int | None) -> str:
    at_stage = "" if stage is None else f", stage {stage!r}"
    return f"{name}{at_stage}" + ("" if layer is None else f", layer {layer}")


def _leaf(
    label: str, array: Any, layout: Layout, features: Sequence[str], axes: Sequence[str], dims: Sequence[str] | None
) -> Leaf:
    if not is_array(array):
        raise InputError(
            f"{label}: {type(array).__name__} is not an array. Give a NumPy array, a memory map, a torch tensor, or a "
            "dask, zarr or xarray array"
        )
    if dtype_name(array) not in FLOATS:
        raise InputError(
            f"{label} has dtype {dtype_name(array)}; activations are {', '.join(FLOATS)}. Convert the array first"
        )
    shape = tuple(int(n) for n in array.shape)
    if dims is None and isinstance(array, xr.DataArray):
        dims = [str(dim) for dim in array.dims]
    names = tuple(_guess(label, shape, layout, features, axes) if dims is None else dims)
    if len(names) != len(shape):
        raise InputError(f"{label} has {len(shape)} axes, of sizes {shape}, and dims names {len(names)}: {names}")
    if len(set(names)) != len(names) or "entity" not in names:
        raise InputError(f"{label}: dims {names} must have 'entity' and name every axis once")
    for dim, size in zip(names, shape, strict=True):
        if dim in AXES and dim not in axes:
            raise InputError(f"{label} has a dim {dim!r}, which is one array each here; leave it out: {axes} remain")
        if dim in AXES and size != layout.size(dim):
            raise InputError(_size_message(label, dim, size, layout))
    for dim in axes:
        if dim not in names and layout.size(dim) != 1:
            raise InputError(f"{label} has no dim {dim!r}, and the store has {layout.size(dim)}: its dims are {names}")
    return Leaf(array, names)


def _size_message(label: str, dim: str, size: int, layout: Layout) -> str:
    if dim == "entity":
        return f"{label} has {size} rows, the table has {layout.rows}; give one row of the table for each"
    names = {"stage": layout.stages, "layer": layout.layers, "token": layout.tokens}[dim]
    return f"{label} has {size} along {dim}, but {dim}s names {len(names)}: {join_names(names)}"


def _guess(
    label: str, shape: Sequence[int], layout: Layout, features: Sequence[str], axes: Sequence[str]
) -> tuple[str, ...]:
    """Name the axes of an array that names none: all dims in order, or all but those of size one."""
    full = (*axes, *features)
    single = [dim for dim in axes if dim in OPTIONAL and layout.size(dim) == 1]
    short = tuple(dim for dim in full if dim not in single)
    for names in (full, short):
        if len(names) == len(shape):
            return names
    expected = " or ".join(f"({', '.join(names)})" for names in dict.fromkeys((full, short)))
    raise InputError(
        f"{label} has {len(shape)} axes, of sizes {tuple(shape)}; expected {expected}. Name others with dims="
    )


def _check_equal(name: str, leaves: Sequence[Leaf]) -> None:
    """Raise unless all arrays of a variable have the same features and dtype."""
    first = leaves[0]
    for leaf in leaves[1:]:
        if (leaf.feature_shape, leaf.dtype) != (first.feature_shape, first.dtype):
            raise InputError(
                f"{name}: one array has features {first.feature_shape} of {first.dtype}, another {leaf.feature_shape} "
                f"of {leaf.dtype}; all stages and layers of a site have the same"
            )


def check_dim_names(name: str, dims: Sequence[str]) -> None:
    """Raise InputError for a dim that is probably a misspelled stage, layer, entity or token."""
    for dim in dims:
        if dim not in AXES and (hint := suggest(dim, AXES)).startswith("did you mean"):
            raise InputError(f"dims of {name}: {dim!r}; {hint}, and names of features such as d_model")
