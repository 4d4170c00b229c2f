"""open_store: a store as a lazy, labelled xarray.Dataset.

The root zarr.json and the commit records describe a store completely, so opening takes the same time for any size.
Labels of up to `EAGER_LABELS` rows are read and indexed at once. Labels of more rows stay lazy;
`ds.set_xindex("entity")` builds the index on request.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.store.errors import InputError, LabelWarning
from stratalens.store.format import metadata
from stratalens.store.format.int8 import summarize_errors
from stratalens.store.format.schema import Variable, recorded_variable
from stratalens.store.reading.chunks import BFLOAT16
from stratalens.store.reading.joining import (
    Ids,
    check_ids,
    check_joinable,
    check_unique_ids,
    prefixed_columns,
    store_prefixes,
)
from stratalens.store.reading.json_text import JsonText
from stratalens.store.reading.lazy_arrays import (
    Exposure,
    LabelArray,
    LazyArray,
    RecordedInAllGroups,
    ScaledArray,
    VariableArray,
    concatenate,
    lazy_variable,
)
from stratalens.store.reading.slabs import SlabReader
from stratalens.store.reading.staleness import LabelsChangedError, StalenessCheck
from stratalens.store.state.index import attach_index, detach_records
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.missing_rows import missing_rows
from stratalens.store.state.store_files import check_store_files
from stratalens.store.storage.object_store import RemoteStorage
from stratalens.store.storage.resolve import is_url, storage_at

EAGER_LABELS = 200_000

_ATTEMPTS = 10  # to read labels that another process is changing

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class _OpenedStore:
    """The lazy arrays of one store; `key` is a hash of its content."""

    store: Store
    variables: dict[str, LazyArray]
    labels: dict[str, LazyArray]
    recorded: LazyArray
    key: str
    missing: list[str]


def open_store(
    path: Path | Sequence[Path],
    *,
    chunks: Literal["auto"] | None = "auto",
    verify: bool = True,
    dtype: Literal["float32", "bfloat16", "bits"] = "float32",
    ids: Ids = "keep",
) -> xr.Dataset:
    """Open a store as a lazy Dataset.

    Several stores of one run with different prompts are joined along entity.

    Args:
        path: folder or fsspec URL of a store (s3://..., https://..., hf://datasets/USER/NAME@REVISION), or a list of
            them to join along entity. Chunks from a URL are kept in a local cache.
        chunks: "auto" returns dask arrays whose chunks are several blocks of one stage and layer. None returns xarray's
            own lazy arrays without dask, which are faster for a few rows.
        verify: compare every chunk that is read with its crc32c. The first read of a few rows reads their chunks whole.
        dtype: dtype of sites stored as bfloat16: "float32" (exact), "bfloat16" (of ml_dtypes), or "bits" (uint16).
            Sites scaled to int8 are float32 too; with "bits" they are int8, to be multiplied by `<site>_scale`.
        ids: prompt ids of joined stores. "keep" needs different ids in all stores. "prefix" puts the name of the
            store before each id ("run-a/p1"), so equal rows may be in several stores.

    Returns:
        Dataset with stages in the order of `stage_order`, every label column as a coordinate, and these variables:

        - sites and statistics (stage, layer, entity, token, features): each has some of these dims.
        - recorded (stage, entity): bool, whether all variables of the row were recorded. If some were not, the
          attribute `missing` lists them with the reason: not started, interrupted, repaired or damaged.
        - exposure (stage, entity): float32, if there is a label column `trained_stage`.

    Raises:
        InputError: there is no store at `path`, a newer stratalens wrote it, or access to it is refused.
        UnreachableError: the server of a URL does not answer.
        DamagedError: metadata or a commit record is damaged. Reading values later raises it for a damaged chunk; the
            message names stage, site, layer and entity rows.
        MismatchError: the stores do not belong together, or two of them have the same prompt id.

    Example:
        >>> ds = open_store("run.zarr")  # doctest: +SKIP
        >>> ds.resid_post.isel(stage=-1, layer=3).values  # doctest: +SKIP
    """
    if dtype not in ("float32", "bfloat16", "bits"):
        raise InputError(f"dtype is {dtype!r}: use 'float32', 'bfloat16' or 'bits'")
    check_ids(ids)
    if chunks not in ("auto", None):
        raise InputError(f"chunks is {chunks!r}: use 'auto' or None; ds.chunk(...) changes them afterwards")
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise InputError("path is an empty list: give open_store a folder, or a list of folders")
    for attempt in range(_ATTEMPTS):
        try:
            return _open_stores(paths, chunks=chunks, verify=verify, dtype=dtype, ids=ids)
        except LabelsChangedError:  # a relabel finished while the labels were read
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError


def _open_stores(paths: Sequence[Path], *, chunks: str | None, verify: bool, dtype: str, ids: str) -> xr.Dataset:
    """Open stores as one Dataset, as `open_store` describes."""
    stores = [_open_one(load(storage_at(p)), verify=verify, dtype=dtype) for p in paths]
    check_joinable([opened.store for opened in stores])
    if ids == "prefix" and len(stores) > 1:
        prefixes = store_prefixes([opened.store.path for opened in stores])
        stores = [
            replace(opened, labels=prefixed_columns(opened.labels, prefix), key=f"{opened.key} {prefix}")
            for opened, prefix in zip(stores, prefixes, strict=True)
        ]
    rows = sum(opened.store.entities for opened in stores)
    coords = _coordinates(stores[0].store) | _label_coordinates(stores, rows)
    data = _variables(stores, chunks) | _recorded_flags(stores)
    if "recorded_0" in data:
        for variable in data.values():
            if variable.attrs.get("recorded") == "recorded":
                variable.attrs["recorded"] = "recorded_0"
    if "trained_stage" in stores[0].store.label_types:
        data["exposure"] = _exposure(stores, coords["stage_order"].values)
    dataset = _assemble(data, coords, lazy_entity=rows > EAGER_LABELS, attrs=_attributes(stores))
    check_unique_ids([opened.labels["entity"] for opened in stores], [opened.store.path for opened in stores])
    return dataset


def _open_one(store: Store, *, verify: bool, dtype: str) -> _OpenedStore:
    """Return the lazy arrays of one store."""
    attach_index(store)
    check_store_files(store)
    commits = store.commits()
    detach_records(store.storage)
    stages = _stage_order(store)
    staleness = StalenessCheck(store)
    variables: dict[str, LazyArray] = {}
    for name, layout in store.layouts.items():
        is_bfloat16 = layout.variable.dtype == "bfloat16"
        committed = commits.present[store.group_of[name]]
        decode = is_bfloat16 and dtype == "float32"
        reader = SlabReader(store, layout, committed, decode=decode, verify=verify, staleness=staleness)
        variables[name] = VariableArray(reader, stages, view=BFLOAT16 if is_bfloat16 and dtype == "bfloat16" else None)
    for name, layout in store.layouts.items() if dtype != "bits" else ():
        numbers, scale = variables[name], variables.get(layout.variable.scaled_by)
        if isinstance(numbers, VariableArray) and isinstance(scale, VariableArray):
            variables[name] = ScaledArray(numbers, scale)
    columns: dict[str, LazyArray] = {name: LabelArray(store, name, staleness) for name in store.label_types}
    flags = [variables[recorded_variable(group).name] for group in range(len(store.groups))]
    recorded = flags[0] if len(flags) == 1 else RecordedInAllGroups(flags)
    key = hashlib.sha256(f"{store.checksum} {commits.key}".encode()).hexdigest()
    if isinstance(store.storage, RemoteStorage):
        store.storage.use_cache(f"{store.storage.root} {key}")
    missing = [str(rows) for rows in missing_rows(store, commits)]
    return _OpenedStore(store, variables, columns, recorded, key, missing)


def _stage_order(store: Store) -> list[int]:
    """Return the positions of the stages on disk, in training order."""
    return sorted(range(len(store.stages)), key=lambda i: store.stages[i].order)


def _variables(stores: Sequence[_OpenedStore], chunks: str | None) -> dict[str, xr.Variable]:
    """Return the data variables without the flags."""
    data = {}
    for name, layout in stores[0].store.layouts.items():
        if layout.variable.attrs.get("kind") != "flag":
            arrays = [opened.variables[name] for opened in stores]
            variable = _variable(layout.variable, arrays, chunks, [opened.key for opened in stores])
            errors = [entry for opened in stores for entry in opened.store.measured.get(name, ())]
            variable.attrs |= summarize_errors(errors)
            data[name] = variable
    return data


def _variable(variable: Variable, arrays: Sequence[LazyArray], chunks: str | None, keys: Sequence[str]) -> xr.Variable:
    attrs = {**variable.described_attrs, "stored_dtype": variable.dtype}
    array = concatenate(arrays, variable.dims.index("entity"))
    if chunks is None:
        return lazy_variable(variable.dims, array, attrs)
    from stratalens.store.reading.dask_arrays import dask_array

    # Named after the content, so that another process finds cached results of the same selection.
    name = hashlib.sha256(f"{' '.join(keys)} {variable.name} {array.dtype}".encode()).hexdigest()[:32]
    return xr.Variable(variable.dims, dask_array(array, f"{variable.name}-{name}"), attrs=attrs)


def _recorded_flags(stores: Sequence[_OpenedStore]) -> dict[str, xr.Variable]:
    """Return `recorded`, and `recorded_0`, `recorded_1`, ... of several groups."""
    dims = ("stage", "entity")
    recorded = concatenate([opened.recorded for opened in stores], 1)
    attrs: dict[str, Any] = {"long_name": recorded_variable(0).doc}
    if missing := [rows for opened in stores for rows in opened.missing]:
        attrs["missing"] = missing
    flags = {"recorded": lazy_variable(dims, recorded, attrs)}
    groups = len(stores[0].store.groups)
    if groups > 1:
        for group in range(1, groups):
            flag = recorded_variable(group)
            array = concatenate([opened.variables[flag.name] for opened in stores], 1)
            flags[flag.name] = lazy_variable(flag.dims, array, dict(flag.attrs))
        first = concatenate([opened.variables["recorded"] for opened in stores], 1)
        flags["recorded_0"] = lazy_variable(dims, first)
    return flags


def _exposure(stores: Sequence[_OpenedStore], stage_order: np.ndarray[Any, Any]) -> xr.Variable:
    orders = {stage.name: stage.order for stage in stores[0].store.stages}
    trained = concatenate([opened.labels["trained_stage"] for opened in stores], 0)
    doc = "stage_order minus that of trained_stage (negative: not yet trained on)"
    return lazy_variable(("stage", "entity"), Exposure(stage_order, orders, trained), {"long_name": doc})


def _coordinates(store: Store) -> dict[str, xr.Variable]:
    """Return the coordinates of all dims but `entity`, stages in training order."""
    order = _stage_order(store)
    return {
        name: xr.Variable((c.dim,), c.values[order] if c.dim == "stage" else c.values)
        for name, c in store.coordinates().items()
    }


def _label_coordinates(stores: Sequence[_OpenedStore], rows: int) -> dict[str, xr.Variable]:
    """Return the label columns, read at once if there are at most `EAGER_LABELS` rows."""
    coords = {}
    orders = _label_orders([opened.store for opened in stores])
    for name in stores[0].store.label_types:
        attrs: dict[str, Any] = {"ordered_categories": list(orders[name])} if name in orders else {}
        column = lazy_variable(("entity",), concatenate([opened.labels[name] for opened in stores], 0), attrs)
        coords[name] = column if rows > EAGER_LABELS else xr.Variable(("entity",), column.values, attrs)
    return coords


def _label_orders(stores: Sequence[Store]) -> dict[str, tuple[str, ...]]:
    """Return the orders of categories that all stores have in common."""
    first = stores[0].label_orders
    names = sorted({name for store in stores for name in store.label_orders})
    differing = [name for name in names if any(store.label_orders.get(name) != first.get(name) for store in stores)]
    if differing:
        warnings.warn(
            f"the stores order the categories of {', '.join(map(repr, differing))} in different ways, so the joined "
            "labels have no order; give the stores one order with stratalens.relabel, or name it with order=[...]",
            LabelWarning,
            stacklevel=4,
        )
    return {name: order for name, order in first.items() if name not in differing}


def _assemble(
    data: Mapping[str, xr.Variable], coords: Mapping[str, xr.Variable], *, lazy_entity: bool, attrs: dict[str, Any]
) -> xr.Dataset:
    """Return the Dataset with an index for every dim whose labels are in memory."""
    indexes = {}
    for dim, variable in coords.items():
        if variable.dims == (dim,) and not (dim == "entity" and lazy_entity):
            index_variable = {dim: variable.to_index_variable()}
            indexes[dim] = xr.indexes.PandasIndex.from_variables(index_variable, options={})
    dataset = xr.Dataset(data, coords=xr.Coordinates(coords, indexes=indexes), attrs=attrs)
    for dim in indexes:
        dataset[dim].attrs.update(coords[dim].attrs)
    return dataset


def _attributes(stores: Sequence[_OpenedStore]) -> dict[str, Any]:
    first = stores[0].store
    keys = [opened.key for opened in stores]
    paths = [_absolute_path(opened.store.path) for opened in stores]
    return {
        "model": str(first.recorded_with.get("model", "")),
        "path": paths[0] if len(paths) == 1 else paths,
        "stratalens_format": metadata.FORMAT_VERSION,
        "stratalens_key": keys[0] if len(keys) == 1 else hashlib.sha256(" ".join(keys).encode()).hexdigest(),
        "provenance": JsonText.of(first.provenance),
        "recorded_with": JsonText.of(first.recorded_with),
    }


def _absolute_path(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100 - links stay as the user named them
