"""The vectors of a result: which variable, which dims are features, where they come from."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import xarray as xr

from stratalens.store.errors import InputError

# Dims of results that are no features.
LABELS = {"stage", "layer", "token", "pair", "fold", "group", "method", "seed", "repeat", "component"}


# Dims that verbs give their results beside the features of the data.
RESULT_DIMS = (LABELS | {"sample", "statistic", "balance_at"}) - {"stage", "layer", "token"}


def vectors(source: xr.Dataset | xr.DataArray) -> tuple[xr.DataArray, list[Hashable]]:
    """The vectors of a result, and the names of their feature dims."""
    if isinstance(source, xr.Dataset):
        name = next((n for n in ("coef", "centroid", "vector") if n in source), None)
        if name is None:
            raise InputError(
                f"no 'coef', 'centroid' or 'vector' in the Dataset; it has {', '.join(map(str, source.data_vars))}"
            )
        source = source[name]
    labels = LABELS - {"token"} if source.attrs.get("tokens") == "joint" else LABELS
    features = [d for d in source.dims if d not in labels and not str(d).endswith("_other")]
    if not features:
        raise InputError(f"the vectors have no feature dim (dims: {', '.join(map(str, source.dims))})")
    return source, features


def carried_attrs(source: xr.Dataset | xr.DataArray) -> dict[str, Any]:
    """Attributes of a result that say where its vectors come from."""
    keep = ("site", "hook", "method", "C", "target", "by", "normalize", "seed", "stratalens_key", "model")
    return {k: source.attrs[k] for k in keep if k in source.attrs}


def require_variable(data: Any, name: str, plot: str, made_by: str) -> xr.DataArray:
    """Return a variable of a result, or refuse and say which verb makes it."""
    if not isinstance(data, xr.Dataset) or name not in data:
        have = ", ".join(map(str, data.data_vars)) if isinstance(data, xr.Dataset) else type(data).__name__
        raise InputError(
            f"plots.{plot} needs a Dataset with {name!r}; got {have or 'an empty Dataset'}. Make it with {made_by}."
        )
    found: xr.DataArray = data[name]
    return found
