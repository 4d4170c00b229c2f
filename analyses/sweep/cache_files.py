"""Files of cached results: encoded as a zarr group in memory, written durably, and compared with checksums.

The root zarr.json of a group is written last and has a checksum of all documents and coordinates. Every finished slab
has a checksum in the variable `done_crc32c`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from stratalens.analyses.data.array_types import Array
from stratalens.store.errors import DamagedError
from stratalens.store.files import fsync_folder
from stratalens.store.format.checksum import crc32c, extend
from stratalens.store.storage.disk import DiskOperations, StagedFiles
from stratalens.store.storage.local import LocalStorage

ROOT = "zarr.json"

DONE, CHECKSUMS = "done", "done_crc32c"  # variables of a group that are no results

SEAL = ("checksum", "files")  # attributes of a group: checksum of its documents and coordinates, and their keys

BATCH_FILES = 256


class GroupWriter:
    """Encodes a group of results: its documents once, then one chunk a stage and variable.

    Args:
        empty: blank results of all stages and layers, with labels and attributes.
    """

    def __init__(self, empty: xr.Dataset) -> None:
        self._memory: dict[str, Any] = {}
        chunks = {str(n): {"chunks": (1, *(max(1, s) for s in v.shape[1:]))} for n, v in empty.data_vars.items()}
        store = MemoryStore(self._memory)
        empty.to_zarr(store, mode="w-", zarr_format=3, consolidated=False, encoding=chunks)
        blank = tuple(f"{name}/c/" for name in empty.data_vars)
        for key in [key for key in self._memory if key.startswith(blank)]:
            del self._memory[key]
        files = {key: data.to_bytes() for key, data in self._memory.items() if key != ROOT}
        root = json.loads(self._memory[ROOT].to_bytes())
        root["attributes"]["files"] = sorted(files)
        root["attributes"]["checksum"] = _seal(root, files)
        self.files = files
        self.root = json.dumps(root, ensure_ascii=False).encode()
        # An array keeps the setting with which it was opened. A chunk of NaN that is not written reads as the NaN of
        # the fill value, which has other bits than the NaN of a division by zero, and so another checksum.
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._arrays = dict(zarr.open_group(store, mode="r+", use_consolidated=False).arrays())

    def chunk(self, name: str, stage: int, values: Array) -> dict[str, bytes]:
        """Encode the values of one variable at one stage; return the files by key."""
        self._arrays[name][stage] = values
        keys = [key for key in self._memory if key.startswith(f"{name}/c/")]
        return {key: self._memory.pop(key).to_bytes() for key in keys}


def _seal(root: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """Compute the checksum of a root document without its seal, and of the files that it lists."""
    attributes = {k: v for k, v in root["attributes"].items() if k != "checksum"}
    state = hashlib.sha256(json.dumps({**root, "attributes": attributes}, sort_keys=True).encode())
    for key in sorted(files):
        state.update(f"\0{key}\0{len(files[key])}\0".encode() + files[key])
    return state.hexdigest()


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder, each atomically; all are durable when this returns."""
    folders = dict.fromkeys(key.rpartition("/")[0] for key in files)
    LocalStorage(folder).make_folders(folders)
    token = f".{folder.name}.{secrets.token_hex(4)}"
    items = list(files.items())
    for start in range(0, len(items), BATCH_FILES):
        staged = StagedFiles(DiskOperations(), folder)
        try:
            for number, (key, data) in enumerate(items[start : start + BATCH_FILES], start):
                staged.write(folder.parent / f"{token}-{number}", folder / key, (data,))
        except BaseException:
            staged.discard()
            raise
        staged.publish()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes; the caller holds the lock of the folder."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        if path.suffix != ".lock":
            remove(path)


def make_names_durable(folder: Path) -> None:
    """Make the names in a group durable, also those that a killed process left without an fsync of their folder."""
    inside = [path for path in folder.rglob("*") if path.is_dir()] if folder.is_dir() else []
    for path in (folder.parent.parent, folder.parent, *([folder] if folder.is_dir() else []), *inside):
        with suppress(PermissionError):  # a folder above may not be readable
            fsync_folder(path)


def remove(path: Path) -> None:
    """Remove a file or folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def set_aside(folder: Path) -> None:
    """Remove a damaged group in one step for readers."""
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        folder.rename(aside)
    remove(aside)


def read_group(folder: Path) -> xr.Dataset:
    """Open a group whose documents and coordinates agree with their checksum; values are not checked yet.

    Raises:
        DamagedError: something differs from the checksum, is missing or cannot be read.
    """
    storage = LocalStorage(folder)
    try:
        root = json.loads(storage.get(ROOT) or b"")
        stored, keys = root["attributes"]["checksum"], root["attributes"]["files"]
        if any(".." in key.split("/") or key.startswith("/") for key in keys):
            raise ValueError("a key leaves the folder")
        files = {key: storage.get(key) for key in keys}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{folder / ROOT} is damaged ({type(error).__name__})") from error
    whole = {key: data for key, data in files.items() if data is not None}
    if len(whole) != len(files) or _seal(root, whole) != stored:
        raise DamagedError(f"documents or labels in {folder} differ from their checksum")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zarr names files that are no part of the group
        content: xr.Dataset = xr.open_zarr(folder, chunks=None, consolidated=False)
        return content


def slab_checksum(position: tuple[int, int], values: Sequence[Array]) -> int:
    """Compute the checksum of the result of one slab; never 0, which marks a slab that is not finished.

    Args:
        position: (stage, layer).
        values: arrays of the result, in the order of its variables.
    """
    crc = crc32c(f"{position[0]},{position[1]}".encode())
    for array in values:
        array = np.asarray(array)
        if array.dtype.kind in ("O", "T", "U"):
            data = json.dumps([str(text) for text in array.ravel().tolist()]).encode()
        else:
            if array.dtype.kind in "fc":  # zarr and xarray keep no sign and no payload of NaN
                array = np.where(np.isnan(array), np.nan, array).astype(array.dtype)
            data = np.ascontiguousarray(array).tobytes()
        crc = extend(crc, np.frombuffer(data, dtype=np.uint8))
    return crc or 1


def is_group(folder: Path) -> bool:
    """Return whether a folder has a root document, which is written last."""
    return os.path.lexists(folder / ROOT)
