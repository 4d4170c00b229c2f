"""Quantiles of norms, losses and confidence within each group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.data.array_types import Codes
from stratalens.analyses.data.groups import groups
from stratalens.store.errors import InputError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
OUTPUT_STATISTICS = ("loss", "running_loss", "entity_loss", "entropy", "max_logprob", "logit_l2")


def statistic_quantiles(
    ds: xr.Dataset, by: str = "trained_stage", statistics: Sequence[str] | None = None
) -> xr.Dataset:
    """Compute quantiles of per-row statistics within each group, one statistic at a time.

    Args:
        ds: an open store (or a Dataset of the same shape) with label column `by`.
        by: label column that names the groups.
        statistics: variables with dims among stage, layer, entity, token; default the norms
            `*_l2` and the output statistics of the store.

    Returns:
        Dataset; statistics without a layer are the same at every layer:

        - quantile (statistic, stage, layer, token, group, q): float64, in standard deviations over all rows at that
          place, from their mean.
        - spread (statistic, stage, layer, token): float64, largest difference between two groups' medians.

    Raises:
        InputError: an unknown statistic, or a store without statistics.
    """
    names = list(statistics) if statistics is not None else default_statistics(ds)
    missing = [n for n in names if n not in ds]
    if missing:
        raise InputError(
            f"no statistic {missing[0]!r} in the store; valid: {', '.join(default_statistics(ds)) or 'none'}"
        )
    if not names:
        raise InputError("the store has no statistics; record them with sl.capture(..., statistics=True)")
    label_groups = groups(ds, by)
    each = [_quantiles(ds[name].astype("float64").load(), label_groups.codes, len(label_groups)) for name in names]
    quantile = xr.concat(
        xr.broadcast(*each),
        dim=pd.Index(names, name="statistic", dtype=object),
        coords="minimal",
        compat="override",
        join="outer",
    )
    quantile = quantile.assign_coords(group=np.array(label_groups.names, dtype=object))
    median = quantile.sel(q=0.5, drop=True)
    spread = median.max("group") - median.min("group")
    attrs = {"by": by, "ordered": label_groups.ordered, "site": ds.attrs.get("site", "")}
    return xr.Dataset({"quantile": quantile, "spread": spread}, attrs=attrs)


def default_statistics(ds: xr.Dataset) -> list[str]:
    """Names of the norms and output statistics that a store has and a figure shows by default."""
    norms = [str(n) for n in ds.data_vars if str(n).endswith("_l2") and not str(n).startswith("logit")]
    usable = [n for n in norms if set(ds[n].dims) <= {"stage", "layer", "entity", "token"}]
    return usable + [n for n in OUTPUT_STATISTICS if n in ds]


def _quantiles(values: xr.DataArray, codes: Codes, count: int) -> xr.DataArray:
    inside = values.isel(entity=codes >= 0)
    standardized = (inside - inside.mean("entity")) / inside.std("entity").where(lambda s: s > 0)
    own_codes = codes[codes >= 0]
    each = [standardized.isel(entity=own_codes == g).quantile(QUANTILES, dim="entity") for g in range(count)]
    joined = xr.concat(each, dim="group", coords="minimal", compat="override")
    return joined.rename(quantile="q")
