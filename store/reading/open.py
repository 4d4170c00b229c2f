"""open_store: a store as a lazy, labelled xarray.Dataset; several stores joined along entity.

Metadata comes from the root zarr.json and the commit records alone, so opening
costs the same whatever the store holds. Labels of up to `EAGER_LABELS` rows are
read at once and indexed; of more rows they stay lazy, and `ds.set_xindex("entity")`
builds the index when it is wanted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.store.errors import InputError, MismatchError
from stratalens.store.format import metadata
from stratalens.store.format.int8 import summarize_errors
from stratalens.store.format.schema import Variable, recorded_variable
from stratalens.store.reading.chunks import BFLOAT16
from stratalens.store.reading.lazy_arrays import (
    AllOf,
    Exposure,
    FunctionArray,
    Joined,
    LabelArray,
    LazyArray,
    ScaledArray,
    VariableArray,
    lazy,
)
from stratalens.store.reading.slabs import SlabReader
from stratalens.store.reading.staleness import StalenessCheck
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.provenance import check_provenance, mismatch
from stratalens.store.storage.resolve import is_url, storage_at

EAGER_LABELS = 200_000


Path = str | os.PathLike[str]


@dataclass(frozen=True)
class _Part:
    """The lazy arrays of one store."""

    store: Store
    variables: dict[str, LazyArray]
    labels: dict[str, LazyArray]
    recorded: LazyArray
    key: str


def open_store(
    path: Path | Sequence[Path],
    *,
    chunks: Literal["auto"] | None = "auto",
    verify: bool = True,
    dtype: Literal["float32", "bfloat16", "bits"] = "float32",
) -> xr.Dataset:
    """Open a store, or several that hold different entities of one run, lazily.

    Parameters
    ----------
    path
        Folder or fsspec URL of a store, or a list of them to join along entity.
    chunks
        "auto": dask arrays whose chunks are several blocks of one stage and layer; None: xarray's own lazy indexing,
        without dask, whose tasks take longer than reading a few rows does.
    verify
        Check every chunk that is read against its crc32c. Few rows read each chunk whole the first time.
    dtype
        What sites stored as bfloat16 are given as: float32 (exact), bfloat16
        (ml_dtypes), or their bits as uint16. Sites scaled to int8 are float32
        too, or with "bits" the whole numbers, to be multiplied by `<site>_scale`.

    Returns
    -------
    xarray.Dataset
        Variables with dims ``(stage, layer, entity, token, *features)``, stages by
        stage_order; label columns as coords; `recorded` (stage, entity), and
        `exposure` (stage, entity) where there is a column `trained_stage`.

    Raises
    ------
    InputError
        There is no store at `path`, or a newer stratalens wrote it.
    DamagedError
        Metadata or a commit record is damaged; later, when values are read,
        a chunk is (the message names stage, site, layer and entity rows).
    MismatchError
        The stores do not belong together.

    Examples
    --------
    >>> ds = open_store("run.zarr")  # doctest: +SKIP
    >>> ds.resid_post.isel(stage=-1, layer=3).values  # doctest: +SKIP
    """
    if dtype not in ("float32", "bfloat16", "bits"):
        raise InputError(f"dtype is {dtype!r}: use 'float32', 'bfloat16' or 'bits'")
    if chunks not in ("auto", None):
        raise InputError(f"chunks is {chunks!r}: use 'auto' or None; ds.chunk(...) changes them afterwards")
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise InputError("no path given: open_store takes a folder, or a list of folders")
    parts = [_part(load(storage_at(p)), verify=verify, dtype=dtype) for p in paths]
    _check_joinable(parts)
    first = parts[0].store
    rank = sorted(range(len(first.stages)), key=lambda i: first.stages[i].order)
    data = {}
    for name, layout in first.layouts.items():
        if layout.variable.attrs.get("kind") == "flag":
            continue
        data[name] = _variable(layout.variable, [p.variables[name] for p in parts], chunks, [p.key for p in parts])
        data[name].attrs |= summarize_errors([entry for p in parts for entry in p.store.measured.get(name, ())])
    flags = [p.recorded for p in parts]
    data["recorded"] = lazy(("stage", "entity"), _join(flags, 1), {"long_name": recorded_variable(0).doc})
    if len(first.groups) > 1:
        for number in range(1, len(first.groups)):
            flag = recorded_variable(number)
            data[flag.name] = lazy(flag.dims, _join([p.variables[flag.name] for p in parts], 1), dict(flag.attrs))
        data["recorded_0"] = lazy(("stage", "entity"), _join([p.variables["recorded"] for p in parts], 1))
        for variable in data.values():
            if variable.attrs.get("recorded") == "recorded":
                variable.attrs["recorded"] = "recorded_0"
    coords = _coordinates(first, rank)
    rows = sum(p.store.entities for p in parts)
    for name in first.label_types:
        column = lazy(("entity",), _join([p.labels[name] for p in parts], 0))
        coords[name] = column if rows > EAGER_LABELS else xr.Variable(("entity",), column.values)
    if "trained_stage" in first.label_types:
        orders = {s.name: s.order for s in first.stages}
        trained = _join([p.labels["trained_stage"] for p in parts], 0)
        exposure = Exposure(coords["stage_order"].values, orders, trained)
        array = FunctionArray((len(rank), rows), np.dtype(np.float32), exposure)
        data["exposure"] = lazy(
            ("stage", "entity"),
            array,
            {"long_name": "stage_order minus that of trained_stage (negative: not yet trained on)"},
        )
    indexed = [d for d in coords if coords[d].dims == (d,) and (d != "entity" or rows <= EAGER_LABELS)]
    dataset = xr.Dataset(
        data,
        coords=xr.Coordinates(
            coords,
            indexes={
                d: xr.indexes.PandasIndex.from_variables({d: coords[d].to_index_variable()}, options={})
                for d in indexed
            },
        ),
        attrs=_attributes(parts),
    )
    for name in indexed:
        dataset[name].attrs.update(coords[name].attrs)
    _check_unique(dataset, parts)
    return dataset


def _part(store: Store, *, verify: bool, dtype: str) -> _Part:
    state = store.commits()
    rank = sorted(range(len(store.stages)), key=lambda i: store.stages[i].order)
    watch = StalenessCheck(store)
    variables: dict[str, LazyArray] = {}
    for name, layout in store.layouts.items():
        wide = layout.variable.dtype == "bfloat16" and dtype == "float32"
        reader = SlabReader(
            storage=store.storage,
            layout=layout,
            entities=store.entities,
            committed=state.present[store.group_of[name]],
            stage_names=[s.name for s in store.stages],
            layer_names=store.layers,
            decode=wide,
            verify=verify,
            watch=watch,
        )
        view = None
        if layout.variable.dtype == "bfloat16" and dtype == "bfloat16":
            view = BFLOAT16
        variables[name] = VariableArray(reader, rank, view=view)
    for name, layout in store.layouts.items() if dtype != "bits" else ():
        numbers, scale = variables[name], variables.get(layout.variable.scaled_by)
        if isinstance(numbers, VariableArray) and isinstance(scale, VariableArray):
            variables[name] = ScaledArray(numbers, scale)
    columns: dict[str, LazyArray] = {name: LabelArray(store, name, watch) for name in store.label_types}
    flags = [variables[recorded_variable(g).name] for g in range(len(store.groups))]
    recorded = flags[0] if len(flags) == 1 else FunctionArray(flags[0].shape, np.dtype(bool), AllOf(flags))
    key = hashlib.sha256(f"{store.checksum} {state.key}".encode()).hexdigest()
    return _Part(store, variables, columns, recorded, key)


def _join(parts: Sequence[LazyArray], axis: int) -> LazyArray:
    return parts[0] if len(parts) == 1 else Joined(parts, axis)


def _variable(variable: Variable, parts: Sequence[LazyArray], chunks: str | None, keys: Sequence[str]) -> xr.Variable:
    attrs: dict[str, Any] = {**variable.attrs, "stored_dtype": variable.dtype}
    if variable.doc:
        attrs["long_name"] = variable.doc
    if variable.units:
        attrs["units"] = variable.units
    joined = _join(parts, variable.dims.index("entity"))
    if chunks is None:
        return lazy(variable.dims, joined, attrs)
    from stratalens.store.reading.dask_arrays import stored

    # Named after the content: cached results find the same selection again in another process.
    name = hashlib.sha256(f"{' '.join(keys)} {variable.name} {joined.dtype}".encode()).hexdigest()[:32]
    return xr.Variable(variable.dims, stored(joined, f"{variable.name}-{name}"), attrs=attrs)


def _coordinates(store: Store, rank: Sequence[int]) -> dict[str, xr.Variable]:
    stages = [store.stages[i] for i in rank]
    coords = {
        "stage": xr.Variable(("stage",), np.array([s.name for s in stages], dtype=object)),
        "stage_order": xr.Variable(("stage",), np.array([s.order for s in stages], dtype=np.int64)),
        "weights_fingerprint": xr.Variable(("stage",), np.array([s.fingerprint for s in stages], dtype=object)),
    }
    if store.layers:
        coords["layer"] = xr.Variable(("layer",), np.array(store.layers, dtype=np.int64))
    tokens = np.array(store.tokens, dtype=np.int64 if isinstance(store.tokens[0], int) else object)
    coords["token"] = xr.Variable(("token",), tokens)
    for variable in store.layouts.values():
        for dim, values in variable.variable.coords.items():
            coords[dim] = xr.Variable((dim,), np.array(values, dtype=np.int64))
    return coords


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100 - links stay as the user named them


def _attributes(parts: Sequence[_Part]) -> dict[str, Any]:
    first = parts[0].store
    keys = [p.key for p in parts]
    paths = [_absolute(p.store.path) for p in parts]
    return {
        "model": str(first.recorded_with.get("model", "")),
        "path": paths[0] if len(paths) == 1 else paths,
        "stratalens_format": metadata.FORMAT_VERSION,
        "stratalens_key": keys[0] if len(keys) == 1 else hashlib.sha256(" ".join(keys).encode()).hexdigest(),
        "provenance": dict(first.provenance),
        "recorded_with": dict(first.recorded_with),
    }


def _check_joinable(parts: Sequence[_Part]) -> None:
    first = parts[0].store
    for other in (p.store for p in parts[1:]):
        where = f" in {other.path}"

        def same(field: str, held: Any, given: Any, where: str = where) -> None:
            if held != given:
                raise mismatch(first, field, held, given, "open the stores apart; they do not belong together", where)

        same("layers", list(first.layers), list(other.layers))
        same("positions", list(first.tokens), list(other.tokens))
        same("label columns", dict(first.label_types), dict(other.label_types))
        same("variables", _named(first), _named(other))
        same("stages", [s.to_json() for s in first.stages], [s.to_json() for s in other.stages])
        check_provenance(first, _joinable(first.provenance), _joinable(other.provenance), where)


def _named(store: Store) -> list[dict[str, Any]]:
    return sorted((layout.variable.to_json() for layout in store.layouts.values()), key=lambda v: str(v["name"]))


def _joinable(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance without what says which prompts they were."""
    return {k: v for k, v in provenance.items() if k != "token_ids_digest"}


def _check_unique(dataset: xr.Dataset, parts: Sequence[_Part]) -> None:
    if len(parts) < 2:
        return
    seen: set[str] = set()
    for part in parts:
        names: Iterable[str] = part.labels["entity"].select([slice(None)])
        for name in names:
            if name in seen:
                raise MismatchError(
                    f"prompt id {name!r} is in more than one of the stores: join stores of different prompts, or give "
                    "the prompts other ids"
                )
            seen.add(name)
