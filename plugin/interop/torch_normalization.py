"""Mean, mean norm and scale of samples, as sparse autoencoders and crosscoders need them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import xarray as xr

from stratalens.plugin.interop.torch_batches import Sample
from stratalens.plugin.interop.torch_reader import ArrayReader
from stratalens.store.errors import NotRecordedError


def normalization(reader: ArrayReader, batches: Iterable[Sample], limit: int) -> xr.Dataset:
    """Return the statistics of the first samples of an epoch.

    Args:
        reader: the lazy array of the samples.
        batches: the samples.
        limit: number of samples to take.

    Raises:
        NotRecordedError: there are no samples.
    """
    part_axes = len(reader.aligned)
    count = 0
    shift = torch.zeros(())  # the mean of the first batch: the variance of large values keeps its digits
    totals: list[torch.Tensor] = []
    for sample in batches:
        values = sample if isinstance(sample, torch.Tensor) else sample[0]
        x = values[: limit - count].double()
        if not count:
            shift = x.mean(dim=0)
        count += len(x)
        squared_norms = x.square().flatten(1 + part_axes).sum(dim=-1) if reader.part_shape else x.square()
        deviations = x - shift
        sums = [deviations.sum(0), deviations.square().sum(0), squared_norms.sqrt().sum(0), squared_norms.sum(0)]
        totals = [total + new for total, new in zip(totals, sums, strict=True)] if totals else sums
        if count >= limit:
            break
    if not count:
        raise NotRecordedError(f"{reader.description}: there are no samples to compute statistics of")
    deviation, squares, norm, squared_norm = (total / count for total in totals)
    variances = (squares - deviation.square()).clamp(min=0)
    per_part = variances.flatten(part_axes).sum(dim=-1) if reader.part_shape else variances
    mean_norm = norm.numpy()
    variables: dict[str, Any] = {
        "feature_mean": (reader.dims, (shift + deviation).numpy()),
        "feature_std": (reader.dims, variances.sqrt().numpy()),
        "mean_norm": (reader.aligned, mean_norm),
        "mean_square": (reader.aligned, squared_norm.numpy()),
        "variance": (reader.aligned, per_part.numpy()),
        "scale": (reader.aligned, math.sqrt(math.prod(reader.part_shape)) / mean_norm),
    }
    coordinates = {dim: reader.labels[dim] for dim in reader.aligned if reader.labels[dim] is not None}
    return xr.Dataset(variables, coords=coordinates, attrs={"site": reader.site, "samples": count})
