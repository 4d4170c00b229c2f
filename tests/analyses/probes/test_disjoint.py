"""No probe has the same entity on both sides of a split.

One entity has a mark: a feature (and a statistic) that is zero for all others. A probe that never saw the entity has
learned nothing about that feature, so its scores do not depend on the mark. With splits over rows they do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import xarray as xr

import stratalens as sl
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 20, "cache": False}
CV = QUIET | {"folds": 3}
NOISE: dict[str, Any] = {"statistics": ("noise",)}
MARKED: dict[str, Any] = {"statistics": ("mark", "noise")}
PROBES: dict[str, Callable[..., xr.Dataset]] = {
    **{m: partial(sl.probe, method=m, **CV) for m in ("logistic", "ridge", "lda", "diffmeans")},
    **{p: partial(sl.probe, pairs=p, **CV) for p in ("rest", "ordinal", "multiclass")},
    "standardised": partial(sl.probe, standardize=True, **CV),
    "chosen penalty": partial(sl.probe, C=[0.01, 1.0], **CV),
    "joint": partial(sl.probe, tokens="joint", **CV),
    "statistics": partial(sl.statistics_probe, **MARKED, **CV),
    "statistics, boosting": partial(sl.statistics_probe, model="boosting", **MARKED, **CV),
    "residual, linear": partial(sl.residual_probe, **NOISE, **CV),
    "residual, spline": partial(sl.residual_probe, kind="spline", **NOISE, **CV),
    "shuffled_entity": partial(sl.baseline_probe, baseline="shuffled_entity", **CV),
    "matched, bins": partial(sl.matched_probe, bins=2, repeats=8, holdout=0.4, **NOISE, **QUIET),
    "matched, nearest": partial(sl.matched_probe, method="nearest", repeats=8, holdout=0.4, **NOISE, **QUIET),
}


def marked(mark: float) -> tuple[xr.Dataset, np.ndarray]:
    """Data without an effect, with `mark` in the last feature of one entity, and the rows of that entity."""
    ds = planted(stages=1, layers=1, groups=2, per_group=10, rows_per_entity=45, d=6, effect=0, tokens=("last",))
    ds = ds.assign_coords(row=("entity", np.arange(ds.sizes["entity"])))
    mine = ds.entity_id.values == "e0003"
    x = ds.resid_post.values.copy()
    x[..., -1] = np.where(mine, mark, 0)[:, None]
    noise = np.random.default_rng(0).standard_normal((1, len(mine), 1))
    place = ("stage", "entity", "token")
    return ds.assign(
        resid_post=(ds.resid_post.dims, x), mark=(place, x[:, 0, :, :, -1].astype(float)), noise=(place, noise)
    ), np.flatnonzero(mine)


def scores_of_the_marked_entity(name: str, **options: Any) -> list[np.ndarray]:
    """Scores without a mark and with one."""
    scores = []
    for mark in (0.0, 10.0):
        ds, mine = marked(mark)
        result = PROBES[name](ds, **options).isel(entity=mine)
        scores.append((result["score"] if "score" in result else result["right"]).values.astype(float))
    return scores


@pytest.mark.parametrize("name", PROBES)
def test_no_probe_has_seen_the_entity_that_it_scores(name: str) -> None:
    unmarked, with_mark = scores_of_the_marked_entity(name)
    np.testing.assert_allclose(with_mark, unmarked, atol=2e-3)
    unmarked, with_mark = scores_of_the_marked_entity(name, groups="row")
    assert abs(with_mark - unmarked).max() > 0.01, "the mark shows a shared entity"
