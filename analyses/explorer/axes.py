"""Axes of the scatter by choice, and 95 % regions of the group means.

All axes are fitted on one half of the entities; the scatter shows the rows of the other half. So a gap between groups
is no result of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stratalens.analyses.centroids.entities import widest_across
from stratalens.analyses.data.array_types import Array, Codes
from stratalens.analyses.estimators.closed_form import fit_closed_form
from stratalens.analyses.plots.spec import plain_text
from stratalens.store.errors import InputError

AXES = {
    "groups": "group means",
    "pca": "principal components of the rows",
    "lda": "linear discriminants (LDA)",
    "directions": "two directions",
}

MAX_PAIRED_GROUPS = 10  # of more groups, the directions are those of each group against the rest
REST = "the rest"


def direction_names(groups: Sequence[str]) -> list[str]:
    """Return the directions to choose from: pairs of groups, and each group against the rest.

    Example:
        >>> direction_names(["a", "b"]), direction_names(["a", "b", "c"])[3:]
        (['a v b'], ['a v the rest', 'b v the rest', 'c v the rest'])
    """
    names = [plain_text(g, 30) for g in groups]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]] if len(names) <= MAX_PAIRED_GROUPS else []
    if len(names) > 2:
        pairs += [(a, REST) for a in names]
    return [f"{a} v {b}" for a, b in pairs]


def default_directions(groups: Sequence[str]) -> tuple[str, str]:
    """Return the directions at the start: first against last, and first against second group."""
    names = [plain_text(g, 30) for g in groups]
    options = direction_names(groups)
    wanted = [f"{names[0]} v {names[-1]}", f"{names[0]} v {names[1]}"]
    first, second = (name if name in options else options[0] for name in wanted)
    return first, second


def axis_titles(axes: str, x: str, y: str, groups: int) -> tuple[str, str] | None:
    """Return the labels of chosen axes; None for the group means, which have labels of their own."""
    unit = "(activation units)"
    if axes == "pca":
        return f"principal component 1 {unit}", f"principal component 2 {unit}"
    if axes == "lda":
        second = "widest direction across it" if groups == 2 else "discriminant 2"
        return f"discriminant 1 {unit}", f"{second} {unit}"
    if axes == "directions":
        return f"direction {x} {unit}", f"direction {y} {unit}"
    return None


def fit_axes(axes: str, x: str, y: str, groups: Sequence[str], values: Array, codes: Codes) -> Array:
    """Fit the axes on rows of the fitting half.

    Args:
        axes: key of `AXES` other than "groups".
        x: direction of the horizontal axis, of `direction_names`; used by "directions".
        y: direction of the vertical axis.
        groups: names of the groups.
        values: float32 array of shape (n, features).
        codes: int64 array of shape (n,), group of each row.

    Returns:
        float64 array of shape (2, features), unit vectors.

    Raises:
        InputError: the axes or a direction are unknown, or a group has fewer than two rows.
    """
    if axes == "pca":
        return _signed(_principal(values), values, codes)
    if axes == "lda":
        fitted = _discriminants(values, codes)[:2]
        if len(fitted) < 2:
            fitted = np.stack([fitted[0], widest_across(fitted[0], values)])
        return _signed(fitted, values, codes)
    if axes == "directions":
        return np.stack([_direction(name, groups, values, codes) for name in (x, y)])
    raise InputError(f"unknown axes {axes!r}. Valid: {', '.join(AXES)}.")


def _direction(name: str, groups: Sequence[str], values: Array, codes: Codes) -> Array:
    """Return the discriminant of a pair of groups; it points to the second one."""
    names = [plain_text(g, 30) for g in groups]
    for i, one in enumerate(names):
        for other in [REST, *names[i + 1 :]]:
            if name == f"{one} v {other}":
                second = codes != i if other == REST else codes == names.index(other)
                used = (codes == i) | second
                pair = second[used].astype(np.int64)
                axis = _discriminants(values[used], pair)[:1]
                return np.asarray(_signed(axis, values[used], pair)[0])
    raise InputError(f"no direction {name!r}. Valid: {', '.join(direction_names(groups)[:10])}.")


def _principal(values: Array) -> Array:
    """Return the first two principal components of rows, of shape (2, features); zeros where there are fewer."""
    from sklearn.decomposition import PCA

    axes = np.zeros((2, values.shape[1]))
    count = min(2, len(values), values.shape[1])
    axes[:count] = PCA(n_components=count, random_state=0).fit(values).components_
    return axes


def _discriminants(values: Array, codes: Codes) -> Array:
    """Return unit vectors of shape (groups - 1, features); the groups differ most along the first.

    They are the best combinations of the directions of each group against the rest, by LDA with Ledoit-Wolf shrinkage.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    sizes = np.bincount(codes)
    if len(sizes) < 2 or (sizes < 2).any():
        raise InputError("a group has fewer than two rows in the half that defines the axes; choose other axes")
    groups = np.arange(len(sizes)) if len(sizes) > 2 else np.array([1])
    signs = np.where(codes[:, None] == groups, 1, -1).astype(np.int8)[:, :, None]
    fit = fit_closed_form(values, signs, codes, "lda")
    directions = fit.coef / np.linalg.norm(fit.coef, axis=1, keepdims=True)
    if len(directions) > 1:
        reduced = (values - values.mean(axis=0)) @ directions.T
        order = LinearDiscriminantAnalysis(solver="svd").fit(reduced, codes).scalings_[:, : len(sizes) - 1]
        directions = order.T @ directions
    return np.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True), dtype=np.float64)


def _signed(axes: Array, values: Array, codes: Codes) -> Array:
    """Turn each axis so that the mean of the last group is not below that of the first one."""
    first, last = values[codes == codes.min()].mean(axis=0), values[codes == codes.max()].mean(axis=0)
    return np.where(((last - first) @ axes.T < 0)[:, None], -axes, axes)


def mean_regions(coordinate: Array, codes: Codes, units: Codes, count: int) -> npt.NDArray[np.float64]:
    """Compute the 95 % region of each group mean, an ellipse, from the spread of its entities.

    Args:
        coordinate: array of shape (n, 2), rows in the plane.
        codes: int64 array of shape (n,), group of each row.
        units: int64 array of shape (n,), entity of each row; rows of one entity are averaged first.
        count: number of groups.

    Returns:
        float64 array of shape (count, 3): width, height and angle in radians; NaN below four entities.
    """
    from scipy.stats import f

    out = np.full((count, 3), np.nan)
    for g in range(count):
        rows = codes == g
        _, entity = np.unique(units[rows], return_inverse=True)
        n = int(entity.max(initial=-1)) + 1
        if n < 4:
            continue
        sums = np.stack([np.bincount(entity, coordinate[rows, c]) for c in (0, 1)], axis=1)
        means = sums / np.bincount(entity)[:, None]
        lengths, vectors = np.linalg.eigh(np.cov(means.T) / n)
        radius = np.sqrt(2 * (n - 1) / (n - 2) * f.ppf(0.95, 2, n - 2))  # Hotelling's T squared
        width, height = 2 * radius * np.sqrt(np.maximum(lengths[::-1], 0))
        out[g] = width, height, np.arctan2(vectors[1, 1], vectors[0, 1])
    return out
