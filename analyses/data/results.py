"""Vectors of a result and their feature dims, its attributes, and variables that it must have."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array, Data
from stratalens.store.errors import InputError

# Dims of results that are no features.
LABELS = {"stage", "layer", "token", "pair", "fold", "group", "method", "seed", "repeat", "component", "draw"}
# Dims that the analyses add to the dims of the data.
RESULT_DIMS = (LABELS | {"sample", "scored", "statistic", "balance_at"}) - {"stage", "layer", "token"}
# Attributes that say where vectors come from.
SOURCE_ATTRS = (
    "site",
    "hook",
    "method",
    "C",
    "target",
    "by",
    "ordered",
    "normalize",
    "seed",
    "stratalens_key",
    "model",
)


def vectors(source: Data) -> tuple[xr.DataArray, list[Hashable]]:
    """Find the vectors of a result, and the names of their feature dims.

    Raises:
        InputError: the result has no vectors, or the vectors have no feature dim.
    """
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


def as_text(values: Array) -> Array:
    """Convert labels to text of fixed width, whatever type of text a file gave back.

    zarr returns text as StringDType, which NumPy does not convert to fixed width itself.

    Example:
        >>> as_text(np.array(["a", "bc"], dtype=np.dtypes.StringDType())).dtype
        dtype('<U2')
    """
    return np.asarray(values).astype(object).astype(str)


def carried_attrs(source: Data) -> dict[str, Any]:
    """Attributes of a result that say where its vectors come from."""
    return {k: source.attrs[k] for k in SOURCE_ATTRS if k in source.attrs}


def replace_place(result: xr.Dataset, finer: xr.Dataset) -> xr.Dataset:
    """Return a result with the numbers of one place from a longer computation, so that both agree.

    Args:
        result: numbers of many places (stage, layer, token).
        finer: the same analysis of the same data at one place, for example with more permutations.

    Returns:
        A copy of `result`. The p of a maximum over places (`_p_max`) and variables without a place stay.

    Example:
        >>> many = xr.Dataset({"r2": ("layer", [0.1, 0.2])}, coords={"layer": [0, 1]})
        >>> replace_place(many, xr.Dataset({"r2": ("layer", [0.3])}, coords={"layer": [1]})).r2.values.tolist()
        [0.1, 0.3]
    """
    out = result.copy(deep=True)
    for name, better in finer.data_vars.items():
        place = {dim: better[dim].values[0] for dim in ("stage", "layer", "token") if better.sizes.get(dim) == 1}
        if name in out and place and set(better.dims) == set(out[name].dims) and not str(name).endswith("_p_max"):
            out[name].loc[place] = better.isel(dict.fromkeys(place, 0)).transpose(
                *(dim for dim in out[name].dims if dim not in place)
            )
    return out


def boosting_result(result: xr.Dataset) -> xr.Dataset | None:
    """Select the boosting of a result of model="both", under the names of a result of its own.

    Returns:
        None for a result of one model.
    """
    own = {str(v): str(v).removeprefix("boosting_") for v in result.data_vars if str(v).startswith("boosting_")}
    if not own:
        return None
    shared = [v for v in ("used", "constant", "chance", "entity_fold") if v in result]
    return result[[*own, *shared]].rename_vars(own).assign_attrs(method="boosting")


def find_variable(data: Data, name: str) -> xr.DataArray | None:
    """Find a variable of a Dataset or a coordinate of a DataArray; None without one."""
    return data.get(name) if isinstance(data, xr.Dataset) else data.coords.get(name)


def require_variable(data: Any, name: str, plot: str, made_by: str) -> xr.DataArray:
    """Return the variable that a plot needs.

    Raises:
        InputError: the result has no such variable; names the function that computes it.
    """
    if not isinstance(data, xr.Dataset) or name not in data:
        have = ", ".join(map(str, data.data_vars)) if isinstance(data, xr.Dataset) else type(data).__name__
        raise InputError(
            f"plots.{plot} needs a Dataset with {name!r}; got {have or 'an empty Dataset'}. Compute it with {made_by}."
        )
    return data[name]
