"""One slab: the activations of one stage and layer, read lazily from any DataArray.

`SiteData` puts a Dataset's site (or a bare DataArray) into the canonical dims
(stage, layer, entity, token, features) and cuts it into `Slab`s, each of which
knows how to read itself, whole or in blocks of rows. Who runs them is in sweep.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.data.groups import Array, Data, check_data
from stratalens.analyses.data.results import RESULT_DIMS
from stratalens.store.compat import is_in_memory
from stratalens.store.errors import InputError, NonFiniteError, NotRecordedError, no_site_error, not_floats_error
from stratalens.store.format.schema import AXES, site_names

BLOCK_BYTES = 32 * 2**20  # rows read at a time where the array has no chunks of its own


class Slab:
    """Activations of one (stage, layer), not read yet.

    Args:
        array: (entity, token, features), or a function that cuts it out of all when it is asked for first.
        name: of the activations, where `array` is a function.

    Attributes:
        stage, layer: labels of this slab (None where the data has no such dim).
        position: (stage, layer) indices.
        rows: int64 rows of the entity dim that are used, in order.
    """

    # A plain class: dask looks inside dataclasses, and would load the array before the task runs.
    def __init__(
        self, array: xr.DataArray | Callable[[], xr.DataArray], stage: Hashable, layer: Hashable,
        position: tuple[int, int], rows: Array, name: Hashable = None,
    ) -> None:  # fmt: skip
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
        """Names this slab in messages."""
        parts = [f"{k} {v}" for k, v in (("stage", self.stage), ("layer", self.layer)) if v is not None]
        return ("activations" if self._name is None else str(self._name)) + (f" at {', '.join(parts)}" if parts else "")

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
        """(rows used, tokens, features)."""
        return len(self.rows), self.array.shape[1], int(np.prod(self.feature_shape))

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """Blocks of rows: (int64 rows (n,), float32 values (n, token, features), read-only), in order.

        Aligned with the chunks of a dask array, so that every chunk is read once and by itself.
        """
        for start, stop in self._edges():
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
        """The whole slab, float32 (rows used, token, features), possibly read-only; filled block by block."""
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
        """The whole slab as a labelled float32 DataArray (entity, token, features)."""
        values = self.values()
        if not values.flags.writeable:
            values = values.copy()
        kept = self.array.isel(entity=self.rows) if len(self.rows) < self.array.shape[0] else self.array
        return kept.copy(data=values.reshape(len(values), *self.array.shape[1:]))

    def refuse_nonfinite(self, values: Array, rows: Array | None = None) -> None:
        """Raise NonFiniteError naming the first NaN or infinity of `values` (n, token, features)."""
        bad = ~np.isfinite(values).all(axis=-1)
        if not bad.any():
            return
        row, token = (int(i) for i in np.argwhere(bad)[0])
        rows = self.rows if rows is None else rows
        entity = self.array.coords["entity"].values[rows[row]] if "entity" in self.array.coords else rows[row]
        label = self.array.coords["token"].values[token] if "token" in self.array.coords else token
        raise NonFiniteError(
            f"{self.where}: {int(bad.sum())} of {bad.size} (entity, token) vectors are not finite, first at entity "
            f"{entity!s}, token {label!s}. Positions that a prompt does not have: narrow them with .sel(token=...), "
            f"or leave such rows out with skip_missing=True"
        )

    def _edges(self) -> list[tuple[int, int]]:
        n = self.array.shape[0]
        if self.array.chunks is not None:
            sizes = self.array.chunks[0]
            ends = np.cumsum(sizes)
            return [(int(e - s), int(e)) for s, e in zip(sizes, ends, strict=True) if s]
        row = max(1, int(np.prod(self.array.shape[1:]))) * 4
        step = max(1, BLOCK_BYTES // row)
        return [(start, min(n, start + step)) for start in range(0, n, step)]


class SiteData:
    """A site in canonical dims (stage, layer, entity, token, features), and how to get the user's dims back.

    Attributes:
        array: lazy DataArray with exactly those dims.
        chunked: whether the user's own array is one of dask, whose name stands for its content.
        site: its name.
        added: leading dims that the user's data did not have.
        data: what the user gave.
    """

    def __init__(self, data: Data, site: str = "resid_post", *, features: bool = True) -> None:
        self.data = data
        array = _site_array(data, site)
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
            raise InputError(f"{self.site!r} has a feature dim {taken[0]!r}, a name that results use: {new}")
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

    def label(self, dim: str, index: int) -> Hashable:
        """Label of one stage or layer; None where the data has no such dim or coordinate."""
        return self.labels(dim)[index]

    def labels(self, dim: str) -> list[Hashable]:
        """Labels of all stages or layers, as `label` gives them."""
        size = self.array.sizes[dim]
        if dim not in self.array.coords:
            return [None if dim in self.added else index for index in range(size)]
        values = self.array.coords[dim].values
        as_label = {"i": int, "u": int, "f": float}.get(values.dtype.kind, str)
        return [as_label(v) for v in values]

    def rows(self, skip_missing: bool = False, wanted: npt.NDArray[np.bool_] | None = None) -> list[Array]:
        """Rows to use at each stage.

        Args:
            skip_missing: leave rows out that were not recorded, or lack one of the token positions.
            wanted: [array-like, shape: (entity,)] rows asked for; None = all.

        Raises:
            NotRecordedError: rows asked for were not recorded, or none is left.
        """
        n = self.array.sizes["entity"]
        use = np.ones((self.shape[0], n), bool)
        if wanted is not None:
            use &= wanted
        have = self._recorded()
        if skip_missing:
            use &= have & self._present()
        elif (use & ~have).any():
            lacking = (use & ~have).sum(axis=1)
            named = ", ".join(f"{self.label('stage', i)} ({k} of {n})" for i, k in enumerate(lacking) if k)
            raise NotRecordedError(
                f"{self.site!r} is not recorded for all rows; missing at stage {named}. Resume the capture, narrow the "
                f"stages with .sel(stage=...), or leave these rows out with skip_missing=True"
            )
        empty = [str(self.label("stage", i)) for i in range(len(use)) if not use[i].any()]
        if empty:
            raise NotRecordedError(f"{self.site!r}: no row is left at stage {', '.join(empty)}")
        return [np.flatnonzero(u).astype(np.int64) for u in use]

    def slabs(self, rows: list[Array] | None = None) -> list[Slab]:
        """All slabs, stage by stage, layer by layer."""
        rows = rows if rows is not None else self.rows()
        return [
            Slab(partial(self.array.__getitem__, (i, j)), stage, layer, (i, j), rows[i], self.array.name)
            for i, stage in enumerate(self.labels("stage"))
            for j, layer in enumerate(self.labels("layer"))
        ]

    def restore(self, result: xr.Dataset) -> xr.Dataset:
        """`result` with this site's stage, layer and token coordinates, without the dims the data did not have."""
        for dim in ("stage", "layer", "token"):
            if dim in result.dims and dim not in result.coords and dim in self.array.coords:
                result = result.assign_coords({dim: self.array.coords[dim].variable})
        for name, coord in self.array.coords.items():
            if coord.dims == ("stage",) and "stage" in result.dims and name not in result.coords:
                result = result.assign_coords({name: coord.variable})
        for dim in self.added:
            if dim in result.dims:
                result = result.isel({dim: 0})
        return result

    def attrs(self) -> dict[str, Any]:
        """What a figure must know about this site: its name, hook template and the store's key."""
        found: dict[str, Any] = {"site": self.site}
        for key in ("hook", "units"):
            if key in self.array.attrs:
                found[key] = self.array.attrs[key]
        for key in ("stratalens_key", "model"):
            if key in self.data.attrs:
                found[key] = self.data.attrs[key]
        return found

    def _recorded(self) -> npt.NDArray[np.bool_]:
        flag = self.array.attrs.get("recorded", "recorded")  # sites that were added later have a flag of their own
        known = self.data.get(flag) if isinstance(self.data, xr.Dataset) else self.data.coords.get(flag)
        if known is None:
            return np.ones((self.shape[0], self.array.sizes["entity"]), bool)
        if "stage" not in known.dims:
            known = known.expand_dims("stage")
        return np.asarray(read_float32(known.transpose("stage", "entity")), dtype=bool)

    def _present(self) -> npt.NDArray[np.bool_]:
        """Rows that have every token position, (stage, entity): which ones a prompt has is the same at every layer."""
        first = self.array.isel({"layer": 0, **dict.fromkeys(self.feature_dims, 0)})
        return np.stack([~np.isnan(read_float32(first[i])).any(axis=1) for i in range(self.shape[0])])


def _in_chunks(array: xr.DataArray) -> xr.DataArray:
    """An array that xarray indexes lazily as one of dask: xarray would read the whole to move or to add a dim."""
    if array.chunks is not None or is_in_memory(array.variable):
        return array
    row = int(np.prod([n for d, n in array.sizes.items() if d not in ("stage", "layer", "entity")])) * 4
    sizes = {"stage": 1, "layer": 1, "entity": max(1, BLOCK_BYTES // max(1, row))}
    # A name of chance: one made of the content would read it.
    name = f"lazy-{uuid.uuid4().hex}"
    variable = array.variable.chunk({d: n for d, n in sizes.items() if d in array.dims}, name=name)
    return array.copy(data=variable.data)


def read_float32(array: xr.DataArray) -> Array:
    """Values of a small lazy array as float32, computed in this very thread."""
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
    check_data(data)
    if isinstance(data, xr.Dataset):
        if site not in data.data_vars:
            raise no_site_error(site, site_names(data), "the data")
        data = data[site]
    array = data
    if "entity" not in array.dims:
        raise InputError(f"{site!r} has no dim 'entity' (dims: {', '.join(map(str, array.dims))})")
    return array
