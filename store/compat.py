"""Private interfaces of xarray, dask and zarr that have no public counterpart."""

from __future__ import annotations
