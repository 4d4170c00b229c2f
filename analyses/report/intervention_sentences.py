"""Sentences about interventions: the effect at one place, and where a direction has an effect."""

from __future__ import annotations

import numpy as np
import xarray as xr

from stratalens.analyses.plots.spec import FigureSpec, SliderValues, lookup, plain_text, values_of
from stratalens.analyses.report.phrases import Sentence, location


def dose_sentence(effects: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Describe the largest effect at one place, next to the random directions."""
    names = [plain_text(name, 40) for name in values_of(effects, "direction")]
    doses = np.array(values_of(effects, "dose"), dtype=float)
    parts = ("effect", "effect_low", "effect_high")
    read = {part: lookup(effects[part], ("direction", "dose")) for part in parts}
    read_null = lookup(effects["null"], ("dose", "random")) if effects.sizes.get("random", 0) else None
    outcome = plain_text(effects.attrs.get("outcome", "the outcome"))

    def sentence(slider_values: SliderValues) -> str:
        here = location(spec, slider_values)
        value, low, high = (read[part](slider_values) for part in parts)
        if not np.isfinite(value).any():
            return f"At {here}, no direction was tested."
        row, column = np.unravel_index(int(np.nanargmax(np.abs(value))), value.shape)
        at = f" (dose {doses[column]:g})" if effects.attrs.get("kind") == "steer" else ""
        text = (
            f"At {here}, {names[row]!r}{at} changes {outcome} by {value[row, column]:z.3g} (95 % "
            f"{low[row, column]:z.3g} to {high[row, column]:z.3g})"
        )
        if read_null is None:
            return f"{text}; there are no random directions to compare it with."
        drawn = np.abs(read_null(slider_values)[column])
        as_strong = int((drawn >= abs(value[row, column])).sum())
        return f"{text}; {as_strong} of {int(np.isfinite(drawn).sum())} random directions are as strong."

    return sentence


def map_sentence(effects: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Say at how many layers each direction is stronger than 95 % of random ones."""
    part = "slope" if "slope" in effects else "effect"
    shown = effects if part == "slope" else effects.isel(dose=-1)
    names = [plain_text(name, 40) for name in values_of(shown, "direction")]
    layers = shown.sizes.get("layer", 1)
    if f"{part}_p" not in shown or not shown.sizes.get("random", 0):
        return lambda slider_values: "There are no random directions to compare the layers with."
    read = lookup(shown[f"{part}_p"], ("direction", "layer"))

    def sentence(slider_values: SliderValues) -> str:
        counts = (read(slider_values) <= 0.05).sum(axis=1)
        words = [f"{name!r} at {count} of {layers} layers" for name, count in zip(names, counts, strict=True)]
        stage = slider_values.get("stage", spec.fixed.get("stage"))
        where = f"At stage {plain_text(stage)}, the" if stage is not None else "The"
        return (
            f"{where} {part} is stronger than that of 95 % of random directions for {', '.join(words[:6])}; about one "
            "in twenty is expected by chance."
        )

    return sentence
