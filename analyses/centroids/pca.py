"""Principal components of the activations at every stage, layer and token.

They come from second moments, so that one read is enough and memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import xarray as xr

from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.data.groups import groups
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.stats.moments import Moments, moments
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError


def pca(
    ds: Data,
    components: int = 10,
    site: str = "resid_post",
    by: str | None = None,
    order: Iterable[object] | None = None,
    *,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Compute principal components of all rows, or of the rows of each group around its own mean.

    Args:
        ds: Dataset or DataArray with dims among (stage, layer, entity, token, features).
        components: number of components.
        site: variable to read.
        by: label column: components of the variance inside its groups, without the variance of their means.
            None: of all rows around their common mean.
        order: groups of `by` wanted; None = all.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.

    Returns:
        Dataset, as from scikit-learn's PCA, whose variances are over n - 1; NaN where all rows are equal:

        - vector (stage, layer, token, component, features): float32 unit vectors, largest variance first, the entry of
          largest size positive.
        - variance (stage, layer, token, component): float64, over n.
        - share (stage, layer, token, component): float64, share of total_variance.
        - total_variance (stage, layer, token): float64.
        - participation (stage, layer, token): float64, (sum of all variances)**2 / sum of their squares, the number of
          dimensions in use.

    Raises:
        InputError: more components than features, or fewer rows than two.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.

    Example:
        >>> x = xr.DataArray(np.array([[[3.0, 0.0]], [[-3.0, 0.0]], [[0.0, 1.0]], [[0.0, -1.0]]]),
        ...     dims=("entity", "token", "d_model"))
        >>> result = pca(x, components=1, progress=False)
        >>> result.vector.values.tolist(), result.variance.values.tolist(), result.share.values.round(2).tolist()
        ([[[1.0, 0.0]]], [[4.5]], [[0.9]])
    """
    source = SiteData(ds, site)
    size = int(np.prod(source.array.shape[4:]))
    if not 1 <= components <= size:
        raise InputError(f"components={components} must be from 1 to {size}, the number of features of {source.site!r}")
    codes = np.zeros(source.array.sizes["entity"], np.int64) if by is None else groups(ds, by, order).codes
    rows = source.rows(skip_missing, codes >= 0)
    fewest = min(map(len, rows))
    if fewest < 2:
        raise InputError(f"{source.site!r} has {fewest} row at some stage; a variance needs two")
    result = run_slabs(
        source,
        _Components(codes, int(codes.max()) + 1, components),
        rows=rows,
        name="pca",
        params={"codes": codes, "components": components},
        options=RunOptions(skip_missing, cache, scheduler, workers, progress),
    )
    attrs = {"method": "pca", "by": by or "", "components": components}
    return result.assign_coords(component=np.arange(components)).assign_attrs(source.attrs() | attrs)


@dataclass
class _Components:
    """Function of a slab: its components; a class, so that a cluster can pickle it."""

    codes: Array
    groups: int
    components: int

    def __call__(self, slab: Slab) -> xr.Dataset:
        tokens = [_decompose(*_within(cells), self.components) for cells in moments(slab, self.codes, self.groups)]
        vectors, variances, total, participation = (np.stack(values) for values in zip(*tokens, strict=True))
        shape = (*vectors.shape[:2], *slab.feature_shape)
        with np.errstate(invalid="ignore"):
            share = variances / total[:, None]
        return xr.Dataset(
            {
                "vector": (("token", "component", *slab.feature_dims), vectors.reshape(shape).astype(np.float32)),
                "variance": (("token", "component"), variances),
                "share": (("token", "component"), share),
                "total_variance": (("token",), total),
                "participation": (("token",), participation),
            }
        )


def _within(cells: Moments) -> tuple[Array, float]:
    """Covariance of the rows around their cells' means, (d, d), and the largest trace that may be rounding error."""
    n, total = np.asarray(cells.n), np.asarray(cells.sum)
    means = total / np.maximum(n, 1)[:, None]
    scatter = np.asarray(cells.gram).sum(axis=0) - total.T @ means
    return scatter / n.sum(), 1e-12 * float((np.asarray(cells.shift) ** 2).sum())


def _decompose(covariance: Array, rounding: float, components: int) -> tuple[Array, Array, Array, Array]:
    """Components (k, d), their variances (k,), the total variance and the participation ratio."""
    d = len(covariance)
    total, square = np.trace(covariance), (covariance**2).sum()
    if not total > rounding:
        return np.full((components, d), np.nan), np.full(components, np.nan), np.array(0.0), np.array(np.nan)
    values, vectors = scipy.linalg.eigh(covariance, subset_by_index=[d - components, d - 1])
    top = vectors.T[::-1]
    largest = np.abs(top).argmax(axis=1)
    top = top * np.sign(top[np.arange(components), largest])[:, None]
    return top, np.maximum(values[::-1], 0), np.asarray(total), np.asarray(total**2 / square)
