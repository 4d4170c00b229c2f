"""The activation store: labelled, chunked, checksummed zarr (NumPy, zarr and xarray; no torch, no plotting)."""

from __future__ import annotations

from stratalens.store.create import create
from stratalens.store.info import info
from stratalens.store.reader import open_store
from stratalens.store.relabelling import relabel
from stratalens.store.verify import VerifyReport, verify_store
from stratalens.store.writer import ActivationWriter

__all__ = ["ActivationWriter", "VerifyReport", "create", "info", "open_store", "relabel", "verify_store"]
