"""Results on disk: one labelled zarr group for each, in a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from stratalens.store.errors import InputError
from stratalens.store.files import fsync_folder, user_path
from stratalens.store.storage.disk import run_concurrently


def write_results(results: Mapping[str, xr.Dataset | xr.DataArray], folder: str | os.PathLike[str]) -> Path:
    """Write each result to `folder/<name>.zarr`.

    A group appears only when it is complete and durable.

    Args:
        results: labelled results by name.
        folder: created if missing; groups of the same name are replaced.

    Returns:
        The folder.

    Raises:
        InputError: `folder` is a file.
    """
    folder = user_path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the results")
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        target, temporary = folder / f"{name}.zarr", folder / f"{name}.zarr.part"
        shutil.rmtree(temporary, ignore_errors=True)
        _to_zarr_types(result, name).to_zarr(temporary, zarr_format=3, consolidated=False)
        _make_durable(temporary)
        previous = folder / f"{name}.zarr.old"
        shutil.rmtree(previous, ignore_errors=True)
        if target.exists():
            target.rename(previous)
        temporary.rename(target)
        fsync_folder(folder)
        shutil.rmtree(previous, ignore_errors=True)
    return folder


def _make_durable(group: Path) -> None:
    """Make the content and the names of all files of a group durable."""
    # Of files, too: both are opened for reading.
    run_concurrently([partial(fsync_folder, path) for path in (group, *group.rglob("*"))])


def read_results(folder: str | os.PathLike[str]) -> dict[str, xr.Dataset]:
    """Open every result that `write_results` wrote to a folder.

    Returns:
        dict from name to lazy Dataset.

    Raises:
        InputError: the folder does not exist.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise InputError(
            f"results folder {folder} does not exist; create it with: stratalens analyze STORE -o {folder}"
        )
    return {
        path.name.removesuffix(".zarr"): xr.open_zarr(path, consolidated=False)
        for path in sorted(folder.glob("*.zarr"))
    }


def _to_zarr_types(result: xr.Dataset | xr.DataArray, name: str) -> xr.Dataset:
    """Convert a result to the types that zarr takes: text as StringDType, no encodings."""
    if isinstance(result, xr.DataArray):
        result = result.to_dataset(name=name if result.name is None else result.name)
    # "T" is converted too: a pandas index of text has a missing value, which zarr writes as fixed-width U.
    texts = {
        key: variable.to_base_variable().copy(data=variable.values.astype(object).astype(np.dtypes.StringDType()))
        for key, variable in result.variables.items()
        if variable.dtype.kind in "OUT"
    }
    ds = result.assign_coords({k: v for k, v in texts.items() if k in result.coords})
    ds = ds.assign({k: v for k, v in texts.items() if k in ds.data_vars})
    for variable in ds.variables.values():
        variable.encoding = {}
    return ds
