"""Headline numbers of a study, each with interval, null and n, and sentences about them.

The sentences follow from the numbers alone: they call a weak or absent effect weak or absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stratalens.analyses.stats.bootstrap import cluster_bootstrap
from stratalens.analyses.stats.estimates import estimate
from stratalens.analyses.stats.permutation import p_value

if TYPE_CHECKING:
    import xarray as xr


Row = dict[str, Any]
# Order of the stages between the first and the last one; its p is under random orders of these stages.
INNER_ORDER = "rank correlation of held-out centroids without the ends of the axis"
# Order of all stages; its p is under permuted labels, whose null is that the stages do not differ.
ORDER = "rank correlation of held-out centroids"
STEP_COSINE = "mean cosine of successive steps between centroids"
LEAST_ORDERS = 20  # with fewer orders, no order can have p <= .05
ROW_KEYS = ("stage", "layer", "token", "value", "low", "high", "null", "p", "n", "site")


def make_row(name: str, **values: Any) -> Row:
    """Make a row of summary.json.

    Args:
        name: name of the number, equal in all runs.
        values: values of `ROW_KEYS`: the place (stage, layer, token, site), the estimate (value) with its 95 % interval
            (low, high), the mean of the null distribution or the chance level (null), p, and the number of entities
            (n). A key that is left out is None.

    Example:
        >>> make_row("accuracy", stage="s6", value=np.float64(0.75))["value"]
        0.75
    """
    return {"name": name, **{key: _plain(values.get(key)) for key in ROW_KEYS}}


def share_row(
    name: str,
    hits: npt.NDArray[np.float64],
    null: npt.NDArray[np.float64] | float,
    *,
    seed: int,
    units: npt.NDArray[np.int64] | None = None,
    strata: npt.NDArray[np.int64] | None = None,
    **place: Any,
) -> Row:
    """Make the row of a share, with a bootstrap interval over entities.

    Args:
        name: name of the number, equal in all runs.
        hits: float64 array of shape (questions,), 1 or 0.
        null: float64 array of shape (draws,), shares under the null; or the chance level, without p.
        seed: seed of the resamples.
        units: int64 array of shape (questions,), the entity of each question; None: one question an entity.
        strata: int64 array of shape (questions,), groups that are resampled separately.
        place: stage, layer, token and site of the row.
    """
    units = np.arange(len(hits)) if units is None else units
    low, high = cluster_bootstrap(hits, units, strata=strata, seed=seed, bounds=(0, 1))
    p = None if np.ndim(null) == 0 else float(p_value(np.asarray(null), np.array(hits.mean())))
    numbers = {"value": hits.mean(), "low": float(low), "high": float(high), "null": np.mean(null), "p": p}
    return make_row(name, **place, **numbers, n=len(np.unique(units)))


def headline_row(
    name: str, result: xr.Dataset, variable: str, n: int, chance: float | None = None, **place: Any
) -> Row:
    """Make a row of summary.json from the result of an analysis.

    Args:
        name: name of the number, equal in all runs.
        result: the result of an analysis.
        variable: the estimate in it.
        n: number of entities.
        chance: the chance level, for a result without a null.
        place: labels to select (stage, layer, token, pair ...).
    """
    here = result.sel({dim: label for dim, label in place.items() if dim in result.dims})
    estimates = estimate(here, variable, chance).squeeze()
    numbers = {key: _number(estimates[key]) for key in ("value", "low", "high", "null", "p")}
    if variable == "accuracy" and "accuracy_mean" in here:  # over all rows, as the interval is
        numbers["value"] = _number(here["accuracy_mean"].squeeze())
    where = {key: place.get(key) for key in ("stage", "layer", "token")}
    return make_row(name, **where, **numbers, n=n, site=str(result.attrs.get("site", "")))


def _number(value: xr.DataArray) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def describe_headline(rows: Sequence[Mapping[str, Any]], stages: int = 0) -> list[str]:
    """Describe order and separability, one sentence a headline number.

    Args:
        rows: rows of summary.json.
        stages: number of training stages, which limits the p of an order; 0 = unknown.
    """
    by_name: dict[str, Mapping[str, Any]] = {str(row["name"]): row for row in rows}
    sentences = []
    for name in ("early v late accuracy", "first v last accuracy", "early v late accuracy after the final norm"):
        row = by_name.get(name)
        if row is not None and row["value"] is not None:
            sentences.append(_describe_accuracy(row, by_name.get(f"{name}, untrained")))
    for suffix in ("", " after the final norm"):
        for name in (INNER_ORDER, ORDER):
            row = by_name.get(name + suffix)
            if row is not None and row["value"] is not None:
                sentences.append(_describe_inner_order(row, stages) if name == INNER_ORDER else _describe_order(row))
    return sentences


def _describe_accuracy(row: Mapping[str, Any], untrained: Mapping[str, Any] | None) -> str:
    value, low, null = row["value"], row["low"], row["null"]
    if low is None or null is None or low <= null or (row["p"] is not None and row["p"] >= 0.05):
        verdict = "not distinguishable from chance"
    elif value >= 0.75:
        verdict = "a clear effect"
    elif value >= 0.6:
        verdict = "a moderate effect"
    else:
        verdict = "a weak effect"
    text = _describe_row(row, verdict)
    if untrained is not None and untrained["value"] is not None:
        text += f" The untrained model at the same place: {format_estimate(untrained)}."
    return text


def _describe_inner_order(row: Mapping[str, Any], stages: int) -> str:
    """Describe the order of the stages between the first and the last one."""
    value, p = row["value"], row["p"]
    orders = math.factorial(max(stages - 2, 1))
    if p is not None and p < 0.05 and value > 0:
        verdict = "the stages between the first and the last one " + (
            "follow the training order" if value >= 0.9 else "partly follow the training order"
        )
    elif stages and orders < LEAST_ORDERS:
        verdict = (
            f"not tested, {stages} stages have {orders} order{'s' * (orders > 1)} of the stages between their ends"
        )
    else:
        verdict = "no evidence of an order"
    return _describe_row(row, verdict, "random orders")


def _describe_order(row: Mapping[str, Any]) -> str:
    """Describe the order of all stages, whose p is about differences and not about order."""
    differ = row["p"] is not None and row["p"] < 0.05 and row["value"] > 0
    verdict = (
        "the stages differ along the axis from the first to the last one"
        if differ
        else "no evidence that stages differ"
    )
    return _describe_row(row, f"{verdict} (this p says nothing about their order)", "permuted labels")


def describe_steps(results: Mapping[str, xr.Dataset]) -> list[str]:
    """Describe the straightness of the expected centroids and the angles of their steps, one sentence a place.

    Args:
        results: results of `stratalens.project`: plane (last block) and norm plane (after the final norm), if present.
    """
    sentences = []
    for key, where in (("plane", "at the last block"), ("norm plane", "after the final norm")):
        plane = results.get(key)
        if plane is None or "step_cosine" not in plane:
            continue
        here = plane.squeeze()
        text = f"Straightness {where}, without the noise of centroids: "
        names = ("r2_corrected", "step_cosine_mean")
        value, cosine = (
            {"value": float(here[name]), "low": float(here[f"{name}_low"]), "high": float(here[f"{name}_high"])}
            for name in names
        )
        if math.isfinite(value["value"]):
            text += f"a straight line explains {format_estimate(value)} of the squared distances between stages."
        else:
            text += "not known, because most of the distances between the centroids is noise."
        if math.isfinite(cosine["value"]):
            text += f" The mean cosine of successive steps is {format_estimate(cosine)}; 1 is straight on."
        known = [str(name) for name in here.group.values if math.isfinite(float(here.step_cosine.sel(group=name)))]
        if known:
            angles = (math.degrees(math.acos(float(here.step_cosine.sel(group=name)))) for name in known)
            listed = ", ".join(f"{angle:z.0f} at {name}" for angle, name in zip(angles, known, strict=True))
            text += f" The path turns by these angles in degrees: {listed}."
        missing = len(here.group) - 2 - len(known)
        if missing:
            text += f" At {missing} stages a step is too short for an angle."
        sentences.append(text)
    return sentences


def _describe_row(row: Mapping[str, Any], verdict: str, null_name: str = "shuffled labels") -> str:
    where = [f"stage {row['stage']}", f"token {row['token']}"]
    if row["layer"] is not None:
        where.insert(1, f"layer {row['layer']}")
    title = f"{capitalize(row['name'])} ({row['site']}, {', '.join(where)}, {row['n']} entities)"
    null = "unknown" if row["null"] is None else f"{row['null']:z.2f}"
    p = "" if row["p"] is None else f", {format_p(row)}"
    return f"{title}: {format_estimate(row)}, {null_name} {null}{p}: {verdict}."


def capitalize(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[0].upper() + text[1:]


def format_estimate(row: Mapping[str, Any]) -> str:
    """Format the value of a row with its interval.

    >>> format_estimate({"value": 0.8, "low": 0.75, "high": 0.85})
    '0.80 (95 % interval 0.75 to 0.85)'
    """
    if row["low"] is None or row["high"] is None:
        return f"{row['value']:z.2f}"
    return f"{row['value']:z.2f} (95 % interval {row['low']:z.2f} to {row['high']:z.2f})"


def format_p(row: Mapping[str, Any]) -> str:
    """Format the p value of a row."""
    return f"p = {row['p']:z.3f}"
