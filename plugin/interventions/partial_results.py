"""Finished parts of a job on disk, so that the same call resumes it; and its result, which appears when complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from stratalens.analyses.directions.effect_files import read_effect
from stratalens.analyses.results import write_results
from stratalens.store.errors import InputError, MismatchError
from stratalens.store.files import user_path, write_text_atomic

Values = NDArray[np.float64]


def identity_of(parts: Mapping[str, Any]) -> str:
    """Hash everything that the values of a job depend on; arrays by their bytes."""
    sha = hashlib.sha256()
    for name in sorted(parts):
        value = parts[name]
        if isinstance(value, np.ndarray):
            sha.update(f"{name}|{value.dtype.str}{value.shape}|".encode())
            sha.update(np.ascontiguousarray(value).tobytes())
        else:
            sha.update(f"{name}|{json.dumps(value, sort_keys=True, default=str)}\n".encode())
    return sha.hexdigest()


class PartialResults:
    """Arrays of a job that fill up part by part; NaN = not computed yet.

    Args:
        path: of the result, `<name>.zarr`; the parts are in the folder `<path>.partial`. None keeps them in memory.
        identity: everything that the values depend on.

    Raises:
        MismatchError: the path holds another job.
        InputError: the folder does not exist, or the path holds something else.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str) -> None:
        self.path = None if path is None else user_path(path)
        self.identity = identity
        self._arrays: dict[str, Values] = {}
        if self.path is None:
            return
        if self.path.suffix != ".zarr":
            raise InputError(f"path={str(path)!r}: name a folder that ends in .zarr, for example effects.zarr")
        if not self.path.parent.is_dir():
            raise InputError(f"folder {self.path.parent} does not exist; create it first")
        if self.path.exists() and self._stored(self.path / "zarr.json", "attributes") is None:
            raise InputError(f"{self.path} exists and is no result of intervene; choose another path")
        for stored in (
            self._stored(self.path / "zarr.json", "attributes"),
            self._stored(self._folder / "identity.json", None),
        ):
            if stored is not None and stored != identity:
                raise MismatchError(
                    f"{self.path} belongs to a job with other prompts, directions, settings or weights; choose another "
                    f"path, or remove {self.path} and {self._folder.name}"
                )

    @property
    def _folder(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".partial")

    @staticmethod
    def _stored(file: Path, key: str | None) -> str | None:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        identity = (content.get(key, {}) if key else content).get("identity")
        return None if identity is None else str(identity)

    def finished(self) -> xr.Dataset | None:
        """The result of an earlier call, or None."""
        if self.path is None or not self.path.exists():
            return None
        return read_effect(self.path)

    def array(self, name: str, shape: tuple[int, ...]) -> Values:
        """An array of this job, with what earlier calls have computed; NaN elsewhere."""
        if name not in self._arrays:
            if self.path is None:
                self._arrays[name] = np.full(shape, np.nan)
            else:
                self._arrays[name] = self._mapped(name, shape)
        return self._arrays[name]

    def _mapped(self, name: str, shape: tuple[int, ...]) -> Values:
        self._folder.mkdir(exist_ok=True)
        write_text_atomic(self._folder / "identity.json", json.dumps({"identity": self.identity}) + "\n")
        file = self._folder / f"{name}.npy"
        if not file.exists():
            temporary = file.with_suffix(".part")
            new = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float64, shape=shape)
            new[...] = np.nan
            new.flush()
            temporary.replace(file)
        return np.lib.format.open_memmap(file, mode="r+")

    def flush(self) -> None:
        """Write what was computed so far."""
        for values in self._arrays.values():
            if isinstance(values, np.memmap):
                values.flush()

    def discard(self) -> None:
        """Remove the parts."""
        self._arrays = {}
        if self.path is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def finish(self, result: xr.Dataset) -> xr.Dataset:
        """Write the result and remove the parts."""
        if self.path is not None:
            result = result.assign_attrs(identity=self.identity)
            write_results({self.path.stem: result}, self.path.parent)
            self.discard()
        return result
