"""Results kept beside the store (`run.zarr.results/`), so that an interrupted sweep goes on where it stopped.

One labelled zarr group for each analysis and its parameters, with one chunk a
stage; `done` says which slabs are in it. Its name is a hash of everything the
results depend on, so that a result of other data or parameters is never used.
Stores themselves are never written to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from stratalens.analyses.data.groups import Array
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.assemble import Filled, multi_indexed
from stratalens.store.errors import InputError
from stratalens.store.storage.local_locks import FileLock

FLUSH_SECONDS = 2.0


FLUSH_SHARE = 0.05  # most of the time that writing may take, where results are large


FORMAT = 2  # change it when the meaning of any cached result changes


class SlabCache:
    """Finished slabs of one analysis of one store."""

    def __init__(self, path: Path, identity: dict[str, Any], labels: dict[str, Array] | None = None) -> None:
        self.path = path
        self.identity = identity
        self.labels = labels or {}  # of stage, layer and token, for those who open the group by themselves
        self._open: xr.Dataset | None = None
        self._done: Any = None  # bool (stage, layer), once the shape is known
        self._stages: set[int] = set()  # with slabs that are not written yet
        self._flushed = time.monotonic()
        self._pause = FLUSH_SECONDS
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        if path.exists():
            self._load()

    @classmethod
    def beside(
        cls, source: SiteData, name: str, params: dict[str, Any], rows: list[Array], must: bool = False
    ) -> SlabCache | None:
        """The cache of an analysis of this data; None where it cannot have one.

        It needs a Dataset from open_store (its content key and its place) that is still lazy: values
        changed in memory have no name that a cache could know them by.

        Raises:
            InputError: `must` is set, but the data has no cache; says why.
        """
        key, place = source.data.attrs.get("stratalens_key", ""), source.data.attrs.get("path", "")
        reason = None
        if not key or not place:
            reason = "the data does not come from stratalens.open_store(path)"
        elif not isinstance(place, str):
            reason = "the data joins several stores"
        elif not source.chunked:
            reason = "the data is in memory or opened with chunks=None"
        elif "://" in place or not os.access(Path(place).resolve().parent, os.W_OK):
            reason = f"the folder of {place!r} cannot be written to"
        if reason is not None:
            if must:
                raise InputError(f"results cannot be cached: {reason}; leave cache= out")
            return None
        identity = {
            "format": FORMAT,
            "analysis": name,
            "site": source.site,
            "store": key,
            "array": source.array.data.name,  # dask's name: a hash of every selection and operation since opening
            "rows": digest(rows),
            "params": {k: digest(v) if isinstance(v, np.ndarray) else v for k, v in params.items()},
        }
        features = {d: digest(source.array[d].values) for d in source.feature_dims if d in source.array.coords}
        if features:  # results carry them
            identity["features"] = features
        word = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:20]
        readable = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40]
        labels = {d: source.array[d].values for d in ("stage", "layer", "token") if d in source.array.coords}
        return cls(results_folder(place) / f"{readable}-{word}", identity, labels)

    def get(self, slab: Slab) -> xr.Dataset | None:
        """Result of one slab, None where it is not finished."""
        if self._open is None or not self._done[slab.position]:
            return None
        found = self._open.isel(stage=slab.position[0], layer=slab.position[1])
        found = found.drop_vars(["done", *self._open.attrs.get("added_labels", [])]).load()
        names: list[str] = found.attrs.get("variables", list(found.data_vars))
        found = found[names]  # zarr lists them in any order
        found.attrs = {k: v for k, v in found.attrs.items() if k not in ("identity", "added_labels", "variables")}
        texts = [name for name, v in found.variables.items() if v.dtype.kind == "T"]
        return found.assign({n: found[n].astype(object) for n in texts if n in found.data_vars}).assign_coords(
            {n: found[n].astype(object) for n in texts if n in found.coords}
        )

    def put(self, slab: Slab, filled: Filled) -> None:
        """Keep the result of one slab, that `filled` already has; written every few seconds, and by `flush`."""
        if self._done is None:
            _refuse_what_zarr_lacks(filled.layout.example)
            self._done = np.zeros(filled.shape, bool)
        self._done[slab.position] = True
        self._stages.add(slab.position[0])
        if time.monotonic() - self._flushed > self._pause:
            self.flush(filled)

    def flush(self, filled: Filled) -> None:
        """Write what is new; `done` is written last, so that a slab which it names is whole."""
        if not self._stages:
            return
        self.path.parent.mkdir(exist_ok=True)
        begun = time.monotonic()
        if not self._lock.acquired and not self._lock.try_acquire():
            return  # another process is at the very same analysis, and keeps it
        if not self.path.exists():
            self._create(filled)
        group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
        for name, values in zip(filled.layout.names, filled.arrays, strict=True):
            for stage in self._stages:
                kept = values[stage].copy()
                kept[~self._done[stage]] = "" if values.dtype.kind in "OT" else 0
                _array(group, name)[stage] = kept
        for stage in self._stages:
            _array(group, "done")[stage] = self._done[stage]
        self._stages = set()
        self._flushed = time.monotonic()
        self._pause = max(FLUSH_SECONDS, (self._flushed - begun) / FLUSH_SHARE)

    def close(self, filled: Filled | None) -> None:
        """Write what is left, and let other processes write."""
        try:
            if filled is not None:
                self.flush(filled)
        finally:
            self._lock.release(unlink=True)

    def _create(self, filled: Filled) -> None:
        """An empty group of the right shape, put in place by one rename."""
        blank = [np.full(a.shape, "" if a.dtype.kind in "OT" else 0, a.dtype) for a in filled.arrays]
        whole = filled.layout.dataset(blank).assign_attrs(variables=filled.layout.names)
        whole["done"] = (("stage", "layer"), np.zeros(filled.shape, bool))
        added = {d: v for d, v in self.labels.items() if d not in whole.coords and whole.sizes.get(d) == len(v)}
        whole = whole.assign_coords(added).assign_attrs(added_labels=list(added))
        whole.attrs["identity"] = json.dumps(self.identity, sort_keys=True, default=str)
        chunks = {str(n): {"chunks": (1, *(max(1, s) for s in v.shape[1:]))} for n, v in whole.data_vars.items()}
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        whole.to_zarr(temporary, mode="w-", zarr_format=3, consolidated=False, encoding=chunks)
        temporary.rename(self.path)

    def _load(self) -> None:
        self._open = xr.open_zarr(self.path, chunks=None, consolidated=False)
        stored = self._open.attrs.get("identity")
        if stored != json.dumps(self.identity, sort_keys=True, default=str):
            raise InputError(f"{self.path} does not belong to this analysis; remove it")
        self._done = np.array(self._open["done"].values)


def results_folder(store: str | Path) -> Path:
    """Where results of a store are kept: `run.zarr` -> `run.zarr.results`."""
    path = Path(store)
    return path.with_name(path.name + ".results")


def clear_results(store: str | Path) -> None:
    """Remove all cached results of a store; the store itself is not touched."""
    shutil.rmtree(results_folder(store), ignore_errors=True)


def digest(value: Any) -> str:
    """Hash of an array, or of a list of arrays: their values, shapes and dtypes."""
    h = hashlib.sha256()
    for array in value if isinstance(value, list) else [value]:
        array = np.asarray(array)
        h.update(f"{array.dtype.str}{array.shape}".encode())
        h.update(repr(array.tolist()).encode() if array.dtype.kind in "OTU" else np.ascontiguousarray(array).tobytes())
    return h.hexdigest()


def _refuse_what_zarr_lacks(result: xr.Dataset) -> None:
    """A MultiIndex has no form in zarr, and xarray writes times relative to the first; said of the first slab."""
    several = [str(name) for name in multi_indexed(result)]
    if several:
        raise InputError(
            f"a result with the MultiIndex {several[0]!r} cannot be kept; let the function end with "
            f".reset_index({several[0]!r}), or leave cache= out"
        )
    if "done" in result.variables:
        raise InputError("a result with a variable 'done' cannot be kept, as what is kept has one; rename it")
    times = [str(name) for name, v in result.variables.items() if v.dtype.kind in "mM"]
    if times:
        raise InputError(f"times ({times[0]!r}) cannot be kept; give them as numbers or text, or leave cache= out")


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    found = group[name]
    assert isinstance(found, zarr.Array)
    return found
