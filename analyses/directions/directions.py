"""Angles between directions: cosines, agreement of methods, drift over stages, steps of a path.

The functions take results of `probe` and `centroids`, or any DataArray of vectors.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.results import carried_attrs, require_variable, vectors
from stratalens.store.errors import InputError, suggest

# Where the chance level of cosines comes from.
ISOTROPIC, SHUFFLED = "isotropic directions", "shuffled labels"


def cosines(probes: Data, over: str = "pair", null: Data | None = None) -> xr.DataArray:
    """Compute the cosines between all directions along one dim.

    Two unrelated directions have a cosine near 0 only where the activations vary equally in all directions. Cosines
    are larger by chance where a few directions have most of the noise, where two pairs have a group in common (.5),
    and where two layers share their noise (up to 1). Probes of shuffled labels show by how much.

    Args:
        probes: result of `probe` (its `coef`), or a DataArray of vectors whose last dims are features.
        over: pair, layer, stage or token: the dim along which directions are compared.
        null: result of `shuffled_probes` at the same places; adds `random_mean` and `random_sd`.

    Returns:
        DataArray; its attribute `random_sd` is the standard deviation of the cosine of two random directions: with
        `null` the root mean square over its different directions (pairs without a common group, if there are any),
        else 1 / sqrt(features), which is too small for most activations. The attribute `random_from` says which,
        "shuffled labels" or "isotropic directions".

        - cosine (..., over, over_other): float64, from -1 to 1; NaN for a direction of length zero.
        - random_mean, random_sd (..., over, over_other): float64 coordinates, mean and standard deviation over
          shuffled labels; only with `null`.

    Raises:
        InputError: no such dim, vectors without features, or a null of other directions.

    Example:
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
    other = other.rename({c: f"{c}_other" for c in unit.coords if over in unit[c].dims and c != over})
    out: xr.DataArray = xr.dot(unit, other, dim=features)
    rest = [d for d in unit.dims if d not in features and d != over]
    out = out.transpose(*rest, over, f"{over}_other").clip(-1, 1)
    size = int(np.prod([coef.sizes[d] for d in features]))
    attrs = {**carried_attrs(probes), "over": over, "random_sd": float(size**-0.5), "random_from": ISOTROPIC}
    out = out.rename("cosine").assign_attrs(attrs)
    return out if null is None else _add_null(out, null, over)


def _add_null(out: xr.DataArray, null: Data, over: str) -> xr.DataArray:
    """Add the mean and the spread of the cosines of shuffled labels."""
    drawn = cosines(null, over)
    if "draw" not in drawn.dims:
        raise InputError("null has no dim 'draw'; compute it with shuffled_probes(ds, ...)")
    try:
        xr.align(out, drawn, join="exact", exclude={"draw"})
    except ValueError as error:
        raise InputError(
            f"null has other directions than the probes; give it the same data and pairs: {error}"
        ) from error
    different = ~np.eye(out.sizes[over], dtype=bool)
    if over == "pair" and "pair_first" in out.coords:
        ends = [set(pair) for pair in zip(out.pair_first.values, out.pair_second.values, strict=True)]
        disjoint = np.array([[not a & b for b in ends] for a in ends])
        different = disjoint if disjoint.any() else different
    squares = drawn.transpose(..., over, f"{over}_other").values[..., different] ** 2
    known = bool(np.isfinite(squares).any())
    return out.assign_coords(
        random_mean=drawn.mean("draw").drop_attrs(), random_sd=drawn.std("draw", ddof=1).drop_attrs()
    ).assign_attrs(random_sd=float(np.sqrt(np.nanmean(squares))) if known else float("nan"), random_from=SHUFFLED)


def agreement(first: Data, second: Data) -> xr.DataArray:
    """Compute the cosine between corresponding directions of two methods, sites or seeds.

    Args:
        first: result of `probe` or `centroids`, or a DataArray of vectors.
        second: vectors with the same labels.

    Returns:
        DataArray over the dims of both, without the features:

        - cosine (...): float64, from -1 to 1; NaN for a direction of length zero.

    Raises:
        InputError: the labels of the two differ.

    Example:
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


def drift(directions: Data, dim: str = "stage", reference: Literal["first", "last", "previous"] = "last") -> xr.Dataset:
    """Measure how a direction or a centroid turns and moves along one dim, e.g. from checkpoint to checkpoint.

    Args:
        directions: result of `probe` or `centroids`, or a DataArray of vectors.
        dim: stage or layer.
        reference: vector to compare each one with; with "previous" the first one has no value (NaN).

    Returns:
        Dataset over all dims but the features:

        - cosine (...): float64, with the reference.
          distance (...): from the reference, in the dtype of the vectors.
          length (...): of the vector itself, in the dtype of the vectors.

    Raises:
        InputError: fewer than two entries along `dim`, or an unknown reference.
    """
    array, features = vectors(directions)
    if dim not in array.dims or array.sizes[dim] < 2:
        raise InputError(f"drift needs at least two entries along {dim!r} (dims: {', '.join(map(str, array.dims))})")
    if reference == "previous":
        reference_vector = array.shift({dim: 1})
    elif reference in ("first", "last"):
        reference_vector = array.isel({dim: 0 if reference == "first" else -1}, drop=True)
    else:
        raise InputError(f"reference={reference!r}: {suggest(reference, ['first', 'last', 'previous'])}")
    difference = array - reference_vector
    out = xr.Dataset(
        {
            "cosine": xr.dot(_unit(array, features), _unit(reference_vector, features), dim=features).clip(-1, 1),
            "distance": np.sqrt((difference**2).sum(features, skipna=False)),
            "length": np.sqrt((array**2).sum(features)),
        }
    )
    dims = [d for d in array.dims if d not in features]
    return out.transpose(*dims).assign_attrs({**carried_attrs(directions), "reference": reference, "dim": dim})


def steps(centroids: Data, over: str = "group") -> xr.Dataset:
    """Measure the steps and turns of the path of centroids through activation space.

    Independent points in many dimensions turn by 2/3 pi at each point, because two successive steps share a point and
    have a cosine of -1/2. The attribute `turn_random` gives this angle: compare `turn` with it before you call a path
    straight or bent.

    Args:
        centroids: result of `centroids`, or a DataArray of vectors in order along `over`.
        over: dim of the path: group, stage or layer.

    Returns:
        Dataset over all dims but the features; each entry describes the step that ends at its label:
        distance (...): from the previous centroid, in the dtype of the vectors; NaN at the first.

        - cosine (...): float64, between the two, seen from the origin; NaN at the first.
        - angle (...): float64, the same in radians; NaN at the first.
        - turn (...): float64, radians between the step that ends here and the step that starts here, 0 on a straight
          line; NaN at the first and the last.

    Raises:
        InputError: fewer than two entries along `over`.

    Example:
        >>> path = xr.DataArray([[1.0, 0.0], [1.0, 1.0], [1.0, 3.0], [4.0, 3.0]], dims=("group", "d_model"))
        >>> result = steps(path)
        >>> result.distance.values.tolist(), result.turn.values.round(4).tolist()
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
    """Distance of each group's centroid from the previous stage, relative to the mean centroid norm.

    Args:
        centroids: result of `sl.centroids`: centroid (stage, ..., group, d_model).

    Returns:
        DataArray for all stages but the first, in training order:

        - moved (stage, ..., group): float64, without unit.

    Raises:
        InputError: no variable `centroid`.
    """
    centroid = require_variable(centroids, "centroid", "stage_drift", "sl.centroids(ds, by=...)")
    features = [d for d in centroid.dims if d not in ("stage", "layer", "token", "group")]
    order = (
        np.argsort(np.atleast_1d(centroids["stage_order"].values), kind="stable")
        if "stage_order" in centroids.coords
        else slice(None)
    )
    ordered = centroid.astype("float64").isel(stage=order)
    moved = ((ordered - ordered.shift(stage=1)) ** 2).sum(features, skipna=False) ** 0.5
    size = ((ordered**2).sum(features) ** 0.5).mean("group")
    return (moved / size).isel(stage=slice(1, None)).rename("moved").assign_attrs(centroids.attrs)
