"""Steps between successive group centroids, without the noise of the centroids.

Products of centroids of different entities are unbiased, so noise does not inflate the squared length of a step, and
does not pull the cosine of two successive steps towards -1/2. Both steps of a pair contain the centroid between
them, with opposite signs: its noise alone makes steps of groups that do not differ look like sharp turns.
"""

from __future__ import annotations

import numpy as np

from stratalens.analyses.centroids.projection import InnerProducts
from stratalens.analyses.data.array_types import Array

STEP_STATISTICS = ("step_square", "step_cosine", "step_cosine_mean")


def step_geometry(inner: InnerProducts, least: float = 0.0) -> dict[str, Array]:
    """Measure the steps of the expected centroids from one group to the next.

    The means over the splits of the products of the two parts' centroids are unbiased (Walther et al., 2016,
    "Reliability of dissimilarity measures for multi-voxel pattern analysis"). A ratio of them is nearly so once most
    of a step is not noise.

    Args:
        inner: inner products of centroids.
        least: smallest squared length of a step with a cosine, as a share of its squared length between centroids of
            held-out entities, which contains their noise.

    Returns:
        step_square: float64 array of shape (..., groups), squared length of the step to a group from the one before,
            unbiased, so negative at times; NaN for the first group.
        step_cosine: float64 array of shape (..., groups), cosine of the steps to and from a group, from -1 (back) over
            0 (a right angle) to 1 (straight on); NaN for the first and the last group, and where a step is too short.
        step_cosine_mean: float64 array of shape (...), mean of these cosines with the product of the two lengths as
            weights. Steps that are too short take no part; NaN where no two successive steps are long enough.
    """
    products, observed = (_step_products(values.mean(axis=-3)) for values in (inner.cross, inner.shown))
    square = np.einsum("...kk->...k", products)
    long_enough = square > least * np.einsum("...kk->...k", observed)
    length = np.sqrt(np.where(long_enough, square, np.nan))
    lengths = length[..., :-1] * length[..., 1:]
    following = np.einsum("...kk->...k", products[..., :-1, 1:])
    empty = np.full((*square.shape[:-1], 1), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.clip(following / lengths, -1, 1)
        usable = np.isfinite(cosine)
        total = np.where(usable, lengths, 0.0).sum(axis=-1)
        mean = np.where(usable, following, 0.0).sum(axis=-1) / np.where(total > 0, total, np.nan)
    return {
        "step_square": np.concatenate([empty, square], axis=-1),
        "step_cosine": np.concatenate([empty, cosine, empty], axis=-1),
        "step_cosine_mean": np.clip(mean, -1, 1),
    }


def _step_products(products: Array) -> Array:
    """Symmetric inner products (..., G - 1, G - 1) of the steps, from those of the centroids (..., G, G)."""
    products = (products + np.swapaxes(products, -1, -2)) / 2
    return np.diff(np.diff(products, axis=-1), axis=-2)
