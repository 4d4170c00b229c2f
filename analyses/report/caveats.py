"""Limitations of a run that follow from its numbers, and the control by time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.training_order import group_names, is_ordered
from stratalens.analyses.plots.spec import plain_text
from stratalens.analyses.stats.estimates import estimate

CONTROL_LABELS = {
    "probes": "activations",
    "statistics_probe": "norms, losses, confidence alone",
    "matched_probe": "matched on some of them",
    "weighted_probe": "weighted to equal statistics",
    "residual_probe": "with them regressed out",
}


def control_rows(results: Mapping[str, Any]) -> dict[str, xr.Dataset]:
    """Return the results of the probe and its controls by label; the label of a matched probe names its statistics."""
    rows = {}
    for key, label in CONTROL_LABELS.items():
        if results.get(key) is not None:
            own = matched_on(results[key]) if key == "matched_probe" else ""
            rows[f"matched on {own}" if own else label] = results[key]
    return rows


def matched_on(result: xr.Dataset) -> str:
    """Name the statistics that a matched probe matched, e.g. "l2, loss, entropy"; empty if the result does not say."""
    site = str(result.attrs.get("site", ""))
    names = np.atleast_1d(result.attrs.get("statistics", ()))
    return ", ".join(plain_text(str(name).removeprefix(f"{site}_")) for name in names)


def untrained_pair_mask(probes: xr.Dataset) -> xr.DataArray | None:
    """Return True at (stage, pair) where neither group was trained yet.

    The result is None if the training order is unknown.
    """
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


def time_control_sentence(probes: xr.Dataset | None) -> str:
    """Describe the accuracy of pairs before either group was trained.

    The numbers are over all layers and tokens; the text is empty if the training order is unknown.
    """
    mask = untrained_pair_mask(probes) if probes is not None else None
    if probes is None or mask is None or not bool(mask.any()):
        return ""
    value = estimate(probes)["value"].where(mask)
    per_pair = value.mean([d for d in value.dims if d not in ("stage", "pair")]).values
    per_pair = per_pair[np.isfinite(per_pair)]
    return (
        "Control by time: before either group of a pair was trained, its probe has a mean accuracy of "
        f"{per_pair.mean():z.2f}. Single stages and pairs, averaged over layers and tokens, range from "
        f"{per_pair.min():z.2f} to {per_pair.max():z.2f}; the largest of all {int(value.notnull().sum())} single "
        f"values is {float(value.max()):z.2f}. An accuracy of 0.50 is expected if only training separates the groups."
    )


def caveats(results: Mapping[str, Any]) -> list[str]:
    """Return the limitations of these results, each with its number."""
    projection, probes = results.get("projection"), results.get("probes")
    if probes is None:
        probes = results.get("multiclass")
    ordered = [is_ordered(r) for r in results.values() if isinstance(r, xr.Dataset) and group_names(r)]
    points = [
        "This is one training run with one order of stages. Any accidental difference between the groups counts as "
        "order here; other seeds and other orders would show it."
        if all(ordered)
        else "This is one training run with one set of entities. A difference between the groups can come from "
        "anything in which their entities or prompts differ; other entities would show it."
    ]
    if projection is not None and projection.attrs.get("permutations"):
        n = int(projection.attrs["permutations"])
        points.append(
            f"With {n} permutations, no p value can be below {1 / (n + 1):.2g}. Each p value is for one combination of "
            "stage, layer and token."
        )
    if probes is not None:
        sizes = {d: probes.sizes[d] for d in ("stage", "layer", "token", "pair") if d in probes.dims}
        count = int(np.prod(list(sizes.values()))) if sizes else 1
        words = " x ".join(f"{n} {d}{'s' * (n != 1)}" for d, n in sizes.items())
        points.append(
            f"There are {count} probes ({words or 'one position'}), and the best of them overestimates the effect. "
            "Headline numbers are therefore from the last stage, the deepest layer and the last token, chosen in "
            "advance."
        )
        points.append(
            f"Intervals of accuracies: {estimate(probes).attrs['interval']}. They do not cover another training run."
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
            f"The figures cover only the site{'s' if len(sites) > 1 else ''} {', '.join(map(plain_text, sites))} and "
            "the recorded token positions."
        )
    return points
