"""What the arrays of `from_arrays` mean: dims of the store, variables, and rows of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.plugin.interop.array_sources import (
    AXES,
    ArraySource,
    Layout,
    as_source,
    check_dim_names,
    is_array,
)
from stratalens.plugin.models.sites import SHORT_NAMES
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.stage import check_stage_name
from stratalens.store.errors import InputError, join_names, suggest
from stratalens.store.format import schema
from stratalens.store.names import check_distinct

Dims = Sequence[str] | Mapping[str, Sequence[str]] | None

OUTSIDE_BLOCKS = ("embed", "pos_embed", "ln_final")
STORE_DTYPES = ("float32", "bfloat16", "float16", "int8")
_HEADS = {"z": ("head", "d_head"), "q": ("head", "d_head"), "k": ("kv_head", "d_head"), "v": ("kv_head", "d_head")}
_FEATURES = {**_HEADS, "result": ("head", "d_model"), "mlp_pre": ("d_mlp",), "mlp_post": ("d_mlp",)}


def check_layout(
    arrays: Mapping[str, Any],
    rows: int,
    stages: Sequence[str] | None,
    layers: Sequence[int] | None,
    tokens: Sequence[str] | Sequence[int] | None,
    dims: Dims,
) -> Layout:
    """Decide stages, layers and tokens of the store; what the caller leaves out comes from the arrays.

    Raises:
        InputError: there are no arrays, or an argument is wrong.
    """
    _check_mapping(arrays)
    if isinstance(dims, Mapping):
        for name in dims:
            if name not in arrays:
                raise InputError(f"dims names {name!r}, which is no array: {suggest(str(name), arrays)}")
    stage_names = _checked_list("stages", stages, _coordinate(arrays, "stage"))
    if stage_names is None:
        stage_names = _stage_keys(arrays) or ["model"]
    for stage in stage_names:
        check_stage_name(stage)
    check_distinct(stage_names, "stage", remedy="give every stage its own name")
    token_list = _checked_list("tokens", tokens, _coordinate(arrays, "token")) or ["last"]
    layer_list = _checked_list("layers", layers, _coordinate(arrays, "layer"))
    if layer_list is None:
        single = [dim for dim, values in (("stage", stage_names), ("token", token_list)) if len(values) == 1]
        layer_list = _layer_keys(arrays) or _counted_layers(arrays, dims, single)
    wrong = [n for n in layer_list if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0]
    if wrong:
        raise InputError(f"layers has {wrong[0]!r}: layers are block indices, 0 or more")
    check_distinct([int(n) for n in layer_list], "layer", remedy="give every layer once")
    return Layout(
        stages=tuple(str(s) for s in stage_names),
        layers=tuple(int(n) for n in layer_list),
        tokens=tuple(int(t) if isinstance(t, np.integer) else t for t in token_list),
        rows=rows,
        one_layer=layers is not None and len(layer_list) == 1,
    )


def _check_mapping(arrays: Any) -> None:
    if not isinstance(arrays, Mapping) or not arrays:
        what = "empty" if isinstance(arrays, Mapping) else type(arrays).__name__
        raise InputError(f"arrays is {what}: give a mapping from site to array, such as {{'resid_post': x}}")


def _checked_list(name: str, values: Any, coordinate: list[Any] | None) -> list[Any] | None:
    """Return an argument as a list, or the coordinate of a DataArray; both must agree."""
    if values is None:
        return coordinate
    if isinstance(values, str | int) or not hasattr(values, "__iter__"):
        raise InputError(f"{name}={values!r}: give a list, such as {name}=[{values!r}]")
    listed = list(values)
    if not listed and name != "layers":
        raise InputError(f"{name} is empty; name at least one, or leave the argument out")
    if coordinate is not None and [str(v) for v in listed] != [str(v) for v in coordinate]:
        raise InputError(
            f"{name}={listed[:10]!r}, but the coordinate of the DataArray is {coordinate[:10]!r}; leave {name} out, or "
            "correct the coordinate"
        )
    return listed


def _arrays_of(value: Any) -> list[Any]:
    """Return the arrays of a nested mapping."""
    return [leaf for child in value.values() for leaf in _arrays_of(child)] if isinstance(value, Mapping) else [value]


def _coordinate(arrays: Mapping[str, Any], dim: str) -> list[Any] | None:
    """Return the coordinate of the DataArrays that have one; it is the same in all of them.

    Raises:
        InputError: two arrays have different coordinates, or the same in another order.
    """
    named: tuple[str, list[Any]] | None = None
    for name, value in arrays.items():
        for array in _arrays_of(value):
            if isinstance(array, xr.DataArray) and dim in array.dims and dim in array.coords:
                values: list[Any] = array[dim].values.tolist()
                if named is not None and values != named[1]:
                    raise InputError(
                        f"the coordinate {dim} of {name} is {join_names(values)}, that of {named[0]} is "
                        f"{join_names(named[1])}; give all arrays the same, for example with .reindex({dim}=...)"
                    )
                named = named or (name, values)
    return None if named is None else named[1]


def _stage_keys(arrays: Mapping[str, Any]) -> list[str] | None:
    for value in arrays.values():
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return list(value)
    return None


def _layer_keys(arrays: Mapping[str, Any]) -> list[int] | None:
    for value in arrays.values():
        for child in value.values() if isinstance(value, Mapping) else ():
            if isinstance(child, Mapping):
                return sorted(child) if all(isinstance(key, int | np.integer) for key in child) else list(child)
        if isinstance(value, Mapping) and value and all(isinstance(key, int | np.integer) for key in value):
            return sorted(int(key) for key in value)
    return None


def _counted_layers(arrays: Mapping[str, Any], dims: Dims, single: Sequence[str]) -> list[int]:
    """Count the layers of the first array that has them all; no array has layers if no site is in the blocks.

    Args:
        arrays: the arrays by name.
        dims: names of their axes, if the caller gives them.
        single: those of stage and token that have size one, and may be left out.
    """
    for name, value in arrays.items():
        leaves = _arrays_of(value)
        if not in_blocks(name, dims) or _statistic_of(name, arrays) is not None or not leaves:
            continue
        names, array = _dims_of(name, dims), leaves[0]
        if isinstance(array, xr.DataArray) and names is None:
            names = [str(dim) for dim in array.dims]
        if names is not None:
            if "layer" in names and len(names) == len(getattr(array, "shape", ())):
                return list(range(array.shape[list(names).index("layer")]))
            continue
        if is_array(array):
            full = [dim for dim in AXES if dim != "stage" or not isinstance(value, Mapping)]
            for axes in (full, [dim for dim in full if dim not in single]):
                if len(array.shape) == len(axes) + len(features_of(name)):
                    return list(range(int(array.shape[axes.index("layer")])))
            raise InputError(
                f"{name} has {len(array.shape)} axes, of sizes {tuple(array.shape)}, so its layers cannot be counted; "
                "pass layers=[...]"
            )
    return []


def _dims_of(name: str, dims: Dims) -> list[str] | None:
    chosen = dims.get(name) if isinstance(dims, Mapping) else dims
    if isinstance(chosen, str):
        raise InputError(f"dims={chosen!r}: give a list of names, such as ('entity', 'layer', 'd_model')")
    return None if chosen is None else [str(dim) for dim in chosen]


def in_blocks(name: str, dims: Dims, one_layer: bool = False) -> bool:
    """Return whether a site has layers.

    Embeddings and the final norm have none, nor has a name of the caller's own whose dims have no layer, unless the
    caller names the one layer.
    """
    if name in OUTSIDE_BLOCKS or name in schema.OUTPUT_STATISTICS:
        return False
    chosen = _dims_of(name, dims)
    return name in SHORT_NAMES or chosen is None or "layer" in chosen or one_layer


def features_of(name: str) -> tuple[str, ...]:
    """Return the names of the feature dims of a site.

    >>> features_of("resid_post"), features_of("z")
    (('d_model',), ('head', 'd_head'))
    """
    return _FEATURES.get(name, ("d_model",))


def array_variables(
    arrays: Mapping[str, Any], layout: Layout, dims: Dims, dtype: str
) -> tuple[dict[str, ArraySource], dict[str, schema.Variable]]:
    """Check every array and describe its variable in the store.

    Returns:
        Sources and variables by name.

    Raises:
        InputError: a name, shape or dtype is wrong.
    """
    if dtype not in ("auto", *STORE_DTYPES):
        raise InputError(f"dtype={dtype!r}: {suggest(str(dtype), ('auto', *STORE_DTYPES))}")
    sources: dict[str, ArraySource] = {}
    variables: dict[str, schema.Variable] = {}
    statistics = {v.name: v for v in [*schema.output_variables(()), schema.answer_variable(), schema.entity_variable()]}
    sizes: dict[str, int] = {}
    for name in sorted(arrays, key=lambda name: name in statistics or _statistic_of(name, arrays) is not None):
        schema.check_name(name, "site")
        known = statistics.get(name)
        if known is None and (site := _statistic_of(name, arrays)) is not None:
            known = next(v for v in schema.statistic_variables(variables[site]) if v.name == name)
        chosen = _dims_of(name, dims)
        if chosen is not None:
            check_dim_names(name, chosen)
        if known is not None:
            axes, features = [d for d in known.dims if d in AXES], known.feature_dims
        else:
            axes = [d for d in AXES if d != "layer" or in_blocks(name, dims, layout.one_layer)]
            features = features_of(name)
        source = as_source(name, arrays[name], layout, features, axes=axes, dims=chosen)
        if known is None:
            known = _site(name, source, "layer" in axes, dtype, sizes)
        elif source.first.feature_shape != known.shape:
            raise InputError(f"{name} is a statistic with dims {known.dims}: its features are {known.shape}")
        sources[name], variables[name] = source, known
    return sources, variables


def _statistic_of(name: str, arrays: Mapping[str, Any]) -> str | None:
    """Return the site of a statistic such as resid_post_l2, if its site is among the arrays."""
    site, _, statistic = name.rpartition("_")
    return site if statistic in schema.STATISTICS and site in arrays else None


def _site(name: str, source: ArraySource, layered: bool, dtype: str, sizes: dict[str, int]) -> schema.Variable:
    """Describe the variable of a site; a feature dim of another size than before gets the name of the site."""
    shape = source.first.feature_shape
    if not shape:
        raise InputError(
            f"{name} has no feature dim; activations have one or more after stage, layer, entity and token"
        )
    features = []
    for dim, size in zip(source.first.feature_dims, shape, strict=True):
        features.append(dim if sizes.setdefault(dim, size) == size else f"{name}_{dim}")
    default = f"imported.{{layer}}.{name}" if layered else f"imported.{name}"
    own = "float32" if source.first.dtype == "float64" else source.first.dtype
    hook = SHORT_NAMES.get(name, (default,))[0]
    return schema.site_variable(
        name,
        features,
        shape,
        own if dtype == "auto" else dtype,
        hook,
        doc=f"activations of {name} from existing arrays",
    )


def check_rows(arrays: Mapping[str, Any], table: PromptTable, ids: Sequence[Any] | None) -> None:
    """Compare the names of the arrays' rows with those of the table.

    Args:
        arrays: the arrays; a DataArray with a coordinate `entity` names its rows.
        table: the prompts.
        ids: names of the rows of all arrays, if the caller gives them.

    Raises:
        InputError: names the first row that differs, and says whether only the order does.
    """
    coordinate = _coordinate(arrays, "entity")  # the arrays agree, also where the table does not name its rows
    if table.has_default_ids:
        coordinate = None
    for what, values in (("ids", None if ids is None else list(ids)), ("the coordinate entity", coordinate)):
        if values is None:
            continue
        expected = [str(name) for name in table.labels()["entity"].tolist()]
        actual = [str(value) for value in values]
        if len(actual) != len(expected):
            raise InputError(f"{what} names {len(actual)} rows, the table has {len(expected)}")
        different = [row for row, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b]
        if different:
            row = different[0]
            if set(actual) == set(expected):
                remedy = "The order differs: sort the table, for example frame.set_index('prompt_id').loc[ids]"
            else:
                absent = join_names(sorted(set(actual) - set(expected)) or ["repeated names"], 3)
                remedy = f"The table has no row {absent}: give it a column prompt_id with the names of the arrays' rows"
            raise InputError(f"row {row} is {actual[row]!r} in {what} and {expected[row]!r} in the table. {remedy}.")
