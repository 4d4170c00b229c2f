"""Sentences about controls: the effect that remains, and the statistics that differ between groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from stratalens.analyses.plots.probes import common_pairs
from stratalens.analyses.plots.spec import FigureSpec, SliderValues, lookup, plain_text, values_of
from stratalens.analyses.report.phrases import (
    NOT_DISTINGUISHABLE,
    Numbers,
    Sentence,
    compare_with_chance,
    estimate_reader,
    is_different,
    location,
    p_text,
    value_with_interval,
)
from stratalens.analyses.stats.estimates import pair_mean

ACTIVATIONS, STATISTICS = "activations", "norms, losses, confidence alone"
ALONE = (STATISTICS, f"{STATISTICS} (boosting)")
NO_OVERLAP = 0.95  # accuracy or AUC of the statistics alone from which the groups count as separate
WEIGHTED, REGRESSED = "weighted to equal statistics", "with them regressed out"


def control_sentence(
    rows: Mapping[str, xr.Dataset], spec: FigureSpec, conditional: xr.Dataset | None = None
) -> Sentence:
    """Describe the accuracy under each control, and the remaining effect.

    Args:
        rows: rows of the figure by label.
        spec: the figure.
        conditional: result of `sl.conditional_test`.
    """
    narrowed = common_pairs(rows)
    readers = {label: estimate_reader(pair_mean(data)) for label, data in narrowed.items()}
    pairs = max((values_of(data, "pair") for data in narrowed.values()), key=len)
    measure = f"accuracy of {plain_text(pairs[0])}" if len(pairs) == 1 else f"mean accuracy over {len(pairs)} pairs"
    areas = [
        estimate_reader(pair_mean(narrowed[row], "auc")) for row in ALONE if row in narrowed and "auc" in narrowed[row]
    ]
    supports = [
        lookup(data["support"].mean("pair") if "pair" in data["support"].dims else data["support"])
        for data in narrowed.values()
        if "support" in data
    ]
    read_conditional = None if conditional is None else estimate_reader(pair_mean(conditional, "accuracy"))

    def sentence(slider_values: SliderValues) -> str:
        place = {**spec.fixed, **slider_values}
        by_row = {label: read(place) for label, read in readers.items()}
        overlap = Overlap(
            largest=max((read(place)["value"] for read in areas), default=float("nan")),
            support=float(supports[0](place)) if supports else float("nan"),
        )
        verdict = _control_verdict(by_row, overlap, read_conditional and read_conditional(place))
        words = []
        for label, numbers in by_row.items():
            known = bool(np.isfinite(numbers["value"]))
            if verdict and label not in (ACTIVATIONS, *ALONE) and known:
                continue  # the verdict states the remaining effect
            value = f" {value_with_interval(numbers)}, {compare_with_chance(numbers)}" if known else ": too few rows"
            words.append(f"{plain_text(label)}{value}")
        text = f"At {location(spec, slider_values)}, {measure}: " + "; ".join(words) + "."
        return f"{text} {verdict}" if verdict else text

    return sentence


@dataclass(frozen=True)
class Overlap:
    """How far the statistics separate the groups.

    Attributes:
        largest: largest AUC of the statistics alone.
        support: share of the rows with common support.
    """

    largest: float = float("nan")
    support: float = float("nan")


def _control_verdict(
    rows: Mapping[str, Numbers], overlap: Overlap | None = None, conditional: Numbers | None = None
) -> str:
    """Describe the remaining effect in points above chance; empty if a row is unknown."""
    if not all(row in rows and np.isfinite(rows[row]["value"]) for row in (ACTIVATIONS, STATISTICS)):
        return ""
    activations = rows[ACTIVATIONS]
    if compare_with_chance(activations) == NOT_DISTINGUISHABLE:
        return "There is no effect for the controls to explain."
    effect = activations["value"] - activations["null"]
    # A logistic regression misses differences in spread and products; the boosting may miss weak shifts.
    models = [rows[row] for row in ALONE if row in rows and np.isfinite(rows[row]["value"])]
    different = [model for model in models if is_different(model) and model["value"] > model["null"]]
    statistics = max(different or models, key=lambda numbers: numbers["value"] - numbers["null"])
    if not different:
        start = "No separation of the groups by norms, losses and confidence alone is detected"
    elif statistics["value"] >= activations["value"]:
        start = "Norms, losses and confidence alone separate the groups at least as well as the activations"
    else:
        start = "Norms, losses and confidence alone separate the groups in part"
    gap = statistics["value"] - statistics["null"]
    text = f"{start}: {gap:z.2f} above chance, compared with {effect:z.2f} for the activations."
    overlap = overlap or Overlap()
    if max(statistics["value"], np.nan_to_num(overlap.largest)) > NO_OVERLAP:
        text += " There is no overlap: the statistics cannot be controlled by matching."
        if np.isfinite(overlap.support):
            text += f" {100 * overlap.support:.0f} % of the rows have common support."
    matched_row = next((row for row in rows if row.startswith("matched on ") and row.endswith(": matched")), "")
    matched_on = matched_row.removesuffix(": matched")
    parts = (
        _remaining_effect(rows, WEIGHTED, "with classes weighted to equal statistics", None, effect),
        _remaining_effect(rows, matched_row, f"when {matched_on}", f"{matched_on}: random subsample", effect),
        _remaining_effect(rows, REGRESSED, "after regressing them out", None, effect),
    )
    known = [words for words in parts if words]
    if known:
        text += f" Of the {effect:z.2f} above chance, " + "; ".join(known) + "."
    if conditional is not None and np.isfinite(conditional["null"]):
        text += (
            f" The statistics alone would give this probe {conditional['null']:z.2f}; it has "
            f"{conditional['value']:z.2f}{p_text(conditional['p'])}."
        )
    return text


def _remaining_effect(rows: Mapping[str, Numbers], row: str, when: str, reference: str | None, effect: float) -> str:
    """Describe the points above chance under one control, next to a random sample."""
    numbers = rows.get(row)
    if numbers is None or not np.isfinite(numbers["value"]):
        return ""
    null = numbers["null"]
    remaining = numbers["value"] - null
    text = f"{remaining:z.2f}"
    if np.isfinite(numbers["low"]) and np.isfinite(numbers["high"]):
        text += f" (95 % {numbers['low'] - null:z.2f} to {numbers['high'] - null:z.2f})"
    text += f" remains {when}"
    sample = rows.get(reference) if reference else None
    if sample is not None and np.isfinite(sample["value"]):
        text += f", compared with {sample['value'] - sample['null']:z.2f} in a random subsample of the same size"
    elif effect > 0:
        text += f", {100 * max(remaining, 0) / effect:z.0f} % of it"
    if compare_with_chance(numbers) == NOT_DISTINGUISHABLE:
        text += f", which is {NOT_DISTINGUISHABLE}"
    return text


def statistics_sentence(quantiles: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Describe the statistic that differs most between groups."""
    names = [plain_text(n) for n in values_of(quantiles, "statistic")]
    read = lookup(quantiles["spread"], ("statistic",))

    def sentence(slider_values: SliderValues) -> str:
        spread = read(slider_values)
        if not np.isfinite(spread).any():
            return f"At {location(spec, slider_values)}, no statistic is known."
        most = int(np.nanargmax(spread))
        size = "small" if spread[most] < 0.2 else "moderate" if spread[most] < 0.8 else "large"
        return (
            f"At {location(spec, slider_values)}, {names[most]} differs most between groups. The group medians span "
            f"{spread[most]:z.2f} standard deviations of single rows, a {size} difference; this is not a test."
        )

    return sentence
