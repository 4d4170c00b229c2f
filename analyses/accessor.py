"""ds.strata: every verb as a method of a Dataset or DataArray, and how it looks in a notebook.

Arguments and results are those of the functions of the same name. `ds.strata` by itself in a
notebook shows what a store holds, or what a result was made from.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import xarray as xr

# Verbs that take the data (or a result) first, and the modules they live in.
VERBS = {
    "sweep": "sweep",
    "centroids": "centroids",
    "project": "centroids",
    "pca": "pca",
    "probe": "probes",
    "statistics_probe": "controls",
    "matched_probe": "controls",
    "residual_probe": "controls",
    "baseline_probe": "controls",
    "controls": "controls",
    "procrustes": "alignment",
    "cosines": "directions",
    "agreement": "directions",
    "drift": "directions",
    "steps": "directions",
    "principal_angles": "alignment",
    "generalise": "generalisation",
    "fdr": "significance",
}


class Strata:
    """The verbs of stratalens, applied to this object: ``ds.strata.centroids(by="trained_stage")``.

    >>> import numpy as np
    >>> x = xr.DataArray(np.eye(4)[:, None], dims=("entity", "token", "d_model"),
    ...     coords={"colour": ("entity", np.array(["red", "red", "blue", "blue"], object))})
    >>> x.strata.centroids(by="colour", progress=False).centroid.values[0].tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """

    def __init__(self, data: xr.Dataset | xr.DataArray) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in VERBS:
            raise AttributeError(f"ds.strata has no {name!r}; it has {', '.join(sorted(VERBS))}")
        verb = getattr(importlib.import_module(f"stratalens.analyses.{VERBS[name]}"), name)

        def method(*args: Any, **kwargs: Any) -> Any:
            return verb(self._data, *args, **kwargs)

        method.__name__, method.__qualname__, method.__doc__ = name, f"Strata.{name}", verb.__doc__
        return method

    def __dir__(self) -> list[str]:
        return sorted(VERBS)

    def __repr__(self) -> str:
        name = getattr(self._data, "name", None)
        sizes = ", ".join(f"{dim} {size}" for dim, size in self._data.sizes.items())
        return f"<stratalens verbs on {name or type(self._data).__name__} ({sizes}): {', '.join(sorted(VERBS))}>"

    def _repr_html_(self) -> str:
        from stratalens.analyses.notebook import data_html

        return data_html(self._data)


_xarray: Any = xr  # the registers have no types
_xarray.register_dataset_accessor("strata")(Strata)
_xarray.register_dataarray_accessor("strata")(Strata)
