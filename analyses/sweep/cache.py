"""Cached results next to the store (`run.zarr.results/`), with which an interrupted sweep resumes.

Each analysis with its parameters has one labelled zarr group with one chunk a stage; `done` marks the finished slabs.
The name of the group is a hash of everything the results depend on, so that results of other data or parameters are
never used. The store itself is never written to.
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

from stratalens.analyses.data.array_types import Array, Mask
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.assemble import ResultBuffer, multi_indexed, with_text_as_objects
from stratalens.store.errors import InputError
from stratalens.store.storage.local_locks import FileLock

FLUSH_SECONDS = 2.0
FLUSH_SHARE = 0.05  # largest share of the time that writing may take, for large results
FORMAT = 2  # increase it when the meaning of any cached result changes


class SlabCache:
    """Finished slabs of one analysis of one store.

    Args:
        path: folder of the zarr group.
        identity: everything that the results depend on.
        labels: of stage, layer and token, for users who open the group themselves.

    Raises:
        InputError: the folder belongs to another analysis.
    """

    def __init__(self, path: Path, identity: dict[str, Any], labels: dict[str, Array] | None = None) -> None:
        self.path = path
        self.identity = identity
        self.labels = labels or {}
        self._open: xr.Dataset | None = None
        self._done: Mask | None = None  # (stage, layer), once the shape is known
        self._stages: set[int] = set()  # stages with slabs that are not written yet
        self._flushed = time.monotonic()
        self._pause = FLUSH_SECONDS
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        if path.exists():
            self._load()

    @classmethod
    def for_analysis(
        cls, source: SiteData, name: str, params: dict[str, Any], rows: list[Array], required: bool = False
    ) -> SlabCache | None:
        """Open the cache of an analysis; None where the data cannot have one.

        A cache needs a lazy Dataset from open_store, which has a content key and a path. Values changed in memory have
        no name that identifies them.

        Args:
            source: site of the analysis.
            name: name of the analysis.
            params: everything that the results depend on in addition to the activations.
            rows: rows in use at each stage.
            required: refuse data that cannot have a cache.

        Raises:
            InputError: `required` is set, but the data cannot have a cache; says why.
        """
        key, path = source.data.attrs.get("stratalens_key", ""), source.data.attrs.get("path", "")
        reason = None
        if not key or not path:
            reason = "the data does not come from stratalens.open_store(path)"
        elif not isinstance(path, str):
            reason = "the data joins several stores"
        elif not source.chunked:
            reason = "the data is in memory or opened with chunks=None"
        elif "://" in path or not os.access(Path(path).resolve().parent, os.W_OK):
            reason = f"the folder of {path!r} is not writable"
        if reason is not None:
            if required:
                raise InputError(f"results cannot be cached: {reason}; leave cache= out")
            return None
        identity = {
            "format": FORMAT,
            "analysis": name,
            "site": source.site,
            "store": key,
            "array": source.array.data.name,  # dask's name hashes every selection and operation since opening
            "rows": digest(rows),
            "params": {k: digest(v) if isinstance(v, np.ndarray) else v for k, v in params.items()},
        }
        features = {d: digest(source.array[d].values) for d in source.feature_dims if d in source.array.coords}
        if features:  # results contain the labels of features
            identity["features"] = features
        key_hash = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:20]
        readable = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40]
        labels = {d: source.array[d].values for d in ("stage", "layer", "token") if d in source.array.coords}
        return cls(results_folder(path) / f"{readable}-{key_hash}", identity, labels)

    def get(self, slab: Slab) -> xr.Dataset | None:
        """Result of one slab; None where it is not finished."""
        if self._open is None or self._done is None or not self._done[slab.position]:
            return None
        result = self._open.isel(stage=slab.position[0], layer=slab.position[1])
        result = result.drop_vars(["done", *self._open.attrs.get("added_labels", [])]).load()
        names: list[str] = result.attrs.get("variables", list(result.data_vars))
        result = result[names]  # zarr lists variables in any order
        result.attrs = {k: v for k, v in result.attrs.items() if k not in ("identity", "added_labels", "variables")}
        return with_text_as_objects(result)

    def put(self, slab: Slab, results: ResultBuffer) -> None:
        """Mark one slab of `results` as finished; `flush` writes it, at the latest after a few seconds.

        Raises:
            InputError: zarr cannot represent the result.
        """
        if self._done is None:
            _check_zarr_can_store(results.layout.example)
            self._done = np.zeros(results.shape, bool)
        self._done[slab.position] = True
        self._stages.add(slab.position[0])
        if time.monotonic() - self._flushed > self._pause:
            self.flush(results)

    def flush(self, results: ResultBuffer) -> None:
        """Write all new slabs; `done` is written last, so that every slab marked in it is complete."""
        if not self._stages or self._done is None:
            return
        self.path.parent.mkdir(exist_ok=True)
        start = time.monotonic()
        if not self._lock.acquired and not self._lock.try_acquire():
            return  # another process runs the same analysis and writes its results
        if not self.path.exists():
            self._create(results)
        group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
        for name, values in zip(results.layout.names, results.arrays, strict=True):
            for stage in self._stages:
                finished = values[stage].copy()
                finished[~self._done[stage]] = "" if values.dtype.kind in ("O", "T") else 0
                _array(group, name)[stage] = finished
        for stage in self._stages:
            _array(group, "done")[stage] = self._done[stage]
        self._stages = set()
        self._flushed = time.monotonic()
        self._pause = max(FLUSH_SECONDS, (self._flushed - start) / FLUSH_SHARE)

    def close(self, results: ResultBuffer | None) -> None:
        """Write the remaining slabs, and let other processes write."""
        try:
            if results is not None:
                self.flush(results)
        finally:
            self._lock.release(unlink=True)

    def _create(self, results: ResultBuffer) -> None:
        """Create an empty group of the right shape; one rename puts it into place."""
        blank = [np.full(a.shape, "" if a.dtype.kind in ("O", "T") else 0, a.dtype) for a in results.arrays]
        empty = results.layout.dataset(blank).assign_attrs(variables=results.layout.names)
        empty["done"] = (("stage", "layer"), np.zeros(results.shape, bool))
        added = {d: v for d, v in self.labels.items() if d not in empty.coords and empty.sizes.get(d) == len(v)}
        empty = empty.assign_coords(added).assign_attrs(added_labels=list(added))
        empty.attrs["identity"] = json.dumps(self.identity, sort_keys=True, default=str)
        chunks = {str(n): {"chunks": (1, *(max(1, s) for s in v.shape[1:]))} for n, v in empty.data_vars.items()}
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        empty.to_zarr(temporary, mode="w-", zarr_format=3, consolidated=False, encoding=chunks)
        temporary.rename(self.path)

    def _load(self) -> None:
        self._open = xr.open_zarr(self.path, chunks=None, consolidated=False)
        stored = self._open.attrs.get("identity")
        if stored != json.dumps(self.identity, sort_keys=True, default=str):
            raise InputError(f"{self.path} belongs to another analysis; remove this folder")
        self._done = np.array(self._open["done"].values)


def results_folder(store: str | Path) -> Path:
    """Folder of the cached results of a store: `run.zarr` -> `run.zarr.results`."""
    path = Path(store)
    return path.with_name(path.name + ".results")


def clear_results(store: str | Path) -> None:
    """Remove all cached results of a store; the store itself does not change.

    Args:
        store: path of the store.

    Returns:
        None. A store without cached results is no error.
    """
    shutil.rmtree(results_folder(store), ignore_errors=True)


def digest(value: Any) -> str:
    """Hash the values, shape and dtype of an array, or of each array in a list."""
    sha = hashlib.sha256()
    for array in value if isinstance(value, list) else [value]:
        array = np.asarray(array)
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        is_text = array.dtype.kind in ("O", "T", "U")
        sha.update(repr(array.tolist()).encode() if is_text else np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _check_zarr_can_store(result: xr.Dataset) -> None:
    """Refuse a MultiIndex, which zarr cannot store, and times, which xarray writes relative to the first slab."""
    levels = [str(name) for name in multi_indexed(result)]
    if levels:
        raise InputError(
            f"a result with the MultiIndex {levels[0]!r} cannot be cached; end the function with "
            f".reset_index({levels[0]!r}), or leave cache= out"
        )
    if "done" in result.variables:
        raise InputError("a result with a variable 'done' cannot be cached, as the cache uses this name; rename it")
    times = [str(name) for name, v in result.variables.items() if v.dtype.kind in "mM"]
    if times:
        raise InputError(f"times ({times[0]!r}) cannot be cached; return numbers or text, or leave cache= out")


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name!r} in {group.store_path} is not an array")
    return array
