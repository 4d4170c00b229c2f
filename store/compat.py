"""Private interfaces of xarray, dask and Bokeh that have no public counterpart.

Every function says why the public interface does not suffice. A test named after it fails when the library changes.
"""

from __future__ import annotations

from typing import Any

import xarray as xr
from xarray.core import indexing


def lazy_selection(variable: xr.Variable) -> tuple[object, tuple[Any, ...]] | None:
    """Return the backend array of a lazily indexed variable, and its key.

    The key is what `isel` has applied so far. The result is None for any other variable.

    Private: `Variable._data` and the classes that wrap it. `Variable.data` reads the values, and `encoding` names the
    file but not the rows that `isel` has selected.
    """
    data: Any = variable._data
    while isinstance(data, indexing.CopyOnWriteArray | indexing.MemoryCachedArray):
        data = data.array
    return (data.array, data.key.tuple) if isinstance(data, indexing.LazilyIndexedArray) else None


def is_in_memory(variable: xr.Variable) -> bool:
    """Return whether a variable that has no dask chunks holds its values in memory.

    Private: `Variable._in_memory`. Every public attribute that could tell reads the values first.
    """
    return bool(variable._in_memory)


def tornado_application(server: Any) -> Any:
    """Return the tornado application of a Bokeh server.

    Private: `BaseServer._tornado`. The public parameters of the server check the origin of websockets, and nothing
    checks the Host of requests.
    """
    return server._tornado


def has_dask_callbacks() -> bool:
    """Return whether a dask callback is registered, such as a progress bar.

    Private: `Callback.active`. The public class registers callbacks and does not list them.
    """
    from dask.callbacks import Callback  # a store that is opened without dask does not import it

    return bool(Callback.active)
