"""Limits of a run that follow from its numbers, and the control by time; sentences of figures are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.plots.spec import plain
from stratalens.analyses.stats.estimates import estimate

CONTROL_LABELS = {
    "probes": "activations",
    "statistics_probe": "norms, losses, confidence alone",
    "matched_probe": "matched on them",
    "residual_probe": "with them regressed out",
}


def unseen_mask(probes: xr.Dataset) -> xr.DataArray | None:
    """True at (stage, pair) where neither group of the pair was trained on yet; None where that is not known."""
    if not {"stage", "stage_order", "pair_first"} <= set(probes.coords) or "stage" not in probes.dims:
        return None
    order_of = dict(zip(map(str, probes["stage"].values), probes["stage_order"].values.tolist(), strict=True))
    first = [str(g) for g in np.atleast_1d(probes["pair_first"].values)]
    second = [str(g) for g in np.atleast_1d(probes["pair_second"].values)]
    if not set(first) | set(second) <= set(order_of) or "pair" not in probes.dims:
        return None
    earliest = np.array([min(order_of[a], order_of[b]) for a, b in zip(first, second, strict=True)])
    mask = probes["stage_order"].values[:, None] < earliest[None]
    return xr.DataArray(mask, dims=("stage", "pair"), coords={"stage": probes["stage"], "pair": probes["pair"]})


def unseen_sentence(probes: xr.Dataset | None) -> str:
    """Mean accuracy of pairs at checkpoints before either group was trained on, over all layers and tokens."""
    mask = unseen_mask(probes) if probes is not None else None
    if probes is None or mask is None or not bool(mask.any()):
        return ""
    value = estimate(probes)["value"].where(mask)
    others = [d for d in value.dims if d not in ("stage", "pair")]
    per_pair = value.mean(others).values
    per_pair = per_pair[np.isfinite(per_pair)]
    highest = float(value.max())
    return (
        f"Control by time: before either group of a pair was trained on, its probe has a mean accuracy of "
        f"{per_pair.mean():z.2f} (single stage and pair, averaged over layers and tokens: {per_pair.min():z.2f} to "
        f"{per_pair.max():z.2f}; largest of all {int(value.notnull().sum())} single values: {highest:z.2f}); "
        f"0.50 is expected if nothing but training tells the groups apart."
    )


def limits(results: Mapping[str, Any]) -> list[str]:
    """What the numbers of these results cannot say, each limit with its number."""
    projection, probes = results.get("projection"), results.get("probes")
    points = [
        (
            "One training run with one order of stages: anything that differs between the groups by "
            "accident counts as order here; other seeds and other orders would tell."
        )
    ]
    if projection is not None and projection.attrs.get("permutations"):
        n = int(projection.attrs["permutations"])
        points.append(
            f"{n} permutations: no p value can be below {1 / (n + 1):.2g}, and p values are for one place at a time."
        )
    if probes is not None:
        sizes = {d: probes.sizes[d] for d in ("stage", "layer", "token", "pair") if d in probes.dims}
        cells = int(np.prod(list(sizes.values()))) if sizes else 1
        points.append(
            f"{cells} probes ({' x '.join(f'{n} {d}' + 's' * (n != 1) for d, n in sizes.items()) or 'one place'}): the "
            "best of them looks better than it is; headline numbers are taken at the last stage, the "
            "deepest layer and the last token, chosen before looking."
        )
        points.append(
            f"Intervals of accuracies: {estimate(probes).attrs['interval']}; they do not cover another training run."
        )
        if "converged" in probes and not bool(probes["converged"].all()):
            share = float((~probes["converged"].astype(bool)).mean())
            points.append(f"{share:.1%} of the probes did not converge.")
    absent = [label for key, label in CONTROL_LABELS.items() if results.get(key) is None]
    if absent:
        points.append(f"Not computed in this run: {', '.join(absent)}.")
    sites = sorted({str(r.attrs.get("site")) for r in results.values() if hasattr(r, "attrs") and r.attrs.get("site")})
    if sites:
        points.append(
            f"Only the site{'s' if len(sites) > 1 else ''} {', '.join(map(plain, sites))} and the recorded "
            "token positions were looked at."
        )
    return points
