"""Slabs: the activations of one stage and layer, read lazily from any DataArray.

`SiteData` puts a Dataset's site (or a bare DataArray) into the canonical dims (stage, layer, entity, token, features)
and cuts it into slabs. A `Slab` reads itself, whole or in blocks of rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import dask
import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array, Data, Mask
from stratalens.analyses.data.cancellation import raise_if_cancelled
from stratalens.analyses.data.groups import check_data, plain_entities
from stratalens.analyses.data.results import RESULT_DIMS, find_variable
from stratalens.store.compat import is_in_memory
from stratalens.store.errors import InputError, NonFiniteError, NotRecordedError, no_site_error, not_floats_error
from stratalens.store.format.schema import AXES, site_names
from stratalens.store.state.missing_rows import reasons_for

BLOCK_BYTES = 32 * 2**20  # rows read at a time where the array has no chunks of its own


class Slab:
    """Activations of one (stage, layer), not read yet.

    Args:
        array: DataArray of dims (entity, token, features), or a function that returns it on first use.
        stage: label of the stage; None where the data has no such dim.
        layer: label of the layer; None where the data has no such dim.
        position: (stage, layer) indices.
        rows: int64 array of shape (n,), rows of the entity dim in use, in order.
        name: name of the activations, where `array` is a function.
    """

    # A plain class: dask looks inside dataclasses, and would load the array before the task runs.
    def __init__(
        self,
        array: xr.DataArray | Callable[[], xr.DataArray],
        stage: Hashable,
        layer: Hashable,
        position: tuple[int, int],
        rows: Array,
        name: Hashable = None,
    ) -> None:
        self._array = array
        self._name = array.name if isinstance(array, xr.DataArray) else name
        self.stage = stage
        self.layer = layer
        self.position = position
        self.rows = rows

    @property
    def array(self) -> xr.DataArray:
        """Lazy DataArray with dims (entity, token, features)."""
        if not isinstance(self._array, xr.DataArray):
            self._array = self._array()
        return self._array

    @property
    def where(self) -> str:
        """Description of this slab for messages: "resid_post at stage s1, layer 2"."""
        name = "activations" if self._name is None else str(self._name)
        labels = [f"{k} {v}" for k, v in (("stage", self.stage), ("layer", self.layer)) if v is not None]
        return f"{name} at {', '.join(labels)}" if labels else name

    @property
    def feature_dims(self) -> tuple[str, ...]:
        """Names of the feature dims."""
        return tuple(str(d) for d in self.array.dims[2:])

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Sizes of the feature dims."""
        return self.array.shape[2:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows in use, tokens, features)."""
        return len(self.rows), self.array.shape[1], int(np.prod(self.feature_shape))

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """Read the slab in blocks of rows, in order.

        Blocks follow the chunks of a dask array, so that every chunk is read once and by itself.

        Returns:
            Pairs of rows: int64 array of shape (n,), and
            values: float32 array of shape (n, tokens, features), read-only.
        """
        for start, stop in self._edges():
            raise_if_cancelled()
            first, last = np.searchsorted(self.rows, (start, stop))
            if first == last:
                continue
            rows = self.rows[first:last]
            values = read_float32(self.array[start:stop])
            values = values.reshape(len(values), self.array.shape[1], -1)
            if len(rows) < stop - start:
                values = values[rows - start]
            values.flags.writeable = False  # it may be the user's own array
            yield rows, values

    def values(self) -> Array:
        """Read the whole slab: float32 array of shape (rows, tokens, features), possibly read-only."""
        edges = self._edges()
        if len(edges) == 1:
            return next((values for _, values in self.blocks()), np.empty((0, *self.shape[1:]), np.float32))
        out = np.empty(self.shape, np.float32)
        done = 0
        for rows, values in self.blocks():
            out[done : done + len(rows)] = values
            done += len(rows)
        return out

    def load(self) -> xr.DataArray:
        """Read the whole slab into a labelled float32 DataArray (entity, token, features), writable."""
        values = self.values()
        if not values.flags.writeable:
            values = values.copy()
        array = self.array.isel(entity=self.rows) if len(self.rows) < self.array.shape[0] else self.array
        return array.copy(data=values.reshape(len(values), *self.array.shape[1:]))

    def refuse_nonfinite(self, values: Array, rows: Array | None = None) -> None:
        """Refuse values that contain NaN or infinity.

        Args:
            values: array of shape (n, tokens, features).
            rows: rows of the entity dim that `values` belong to; None = all rows in use.

        Raises:
            NonFiniteError: names the first NaN or infinity.
        """
        bad = ~np.isfinite(values).all(axis=-1)
        if not bad.any():
            return
        row, token = (int(i) for i in np.argwhere(bad)[0])
        rows = self.rows if rows is None else rows
        entity = self.array.coords["entity"].values[rows[row]] if "entity" in self.array.coords else rows[row]
        label = self.array.coords["token"].values[token] if "token" in self.array.coords else token
        raise NonFiniteError(
            f"{self.where}: {int(bad.sum())} of {bad.size} (entity, token) vectors are not finite, first at entity "
            f"{entity!s}, token {label!s}. If prompts miss a position, choose other positions with .sel(token=...), "
            f"or leave these rows out with skip_missing=True"
        )

    def _edges(self) -> list[tuple[int, int]]:
        """First row and last row + 1 of every block."""
        n = self.array.shape[0]
        if self.array.chunks is not None:
            sizes = self.array.chunks[0]
            ends = np.cumsum(sizes)
            return [(int(e - s), int(e)) for s, e in zip(sizes, ends, strict=True) if s]
        row = max(1, int(np.prod(self.array.shape[1:]))) * 4
        step = max(1, BLOCK_BYTES // row)
        return [(start, min(n, start + step)) for start in range(0, n, step)]


class SiteData:
    """A site in canonical dims (stage, layer, entity, token, features).

    Attributes:
        array: lazy DataArray with exactly those dims.
        chunked: whether the user's own array is a dask array, whose name identifies its content.
        site: name of the site.
        added: leading dims that the user's data did not have.
        data: the user's data, with labels of a MultiIndex along `entity` as columns.

    Raises:
        InputError: no such site, values that are not floats, no feature dim, or an empty selection.
    """

    def __init__(self, data: Data, site: str = "resid_post", *, features: bool = True) -> None:
        check_data(data)
        self.data = plain_entities(data)
        array = _site_array(self.data, site)
        self.site = site if array.name is None else str(array.name)
        self.added = tuple(d for d in AXES if d not in array.dims and d != "entity")
        self.chunked = array.chunks is not None
        if self.added or array.dims[: len(AXES)] != AXES:
            array = _in_chunks(array).expand_dims(list(self.added)).transpose(*AXES, ...)
        if array.dtype.kind not in "fV":
            raise not_floats_error(self.site, array.dtype)
        if features and len(array.dims) == len(AXES):
            raise InputError(f"{self.site!r} has no feature dim (dims: {', '.join(map(str, array.dims))})")
        taken = [str(d) for d in array.dims[len(AXES) :] if d in RESULT_DIMS] if features else []
        if taken:
            new = f".rename({taken[0]}='feature')"
            raise InputError(f"{self.site!r} has a feature dim {taken[0]!r}, a name that results use; rename it: {new}")
        for dim in AXES:
            if array.sizes[dim] == 0:
                raise InputError(f"{self.site!r} is empty along {dim!r}; nothing was selected")
        self.array = array

    @property
    def feature_dims(self) -> tuple[str, ...]:
        """Names of the feature dims."""
        return tuple(str(d) for d in self.array.dims[len(AXES) :])

    @property
    def shape(self) -> tuple[int, int]:
        """(stages, layers)."""
        return self.array.sizes["stage"], self.array.sizes["layer"]

    def labels(self, dim: str) -> list[Hashable]:
        """Labels of all stages or layers: indices without a coordinate, None where the data has no such dim."""
        size = self.array.sizes[dim]
        if dim not in self.array.coords:
            return [None if dim in self.added else index for index in range(size)]
        values = self.array.coords[dim].values
        as_label = {"i": int, "u": int, "f": float}.get(values.dtype.kind, str)
        return [as_label(v) for v in values]

    def rows(self, skip_missing: bool = False, wanted: Mask | None = None) -> list[Array]:
        """Choose the rows to use at each stage.

        Args:
            skip_missing: leave out rows that were not recorded, or that miss one of the token positions.
            wanted: bool array of shape (entity,), rows to choose from; None = all.

        Returns:
            For each stage, an int64 array of shape (n,).

        Raises:
            NotRecordedError: wanted rows were not recorded, or no row is left.
        """
        n = self.array.sizes["entity"]
        use = np.ones((self.shape[0], n), bool)
        if wanted is not None:
            use &= wanted
        recorded, stages = self._recorded(), self.labels("stage")
        if skip_missing:
            use &= recorded & self._has_all_positions()
        elif (use & ~recorded).any():
            missing = (use & ~recorded).sum(axis=1)
            counts = ", ".join(f"{stage} ({k} of {n})" for stage, k in zip(stages, missing, strict=True) if k)
            raise NotRecordedError(
                f"{self.site!r} is not recorded for all rows; missing at stage {counts}. Resume the capture, narrow "
                f"the stages with .sel(stage=...), or leave these rows out with skip_missing=True"
                f"{self._reasons([stage for stage, k in zip(stages, missing, strict=True) if k])}"
            )
        empty = [str(stage) for stage, used in zip(stages, use, strict=True) if not used.any()]
        if empty:
            raise NotRecordedError(f"{self.site!r}: no row is left at stage {', '.join(empty)}")
        return [np.flatnonzero(used).astype(np.int64) for used in use]

    def slabs(self, rows: list[Array] | None = None) -> list[Slab]:
        """Cut the site into slabs, stage by stage, layer by layer."""
        rows = rows if rows is not None else self.rows()
        return [
            Slab(partial(self.array.__getitem__, (i, j)), stage, layer, (i, j), rows[i], self.array.name)
            for i, stage in enumerate(self.labels("stage"))
            for j, layer in enumerate(self.labels("layer"))
        ]

    def restore(self, result: xr.Dataset) -> xr.Dataset:
        """Add this site's coordinates to a result, and remove the dims that the data did not have."""
        for dim in ("stage", "layer", "token"):
            if dim in result.dims and dim not in result.coords and dim in self.array.coords:
                result = result.assign_coords({dim: self.array.coords[dim].variable})
        for name, coord in self.array.coords.items():
            if coord.dims == ("stage",) and "stage" in result.dims and name not in result.coords:
                result = result.assign_coords({name: coord.variable})
        return result.isel({dim: 0 for dim in self.added if dim in result.dims})

    def attrs(self) -> dict[str, Any]:
        """Attributes that a figure needs: the site's name, hook template and units, the store's key and model."""
        site = {key: self.array.attrs[key] for key in ("hook", "units") if key in self.array.attrs}
        store = {key: self.data.attrs[key] for key in ("stratalens_key", "model") if key in self.data.attrs}
        return {"site": self.site, **site, **store}

    def _recorded(self) -> Mask:
        """Rows that were recorded: bool array of shape (stage, entity)."""
        flag = self.array.attrs.get("recorded", "recorded")  # a site that was added later has its own flag
        known = find_variable(self.data, flag)
        if known is None:
            return np.ones((self.shape[0], self.array.sizes["entity"]), bool)
        if "stage" not in known.dims:
            known = known.expand_dims("stage")
        return np.asarray(read_float32(known.transpose("stage", "entity")), dtype=bool)

    def _reasons(self, stages: list[Any]) -> str:
        """Reasons for the missing rows of some stages, as far as the store says them."""
        recorded = find_variable(self.data, "recorded")
        return "" if recorded is None else reasons_for(recorded.attrs, stages)

    def _has_all_positions(self) -> Mask:
        """Rows that have every token position: bool array of shape (stage, entity)."""
        # A prompt has the same positions at every layer.
        first = self.array.isel({"layer": 0, **dict.fromkeys(self.feature_dims, 0)})
        return np.stack([~np.isnan(read_float32(first[i])).any(axis=1) for i in range(self.shape[0])])


def _in_chunks(array: xr.DataArray) -> xr.DataArray:
    """Convert a lazily indexed array to a dask array; xarray would read all of it to move or add a dim."""
    if array.chunks is not None or is_in_memory(array.variable):
        return array
    row = int(np.prod([n for d, n in array.sizes.items() if d not in ("stage", "layer", "entity")])) * 4
    sizes = {"stage": 1, "layer": 1, "entity": max(1, BLOCK_BYTES // max(1, row))}
    # A random name: a name from the content would read the content.
    name = f"lazy-{uuid.uuid4().hex}"
    variable = array.variable.chunk({d: n for d, n in sizes.items() if d in array.dims}, name=name)
    return array.copy(data=variable.data)


def read_float32(array: xr.DataArray) -> Array:
    """Compute a small lazy array in this thread, as float32."""
    if array.chunks is None:  # never .data before this: it would load a lazily indexed array and keep it
        return np.asarray(array.values, dtype=np.float32).view()
    data = array.data
    if data.npartitions == 1:  # as compute() does it, without the copy that it ends with
        keys = [(data.name, *[0] * data.ndim)]
        graph = data.__dask_optimize__(data.__dask_graph__(), keys)
        (values,) = dask.get(graph, keys)  # type: ignore[attr-defined]  # public, but dask has no __all__
    else:
        (values,) = dask.compute(data, scheduler="synchronous")  # type: ignore[attr-defined, no-untyped-call]
    return np.asarray(values, dtype=np.float32).view()


def _site_array(data: Data, site: str) -> xr.DataArray:
    if isinstance(data, xr.Dataset):
        if site not in data.data_vars:
            raise no_site_error(site, site_names(data), "the data")
        data = data[site]
    if "entity" not in data.dims:
        raise InputError(f"{site!r} has no dim 'entity' (dims: {', '.join(map(str, data.dims))})")
    return data
