"""How directions relate: cosines, agreement of methods, drift over stages.

Works on results of `probe` (or any DataArray of vectors). Subspaces and rotations
between checkpoints are in alignment.py, what a probe says of other groups in generalisation.py.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import numpy as np
import xarray as xr

from stratalens.analyses.data.results import carried_attrs, require_variable, vectors
from stratalens.store.errors import InputError, suggest


def cosines(probes: xr.Dataset | xr.DataArray, over: str = "pair") -> xr.DataArray:
    """Cosines between all directions along one dim.

    Args:
        probes: result of `probe` (its `coef`), or a DataArray of vectors whose last dims are features.
        over: pair, layer, stage or token: the dim along which directions are compared.

    Returns:
        DataArray (..., over, over_other), from -1 to 1; NaN for a direction of length zero. The attribute
        `random_sd` is the standard deviation between two random directions, 1 / sqrt(features).

    Raises:
        InputError: no such dim, or vectors without features.

    >>> w = xr.DataArray([[1.0, 0.0], [1.0, 1.0]], dims=("pair", "d_model"), coords={"pair": ["a v b", "a v c"]})
    >>> cosines(w).values.round(3).tolist()
    [[1.0, 0.707], [0.707, 1.0]]
    """
    coef, features = vectors(probes)
    if over not in coef.dims or over in features:
        valid = [str(d) for d in coef.dims if d not in features]
        raise InputError(f"over={over!r} is no dim of the directions: {suggest(over, valid)}")
    unit = _unit(coef, features)
    other = unit.rename({over: f"{over}_other"})
    named = {str(c): f"{c}_other" for c in unit.coords if over in unit[c].dims and c != over}
    other = other.rename({k: v for k, v in named.items() if k in other.coords})
    out: xr.DataArray = xr.dot(unit, other, dim=features)
    rest = [d for d in unit.dims if d not in features and d != over]
    out = out.transpose(*rest, over, f"{over}_other").clip(-1, 1)
    size = int(np.prod([coef.sizes[d] for d in features]))
    return out.rename("cosine").assign_attrs({**carried_attrs(probes), "over": over, "random_sd": float(size**-0.5)})


def agreement(first: xr.Dataset | xr.DataArray, second: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Cosine between corresponding directions of two methods (or sites, or seeds), over all dims they share.

    Raises:
        InputError: the labels of the two differ.

    >>> a = xr.DataArray([[3.0, 0.0]], dims=("pair", "d_model")); b = xr.DataArray([[0.0, 2.0]], dims=a.dims)
    >>> agreement(a, b).values.tolist()
    [0.0]
    """
    (a, features), (b, _) = vectors(first), vectors(second)
    try:
        a, b = xr.align(a, b, join="exact")
    except ValueError as error:
        raise InputError(f"the two sets of directions differ in their labels: {error}") from error
    out: xr.DataArray = xr.dot(_unit(a, features), _unit(b, features), dim=features).clip(-1, 1)
    methods = [str(carried_attrs(p).get("method", "?")) for p in (first, second)]
    return out.rename("cosine").assign_attrs({**carried_attrs(first), "methods": methods})


def drift(
    directions: xr.Dataset | xr.DataArray,
    dim: str = "stage",
    reference: Literal["first", "last", "previous"] = "last",
) -> xr.Dataset:
    """How a direction (or a centroid) turns and moves along one dim, from checkpoint to checkpoint.

    Args:
        directions: result of `probe` or `centroids`, or a DataArray of vectors.
        dim: stage or layer.
        reference: what each is compared with; with "previous" the first one has no value (NaN).

    Returns:
        Dataset over all dims but the features: cosine with the reference, distance from it, length of the vector
        itself.
    """
    array, features = vectors(directions)
    if dim not in array.dims or array.sizes[dim] < 2:
        raise InputError(f"drift needs at least two entries along {dim!r} (dims: {', '.join(map(str, array.dims))})")
    if reference == "previous":
        against = array.shift({dim: 1})
    elif reference in ("first", "last"):
        against = array.isel({dim: 0 if reference == "first" else -1}, drop=True)
    else:
        raise InputError(f"reference={reference!r}: {suggest(reference, ['first', 'last', 'previous'])}")
    difference = array - against
    out = xr.Dataset(
        {
            "cosine": xr.dot(_unit(array, features), _unit(against, features), dim=features).clip(-1, 1),
            "distance": np.sqrt((difference**2).sum(features, skipna=False)),
            "length": np.sqrt((array**2).sum(features)),
        }
    )
    keep = [d for d in array.dims if d not in features]
    return out.transpose(*keep).assign_attrs({**carried_attrs(directions), "reference": reference, "dim": dim})


def steps(centroids: xr.Dataset | xr.DataArray, over: str = "group") -> xr.Dataset:
    """The path of centroids through activation space: how far apart successive ones are, and how sharply it turns.

    Args:
        centroids: result of `centroids`, or a DataArray of vectors in order along `over`.
        over: dim along which they follow each other: group, stage or layer.

    Returns:
        Dataset over all dims but the features, each entry about the step that ends at its label:
        distance from the previous one (NaN at the first); cosine and angle (radians) between the two, as seen
        from the origin; turn (radians, NaN at the first and the last): the angle between the step that ends here
        and the one that begins here, 0 on a straight line. Independent points in many dimensions turn by 2/3 pi at
        each (two successive steps share a point, so that their cosine is -1/2), which the attribute `turn_random`
        says; compare with it before calling a path straight or bent.

    Raises:
        InputError: fewer than two entries along `over`.

    >>> path = xr.DataArray([[1.0, 0.0], [1.0, 1.0], [1.0, 3.0], [4.0, 3.0]], dims=("group", "d_model"))
    >>> found = steps(path)
    >>> found.distance.values.tolist(), found.turn.values.round(4).tolist()
    ([nan, 1.0, 2.0, 3.0], [nan, 0.0, 1.5708, nan])
    """
    moved = drift(centroids, over, "previous")
    array, features = vectors(centroids)
    step = _unit(array - array.shift({over: 1}), features)
    straight = xr.dot(step, step.shift({over: -1}), dim=features).clip(-1, 1)
    out = moved[["distance", "cosine"]].assign(angle=np.arccos(moved.cosine), turn=np.arccos(straight))
    out["angle"].attrs["units"] = out["turn"].attrs["units"] = "rad"
    out = out.transpose(*moved.dims)
    out.attrs = {**carried_attrs(centroids), "over": over, "turn_random": float(2 * np.pi / 3)}
    return out


def _unit(array: xr.DataArray, features: list[Hashable]) -> xr.DataArray:
    length: xr.DataArray = (array.astype(np.float64) ** 2).sum(features, skipna=False) ** 0.5
    unit: xr.DataArray = array / length.where(length > 0)
    return unit


def stage_steps(centroids: xr.Dataset) -> xr.DataArray:
    """How far each group's centroid moved since the stage before, over the mean centroid norm there.

    Args:
        centroids: result of `sl.centroids`: centroid (stage, ..., group, d_model).

    Returns:
        DataArray (stage, ..., group), without unit, for all stages but the first, in training order.
    """
    centroid = require_variable(centroids, "centroid", "stage_drift", "sl.centroids(ds, by=...)")
    known = {"stage", "layer", "token", "group"}
    features = [d for d in centroid.dims if d not in known]
    order = (
        np.argsort(np.atleast_1d(centroids["stage_order"].values), kind="stable")
        if "stage_order" in centroids.coords
        else slice(None)
    )
    ordered = centroid.astype("float64").isel(stage=order)
    moved = ((ordered - ordered.shift(stage=1)) ** 2).sum(features, skipna=False) ** 0.5
    size = ((ordered**2).sum(features) ** 0.5).mean("group")
    return (moved / size).isel(stage=slice(1, None)).rename("moved").assign_attrs(centroids.attrs)
