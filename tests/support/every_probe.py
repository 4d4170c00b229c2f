"""Every kind of probe behind one name, and data with two templates, for tests of options that all probes share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.controls.controls import BASELINES, baseline_probe
from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.analyses.probes.probe import probe
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 50}
OWN = ("resid_post_l2",)
PROBES: dict[str, Callable[..., xr.Dataset]] = {
    **{f"probe {m}": partial(probe, method=m) for m in ("logistic", "ridge", "lda", "diffmeans")},
    **{f"probe {p}": partial(probe, pairs=p) for p in ("rest", "ordinal", "multiclass")},
    "statistics": partial(statistics_probe, statistics=OWN),
    "boosting": partial(statistics_probe, statistics=OWN, model="boosting"),
    "matched": partial(matched_probe, statistics=OWN, bins=2),
    "matched nearest": partial(matched_probe, statistics=OWN, method="nearest"),
    "residual": partial(residual_probe, statistics=OWN),
    "residual lda": partial(residual_probe, statistics=OWN, method="lda"),
    **{b: partial(baseline_probe, baseline=b) for b in BASELINES},
}


def with_templates() -> xr.Dataset:
    """Three groups with two rows for each entity, one for each of two templates."""
    data = planted(stages=2, layers=1, groups=3, per_group=40, rows_per_entity=2, effect=1.0, d=6)
    data = data.isel(stage=[1])
    template = np.array(["who", "what"], object)[np.arange(data.sizes["entity"]) % 2]
    return data.assign_coords(template=("entity", template)).load()
