"""The activation store: labelled, chunked, checksummed zarr arrays. It needs no torch and no plotting library.

The public names are loaded on first use.

    interop     other formats: exported arrays, icechunk, an xarray engine
    integrity   verification and repair
    writing     new stores, blocks of rows, label columns
    reading     a store as a lazy Dataset
    display     HTML for notebooks, byte counts as text
    state       root document, commit records, history, provenance
    format      names, geometry, bytes and checksums
    storage     folders and object stores
    errors      the exceptions
    files       text files replaced atomically
    names       names from users: each listed once, without blanks around it
    threads     reader threads and scratch memory
    compat      private interfaces of xarray, dask and zarr
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
