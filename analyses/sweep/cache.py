"""Cached results next to the store (`run.zarr.results/`), with which an interrupted sweep resumes.

Each analysis with its parameters has one labelled zarr group with one chunk a stage; `done` marks the finished slabs.
A slab that differs from its checksum in `done_crc32c` is computed again.
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
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array, Mask
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.assemble import ResultBuffer, multi_indexed, with_text_as_objects
from stratalens.analyses.sweep.cache_files import (
    CHECKSUMS,
    DONE,
    SEAL,
    GroupWriter,
    is_group,
    make_names_durable,
    read_group,
    remove_leftovers,
    set_aside,
    slab_checksum,
    write_files,
)
from stratalens.store.errors import CacheWarning, InputError
from stratalens.store.storage.local import LocalStorage
from stratalens.store.storage.local_locks import FileLock

FLUSH_SECONDS = 2.0
FLUSH_SHARE = 0.05  # largest share of the time that writing may take, for large results
FORMAT = 3  # increase it when the meaning of any cached result changes


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
        self._writer: GroupWriter | None = None
        self._damaged = False  # the group on disk has to be replaced
        self._done: Mask | None = None  # (stage, layer), once the shape is known
        self._checksums: Array | None = None  # (stage, layer), as they are on disk
        self._stages: set[int] = set()  # stages with slabs that are not written yet
        self._flushed = time.monotonic()
        self._pause = FLUSH_SECONDS
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        if is_group(path):
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
        try:
            result = self._read(self._open, slab.position)
        except Exception as error:  # libraries raise anything when bytes are damaged
            self._done[slab.position] = False
            self._warn(error)
            return None
        return result

    def _read(self, group: xr.Dataset, position: tuple[int, int]) -> xr.Dataset:
        """Read the result of one slab, and compare it with its checksum."""
        result = group.isel(stage=position[0], layer=position[1])
        result = result.drop_vars([DONE, CHECKSUMS, *group.attrs.get("added_labels", [])]).load()
        names: list[str] = result.attrs.get("variables", list(result.data_vars))
        result = with_text_as_objects(result[names])  # zarr lists variables in any order
        own = ("identity", "added_labels", "variables", *SEAL)
        result.attrs = {k: v for k, v in result.attrs.items() if k not in own}
        values = [result[name].values for name in names]
        if self._checksums is None or slab_checksum(position, values) != self._checksums[position]:
            raise ValueError(f"slab {position} differs from its checksum")
        return result

    @property
    def finished(self) -> int:
        """Number of finished slabs."""
        return 0 if self._done is None else int(self._done.sum())

    def damaged_slabs(self) -> list[tuple[int, int]]:
        """Read all finished slabs and list the positions (stage, layer) of those that are damaged."""
        damaged = []
        for stage, layer in np.argwhere(self._done).tolist() if self._done is not None else ():
            try:
                assert self._open is not None
                self._read(self._open, (stage, layer))
            except Exception:  # as in `get`
                damaged.append((stage, layer))
        return damaged

    def _warn(self, error: Exception) -> None:
        warnings.warn(
            f"cached results in {self.path} are damaged ({error}); they are computed again", CacheWarning, stacklevel=2
        )

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
        start = time.monotonic()
        if not self._lock.acquired:
            LocalStorage(self.path.parent).make_folders([""])
            if not self._lock.try_acquire():
                return  # another process runs the same analysis and writes its results
            remove_leftovers(self.path)
            make_names_durable(self.path)
        if self._damaged:
            set_aside(self.path)
            self._damaged = False
        if self._writer is None:
            self._writer = self._group(results)
        exists = is_group(self.path)
        files: dict[str, bytes] = {} if exists else dict(self._writer.files)
        marks: dict[str, bytes] = {}
        for stage in sorted(self._stages):
            done, checksums = self._done[stage], np.zeros(len(self._done[stage]), np.uint32)
            for layer in np.flatnonzero(done).tolist():
                checksums[layer] = slab_checksum((stage, layer), [a[stage, layer] for a in results.arrays])
            for name, values in zip(results.layout.names, results.arrays, strict=True):
                finished = values[stage].copy()
                finished[~done] = "" if values.dtype.kind in ("O", "T") else 0
                files |= self._writer.chunk(name, stage, finished)
            marks |= self._writer.chunk(CHECKSUMS, stage, checksums) | self._writer.chunk(DONE, stage, done)
        write_files(self.path, files)
        write_files(self.path, marks)
        if not exists:
            write_files(self.path, {"zarr.json": self._writer.root})
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

    def _group(self, results: ResultBuffer) -> GroupWriter:
        """Return the writer of a group of the right shape."""
        blank = [np.full(a.shape, "" if a.dtype.kind in ("O", "T") else 0, a.dtype) for a in results.arrays]
        empty = results.layout.dataset(blank).assign_attrs(variables=results.layout.names)
        empty[DONE] = (("stage", "layer"), np.zeros(results.shape, bool))
        empty[CHECKSUMS] = (("stage", "layer"), np.zeros(results.shape, np.uint32))
        added = {d: v for d, v in self.labels.items() if d not in empty.coords and empty.sizes.get(d) == len(v)}
        empty = empty.assign_coords(added).assign_attrs(added_labels=list(added))
        empty.attrs["identity"] = json.dumps(self.identity, sort_keys=True, default=str)
        return GroupWriter(empty)

    def _load(self) -> None:
        """Open the group; a damaged one is replaced by the next flush."""
        try:
            group = read_group(self.path)
            checksums = np.array(group[CHECKSUMS].values)
            done = np.array(group[DONE].values) & (checksums != 0)
        except Exception as error:  # libraries raise anything when bytes are damaged
            self._damaged = True
            self._warn(error)
            return
        if group.attrs.get("identity") != json.dumps(self.identity, sort_keys=True, default=str):
            raise InputError(f"{self.path} belongs to another analysis; remove this folder")
        self._open, self._done, self._checksums = group, done, checksums


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
    for name in (DONE, CHECKSUMS):
        if name in result.variables:
            raise InputError(
                f"a result with a variable {name!r} cannot be cached, as the cache uses this name; rename it"
            )
    times = [str(name) for name, v in result.variables.items() if v.dtype.kind in "mM"]
    if times:
        raise InputError(f"times ({times[0]!r}) cannot be cached; return numbers or text, or leave cache= out")
