"""Sentences about controls: the effect that remains, and the statistics that differ between groups."""

from __future__ import annotations

from collections.abc import Mapping

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
    location,
    value_with_interval,
)
from stratalens.analyses.stats.estimates import pair_mean

ACTIVATIONS, STATISTICS = "activations", "norms, losses, confidence alone"


def control_sentence(rows: Mapping[str, xr.Dataset], spec: FigureSpec) -> Sentence:
    """Describe the accuracy under each control, and the remaining effect."""
    narrowed = common_pairs(rows)
    readers = {label: estimate_reader(pair_mean(data)) for label, data in narrowed.items()}
    pairs = max((values_of(data, "pair") for data in narrowed.values()), key=len)
    measure = f"accuracy of {plain_text(pairs[0])}" if len(pairs) == 1 else f"mean accuracy over {len(pairs)} pairs"

    def sentence(slider_values: SliderValues) -> str:
        by_row = {label: read({**spec.fixed, **slider_values}) for label, read in readers.items()}
        verdict = _control_verdict(by_row)
        words = []
        for label, numbers in by_row.items():
            known = bool(np.isfinite(numbers["value"]))
            if verdict and label not in (ACTIVATIONS, STATISTICS) and known:
                continue  # the verdict states the remaining effect
            value = f" {value_with_interval(numbers)}, {compare_with_chance(numbers)}" if known else ": too few rows"
            words.append(f"{plain_text(label)}{value}")
        text = f"At {location(spec, slider_values)}, {measure}: " + "; ".join(words) + "."
        return f"{text} {verdict}" if verdict else text

    return sentence


def _control_verdict(rows: Mapping[str, Numbers]) -> str:
    """Describe the remaining effect in points above chance; empty if a row is unknown."""
    if not all(row in rows and np.isfinite(rows[row]["value"]) for row in (ACTIVATIONS, STATISTICS)):
        return ""
    activations, statistics = rows[ACTIVATIONS], rows[STATISTICS]
    if compare_with_chance(activations) == NOT_DISTINGUISHABLE:
        return "There is no effect for the controls to explain."
    effect = activations["value"] - activations["null"]
    if compare_with_chance(statistics) == NOT_DISTINGUISHABLE:
        start = "Norms, losses and confidence alone do not separate the groups"
    elif statistics["value"] >= activations["value"]:
        start = "Norms, losses and confidence alone separate the groups at least as well as the activations"
    else:
        start = "Norms, losses and confidence alone separate the groups in part"
    gap = statistics["value"] - statistics["null"]
    text = f"{start}: {gap:z.2f} above chance, compared with {effect:z.2f} for the activations."
    random_rows = "matched on them: random subsample"
    matched = _remaining_effect(rows, "matched on them: matched", "after matching", random_rows, effect)
    residual = _remaining_effect(rows, "with them regressed out", "after regressing them out", None, effect)
    known = [words for words in (matched, residual) if words]
    if known:
        text += f" Of the {effect:z.2f} above chance, " + "; ".join(known) + "."
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
