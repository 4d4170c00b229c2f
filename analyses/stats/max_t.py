"""P-values of the best place: the largest statistic over all places of a call (Westfall and Young, 1993).

The shuffles of a call are the same at all places, so that the largest value over the places in each shuffle has the
dependence between places. Places differ in the spread of their statistics, as with pairs of different sizes.
Therefore each is studentised by the mean and standard deviation of its shuffles and its estimate. The smallest
p-values would be an alternative, but they tie at 1 / (P + 1) as soon as there are more places than shuffles.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array, Doubles

SHUFFLED = "_shuffled"  # ending of the variables with one value for each shuffle, along `permutation`
SHUFFLED_ROWS = "shuffled_rows"  # variable that identifies the rows of each stage


def add_p_max(result: xr.Dataset) -> xr.Dataset:
    """Replace the values of all shuffles by p-values of the largest statistic over all places.

    Stages with different recorded rows have different shuffles. Each set of such stages is a family of its own, and its
    p-values are multiplied by the number of families (Bonferroni). Constant places, which are NaN, are left out.

    Args:
        result: Dataset with <measure>_mean (...) and <measure>_shuffled (..., permutation), and `shuffled_rows`.

    Returns:
        Dataset without the variables of the shuffles, with <measure>_p_max (...): float64 for each measure.
    """
    names = [str(name) for name in result.data_vars if str(name).endswith(SHUFFLED)]
    if not names:
        return result
    rows = result[SHUFFLED_ROWS]
    for name in names:
        measure = name.removesuffix(SHUFFLED)
        estimate = result[f"{measure}_mean"]
        family = rows.broadcast_like(estimate).transpose(*estimate.dims)
        shuffled = result[name].transpose(*estimate.dims, "permutation")
        p = p_max(estimate.values.ravel(), shuffled.values.reshape(estimate.size, -1), family.values.ravel())
        attrs: dict[Hashable, object] = {
            "permutations": shuffled.sizes["permutation"],
            "families": len(np.unique(rows.values)),
        }
        result[f"{measure}_p_max"] = (estimate.dims, p.reshape(estimate.shape), attrs)
        if f"{measure}_p" in result:
            result[f"{measure}_p"].attrs["permutations"] = shuffled.sizes["permutation"]
    return result.drop_vars([*names, SHUFFLED_ROWS])


def p_max(estimate: Doubles, shuffled: Array, family: Array) -> Doubles:
    """P-value of every place by the largest studentised statistic over the places of its family.

    Args:
        estimate: float64 array of shape (places,); NaN = left out.
        shuffled: array of shape (places, P), values of the same shuffles at each place.
        family: int array of shape (places,); places of one family share their shuffles.

    Returns:
        float64 array of shape (places,), controlled over all places; NaN where the estimate is NaN.

    Example:
        >>> shuffled = np.array([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
        >>> p_max(np.array([9.0, 1.5]), shuffled, np.array([0, 0])).tolist()
        [0.2, 1.0]
    """
    p = np.full(len(estimate), np.nan)
    families = np.unique(family[~np.isnan(estimate)])
    for one in families:
        places = np.flatnonzero((family == one) & ~np.isnan(estimate))
        # All in the precision in which the shuffles are stored, so that ties stay ties.
        values = np.concatenate(
            [shuffled[places].astype(np.float32), estimate[places, None].astype(np.float32)], axis=1
        )
        values = values.astype(np.float64)
        largest = np.where(np.isnan(values), -np.inf, values).max(axis=1, keepdims=True)
        values = np.where(np.isnan(values), largest, values)  # an undefined shuffle counts as the largest
        # The estimate is one of the values that are studentised, as any shuffle; this keeps the test exact.
        values -= values.mean(axis=1, keepdims=True)
        spread = values.std(axis=1, keepdims=True)
        t = np.divide(values, spread, out=np.zeros_like(values), where=spread > 1e-7)
        best = t[:, :-1].max(axis=0)
        count = len(best) - np.searchsorted(np.sort(best), t[:, -1] - 1e-6, "left")
        p[places] = np.minimum(1, len(families) * (1 + count) / (1 + len(best)))
    return p
