"""The activation store: labelled, chunked, checksummed zarr (NumPy, zarr and xarray; no torch, no plotting)."""
