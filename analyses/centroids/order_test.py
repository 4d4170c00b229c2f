"""Test of the order of the inner groups: their mean ranks along the axis against random orders.

The ends of the axis are in order as soon as they differ, so that only the groups between them can show an order.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array

MOST_ORDERS = 10_000  # all orders of up to seven inner groups, this number of random ones of more
BATCH_PLACES = 64
NULL_OF_ORDER = "random order of the inner groups"
NULL_OF_LABELS = "no difference between groups: labels permuted over entities"


def order_p(ranks: Array, seed: int = 0) -> tuple[Array, Array, int]:
    """One-sided p-values of an order of groups, at each place and of the largest correlation over all places.

    The statistic is Spearman's correlation, averaged over splits: it is linear in the mean ranks, so that mean ranks
    give its value under any order. The null reassigns the groups to the places in the order, all places of the call
    alike. It is exact if the groups are exchangeable, whether they differ from each other or not (Pitman 1937,
    "Significance tests which may be applied to samples from any populations II"). The p of the maximum bounds the
    chance that any place is significant (Westfall and Young 1993, "Resampling-based multiple testing").

    Args:
        ranks: float64 array of shape (places, groups), mean rank of each group; NaN in a place without a value.
        seed: of the random orders.

    Returns:
        p: float64 array of shape (places,), NaN without a value.
        p_max: float64 array of shape (places,), of the largest correlation over all places.
        orders: number of orders, the observed one among them; 0 for fewer than two groups.

    Example:
        >>> p, p_max, orders = order_p(np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 4.0]]))
        >>> p.round(3).tolist(), p_max.round(3).tolist(), orders
        ([0.042, 0.167], [0.083, 0.25], 24)
    """
    places, groups = ranks.shape
    p, p_max = np.full(places, np.nan), np.full(places, np.nan)
    known = np.flatnonzero(np.isfinite(ranks).all(axis=1))
    if groups < 2:
        return p, p_max, 0
    positions = _orders(groups, seed)
    observed = ranks[known] @ positions[0]
    tolerance = 1e-9 * groups**2  # ties that differ by rounding are ties
    largest = np.full(len(positions), -np.inf)
    for start in range(0, len(known), BATCH_PLACES):
        batch = known[start : start + BATCH_PLACES]
        null = ranks[batch] @ positions.T
        p[batch] = (null >= observed[start : start + BATCH_PLACES, None] - tolerance).mean(axis=1)
        np.maximum(largest, null.max(axis=0), out=largest)
    at_least = np.searchsorted(np.sort(largest), observed - tolerance)
    p_max[known] = (len(largest) - at_least) / len(largest)
    return p, p_max, len(positions)


def _orders(groups: int, seed: int) -> Array:
    """Centred positions of the groups in every order, float64 of shape (orders, groups); the observed order first."""
    position = np.arange(groups) - (groups - 1) / 2
    if math.factorial(groups) <= MOST_ORDERS:
        return np.array(list(itertools.permutations(position)))
    drawn = np.tile(position, (MOST_ORDERS, 1))
    drawn[1:] = np.random.default_rng(seed).permuted(drawn[1:], axis=1)
    return drawn


def add_order_test(result: xr.Dataset, seed: int) -> xr.Dataset:
    """Add the p-values of the order of the inner groups to a projection.

    Args:
        result: projection with inner_rank (..., group).
        seed: of the random orders.

    Returns:
        The projection with inner_rank_correlation_p, inner_rank_correlation_p_max and inner_rank_correlation_null,
        each with the dims of inner_rank_correlation; the attributes `orders`, the number of orders, and `least_p`, the
        smallest p that they allow (1 without inner groups to order).
    """
    rank = result["inner_rank"].transpose(..., "group")
    dims = rank.dims[:-1]
    flat = rank.values.reshape(-1, rank.sizes["group"])
    inner = np.isfinite(flat).any(axis=0)
    p, p_max, orders = order_p(flat[:, inner], seed)
    shape = rank.shape[:-1]
    null = {"null": NULL_OF_ORDER}
    result["inner_rank_correlation_p"] = (dims, p.reshape(shape), null)
    result["inner_rank_correlation_p_max"] = (dims, p_max.reshape(shape), null)
    result["inner_rank_correlation_null"] = (dims, np.where(np.isnan(p), np.nan, 0.0).reshape(shape), null)
    return result.assign_attrs(orders=orders, least_p=1 / max(orders, 1))
