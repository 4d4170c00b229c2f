"""Sentences about the centroids of groups: their order, where they have one, and their distances."""

from __future__ import annotations

import numpy as np
import xarray as xr

from stratalens.analyses.data.training_order import group_names
from stratalens.analyses.plots.spec import FigureSpec, SliderValues, lookup, plain_text
from stratalens.analyses.plots.wording import GroupWords, group_words
from stratalens.analyses.report.phrases import (
    NOT_DISTINGUISHABLE,
    Sentence,
    estimate_reader,
    is_different,
    location,
    p_text,
    value_with_interval,
)
from stratalens.analyses.stats.estimates import estimate

LEAST_GROUPS = 6  # of fewer groups, all orders of the inner ones are too few for p = .05
ALPHA = 0.05
NO_DIFFERENCE = "with no difference between groups it would be"


def path_sentence(projection: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Describe the order of the centroids, against random orders of the inner groups, and their straightness.

    The null of permuted labels is that the groups do not differ. It says nothing about their order, and the sentence
    names it so.
    """
    words = group_words(projection)
    if not words.ordered:
        return lambda slider_values: (
            f"At {location(spec, slider_values)}, the figure shows the {len(group_names(projection))} centroids of "
            "entities that do not define its axes. The groups have no order, so it is no test of one."
        )
    if "rank_correlation" not in projection:
        return lambda slider_values: "The order was not measured: this projection has no rank correlation."
    count, permutations = len(group_names(projection)), projection.attrs.get("permutations")
    claim = _order_claim(projection, words, count)
    read_rank = estimate_reader(estimate(projection, "rank_correlation", 0.0))
    read_line = estimate_reader(estimate(projection, "r2", 0.0)) if "r2" in projection else None

    def sentence(slider_values: SliderValues) -> str:
        rank = read_rank(slider_values)
        text = (
            f"At {location(spec, slider_values)}, the {count} centroids of held-out entities {claim(slider_values)} "
            f"Over all groups, the rank correlation is {value_with_interval(rank)}; {NO_DIFFERENCE} "
            f"{rank['null']:z.2f}{p_text(rank['p'], permutations)}."
        )
        if read_line is not None:
            line = read_line(slider_values)
            text += (
                f" A straight line explains {value_with_interval(line)} of their variance; {NO_DIFFERENCE} "
                f"{line['null']:z.2f}{p_text(line['p'], permutations)}"
            )
            text += "." if is_different(line) else f"; the straightness is {NOT_DISTINGUISHABLE}."
        return text

    return sentence


def straightness_sentence(projection: xr.Dataset) -> str:
    """Describe the straightness without noise at the last stage, deepest layer and last token; "" if unknown."""
    if "r2_corrected" not in projection:  # a result of an older version
        return ""
    dims = [dim for dim in ("stage", "layer", "token") if dim in projection["r2_corrected"].dims]
    here = projection.isel(dict.fromkeys(dims, -1))
    place = ", ".join(f"{dim} {plain_text(here[dim].item())}" for dim in dims if dim in here.coords)
    start = f"At {place}, " if place else ""
    if not np.isfinite(float(here["r2_corrected"])):
        return f"{start}most of the distances between the centroids is noise, so their straightness is not known."

    def number(name: str) -> str:
        value = f"{float(here[name]):z.2f}"
        if f"{name}_low" not in here or not np.isfinite(float(here[f"{name}_low"])):
            return value
        return f"{value} (95 % {float(here[f'{name}_low']):z.2f} to {float(here[f'{name}_high']):z.2f})"

    text = (
        f"{start}without the noise of the centroids a straight line explains {number('r2_corrected')} of the squared "
        "distances between the groups"
    )
    if "step_cosine_mean" in here and np.isfinite(float(here["step_cosine_mean"])):
        text += f"; the mean cosine of successive steps is {number('step_cosine_mean')}, where 1 is straight on"
    return (text[0].upper() + text[1:]) + "."


def _order_claim(projection: xr.Dataset, words: GroupWords, count: int) -> Sentence:
    """Describe the inner rank correlation with its p under random orders of the inner groups."""
    name = "inner_rank_correlation"
    if count <= 3:
        return lambda slider_values: (
            f"cannot show {words.order}: only one group is between the two that define the axis."
        )
    if name not in projection:
        return lambda slider_values: (
            f"are not tested for {words.order}: this projection has no rank correlation of the inner groups."
        )
    least = float(projection.attrs.get("least_p", np.nan))  # results of older versions test no order
    bound = f" (the least possible p is {least:.2g})" if np.isfinite(least) else ""
    read = estimate_reader(estimate(projection, name, 0.0))

    def sentence(slider_values: SliderValues) -> str:
        inner = read(slider_values)
        value = f"the rank correlation of the {count - 2} inner groups is {value_with_interval(inner)}"
        if count < LEAST_GROUPS or least > ALPHA:
            few = "fewer than six groups" if count < LEAST_GROUPS else "too few orders of the inner groups"
            return f"cannot show {words.order} at p = 0.05, because there are {few}{bound}: {value}."
        if not np.isfinite(inner["p"] + least):
            return f"are not tested for {words.order} here: {value}."
        value += f", p = {inner['p']:.2g} under random orders of the inner groups"
        if inner["p"] > ALPHA or inner["value"] <= 0:
            return f"do not show {words.order}: {value}."
        return f"{'weakly follow' if inner['value'] < 0.6 else 'follow'} {words.order}: {value}."

    return sentence


def centroid_map_sentence(components: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Describe the variance in the plane, and the farthest and the nearest pair of centroids."""
    names = [plain_text(g) for g in group_names(components)]
    read_share = lookup(components["share"], ("component",))
    read_distance = lookup(components["distance"], ("group", "group_other"))
    upper = np.triu(np.ones((len(names), len(names)), dtype=bool), 1)

    def sentence(slider_values: SliderValues) -> str:
        here, share = location(spec, slider_values), read_share(slider_values)
        distance = np.where(upper, read_distance(slider_values), np.nan)
        if not np.isfinite(distance).any():
            return f"At {here}, no two centroids are known."
        text = (
            f"At {here}, the plane has {100 * np.nansum(share):z.0f} % of the variance of the {len(names)} centroids."
        )
        far = np.unravel_index(int(np.nanargmax(distance)), distance.shape)
        near = np.unravel_index(int(np.nanargmin(distance)), distance.shape)
        text += f" {names[far[0]]} and {names[far[1]]} are farthest from each other ({distance[far]:.3g})"
        if len(names) > 2:
            text += f", {names[near[0]]} and {names[near[1]]} nearest ({distance[near]:.3g})"
        return f"{text}. Distances between means are not a test: those of small groups differ by chance."

    return sentence
