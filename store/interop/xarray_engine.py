"""The xarray engine `stratalens`, which calls open_store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from stratalens.store.reading.open import open_store
from stratalens.store.storage.base import PRIVATE
from stratalens.store.storage.resolve import is_url


class StratalensBackend(BackendEntrypoint):
    """Backend entry point; values are lazy, `chunks=` of xr.open_dataset adds dask."""

    description = "Open stores of activations written by stratalens"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "verify", "dtype")

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        verify: bool = True,
        dtype: Any = "float32",
    ) -> xr.Dataset:
        """Return the lazily indexed Dataset of a store."""
        dataset = open_store(filename_or_obj, chunks=None, verify=verify, dtype=dtype)
        if drop_variables is not None:
            names = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables)
            dataset = dataset.drop_vars(names, errors="ignore")
        return dataset

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether a local path holds a store.

        The answer for a URL is False, to avoid network requests; name the engine to open it.
        """
        if not isinstance(filename_or_obj, str | os.PathLike) or is_url(filename_or_obj):
            return False
        return (Path(filename_or_obj) / PRIVATE).is_dir()
