"""The arrays of a finished stage of a summary, from the sums of its places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stratalens.analyses.data.array_types import Array, Codes
from stratalens.analyses.data.row_moments import RowMoments, pack
from stratalens.analyses.data.row_sample import RowSample
from stratalens.analyses.data.summary import CELL, MATRICES, PACKED, VECTORS

Arrays = dict[str, tuple[tuple[str, ...], Array]]


def site_arrays(
    site: Mapping[str, Any],
    moments: Callable[[int, int, int], RowMoments],
    norms: Array,
    buckets: Array,
    sample: Array,
) -> Arrays:
    """Collect the arrays of one site.

    Args:
        site: its description: name, feature_dims, feature_shape, in_blocks.
        moments: from indices of layer, token and group to the sums around the mean of the rows.
        norms: float64 array of shape (layers, tokens, groups, 2), sum of the norms and of their squares.
        buckets: int64 array of shape (layers, tokens, groups, buckets), counts of norms.
        sample: float32 array of shape (layers, tokens, groups, rows, d).

    Returns:
        Dims and values by variable; a site outside the blocks has no layers.
    """
    cells, shape = buckets.shape[:3], tuple(site["feature_shape"])
    d = int(np.prod(shape))
    values: dict[str, Array] = {}
    count = np.zeros(cells, dtype=np.int64)
    for place in np.ndindex(cells):
        own = moments(*place)
        n = max(own.count, 1)
        count[place] = own.count
        numbers = {"mean": own.mean, "variance": own.variance}
        numbers |= {"third_moment": own.third / n, "fourth_moment": own.fourth / n}
        if not own.count:
            numbers = {name: np.full(d, np.nan) for name in numbers}
        # The fourth order needs fewer digits, because the rows are centred and most terms are positive.
        for name, dtype in zip(MATRICES, (np.float64, np.float32, np.float32), strict=True):
            matrix = getattr(own, name)
            if matrix is not None:
                numbers[name] = (pack(matrix) if name in PACKED else matrix).astype(dtype)
        for name, value in numbers.items():
            if name not in values:
                values[name] = np.empty((*cells, *value.shape), value.dtype)
            values[name][place] = value
    rows = np.maximum(count, 1)
    mean = norms[..., 0] / rows
    values["norm_mean"] = np.where(count > 0, mean, np.nan)
    values["norm_std"] = np.where(count > 0, np.sqrt(np.maximum(norms[..., 1] / rows - mean**2, 0)), np.nan)
    values["norm_counts"] = buckets
    values["sample"] = sample
    dims = tuple(site["feature_dims"])
    more: dict[str, tuple[str, ...]] = {name: (pair,) for name, pair in PACKED.items()}
    more |= {"cross": ("row_feature", "column_feature"), "norm_mean": (), "norm_std": (), "norm_counts": ("bucket",)}
    out: Arrays = {}
    for name, value in values.items():
        if name in (*VECTORS, "sample"):
            value = value.reshape(*value.shape[:-1], *shape)
        own_dims = ("sample", *dims) if name == "sample" else more.get(name, dims)
        lead = CELL if site["in_blocks"] else CELL[1:]
        out[f"{site['name']}_{name}"] = ((*lead, *own_dims), value if site["in_blocks"] else value[0])
    return out


def row_arrays(count: Codes, samples: Mapping[tuple[int, int], RowSample]) -> Arrays:
    """Collect the arrays that all sites share: counts, and the identity of the sampled rows.

    Args:
        count: int64 array of shape (tokens, groups).
        samples: sampled rows by token and group.
    """
    most = max((len(sample.entity) for sample in samples.values()), default=0)
    shape = (*count.shape, most)
    out: Arrays = {"count": (CELL[1:], count)}
    for name in ("entity", "prompt", "position"):
        values = np.full(shape, -1, dtype=np.int64)
        for cell, sample in samples.items():
            own = getattr(sample, name)
            values[cell][: len(own)] = own
        out[f"sample_{name}"] = ((*CELL[1:], "sample"), values)
    limit = np.zeros(count.shape, dtype=np.int64)
    for cell, sample in samples.items():
        limit[cell] = sample.limit
    out["sample_limit"] = (CELL[1:], limit)
    return out


def pad_samples(samples: Sequence[Array], d: int) -> Array:
    """Stack samples (rows, d) of several groups, NaN where one has fewer: float32 array of shape (groups, rows, d)."""
    out = np.full((len(samples), max(map(len, samples), default=0), d), np.nan, dtype=np.float32)
    for place, values in enumerate(samples):
        out[place, : len(values)] = values
    return out
