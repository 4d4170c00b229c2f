"""Centroids of groups from a summary."""

from __future__ import annotations

import numpy as np
import xarray as xr

from stratalens.analyses.data.summary import require_summary
from stratalens.analyses.data.training_order import label_text, stage_orders


def summary_centroids(summary: xr.Dataset, site: str = "resid_post") -> xr.Dataset:
    """Return the centroids of a summary in the form of `centroids`, for its plots, `steps` and `drift`.

    Args:
        summary: from `summarize`, `open_summary` or `merge_summaries`.
        site: site of the summary.

    Returns:
        Dataset:
        - centroid (stage, layer, token, group, features): float32, mean activation; NaN for a group without rows.
        - count (stage, token, group): int64, rows.
        - exposure (stage, group): float64, stages since the group was trained on; only where the groups are stages.

    Raises:
        InputError: no summary, or no such site.

    Example:
        >>> sl.summary_centroids(sl.open_summary("run.summary"))  # doctest: +SKIP
    """
    data = require_summary(summary, site, "summary_centroids", "centroids")
    centroid = data[f"{site}_mean"].astype(np.float32).load().rename("centroid")
    out = xr.Dataset({"centroid": centroid, "count": data["count"].load()})
    if data.attrs["ordering"] == "stage_order":
        order_of = stage_orders(data) or {}
        trained = np.array([order_of.get(label_text(name), np.nan) for name in data.group.values])
        out["exposure"] = (("stage", "group"), data.stage_order.values[:, None] - trained)
    names = ("by", "ordering", "ordered", "model")
    attrs = {name: data.attrs[name] for name in names}
    attrs["ordered"] = bool(attrs["ordered"])
    return out.assign_attrs(site=site, method="mean", normalize="none", summary_of=data.attrs["path"], **attrs)
