"""Tables of the report that are not the numbers of a figure: what is left of the effect after each control."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.plots.centroids import centroid_path_spec
from stratalens.analyses.plots.distributions import loss_curves_spec, statistic_distributions_spec
from stratalens.analyses.plots.html_page import Panel
from stratalens.analyses.plots.matrices import cosine_matrix_spec, pair_matrix_spec, scalar_map_spec
from stratalens.analyses.plots.probes import control_comparison_spec, layer_sweep_spec
from stratalens.analyses.plots.probes import control_rows as compared_rows
from stratalens.analyses.plots.spec import FigureSpec, SliderValues, plain, values_of
from stratalens.analyses.plots.stages import (
    direction_drift_spec,
    forgetting_spec,
    probe_generalisation_spec,
    stage_drift_spec,
)
from stratalens.analyses.report import sentences as more
from stratalens.analyses.report import sentences as say
from stratalens.analyses.report.caveats import CONTROL_LABELS, limits, unseen_sentence
from stratalens.analyses.stats.estimates import estimate, extreme_pair, pair_mean

#: How rows of `sl.control_table` are called on the page; others keep their own name.
ROW_LABELS = {
    "probe": "activations",
    "normalized": "activations at unit length",
    "statistics": "norms, losses, confidence alone",
    "matched: all": "matching: all rows",
    "matched: matched": "matching: matched rows",
    "matched: random_subsample": "matching: as many rows at random",
    "residual": "activations, statistics regressed out",
    "random_direction": "a random direction",
    "shuffled_label": "labels shuffled",
    "shuffled_entity": "entities shuffled",
    "untrained_stage": "before training",
}


@dataclass(frozen=True)
class Table:
    """A table as it stands on the page: texts only."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def control_rows(table: xr.Dataset) -> Table:
    """What is left after each control, at the last stage, the deepest layer, the last token and the first pair.

    Args:
        table: result of `sl.control_table`.
    """
    place: dict[Hashable, int] = {dim: -1 for dim in ("stage", "layer", "token") if dim in table["accuracy"].dims}
    if "pair" in table["accuracy"].dims:
        place["pair"] = 0
    here = table.isel(place)
    rows = []
    for name in map(str, table["control"].values):
        row = here.sel(control=name)
        rows.append((plain(ROW_LABELS.get(name, name)), *(_cell(row, key) for key in ("accuracy", "lost", "left"))))
    where = [f"{dim} {plain(here[dim].item())}" for dim in ("stage", "layer", "token", "pair") if dim in here.coords]
    caption = f"What is left of the effect at {', '.join(where)}; 95 % intervals over entities, paired by entity"
    return Table(caption, ("control", "accuracy", "accuracy lost", "share of the effect left"), tuple(rows))


def _cell(row: xr.Dataset, key: str) -> str:
    value, low, high = (float(row[name]) for name in (key, f"{key}_low", f"{key}_high"))
    if not np.isfinite(float(row["accuracy"])):
        return "too few rows" if key == "accuracy" else "not known"
    if not np.isfinite(value):
        return "no number: the activations are not above chance" if key == "left" else "not known"
    return f"{value:z.2f} ({low:z.2f} to {high:z.2f})" if np.isfinite(low) else f"{value:z.2f}"


Results = Mapping[str, Any]


@dataclass
class Section:
    """One question with its figures; `missing` says which call would have answered it."""

    key: str
    title: str
    lead: str = ""
    panels: list[Panel] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    missing: str = ""

    def show(self, picture: FigureSpec, sentence: Callable[[SliderValues], str], reading: str) -> None:
        """Add a figure with what it shows and how to read it."""
        self.panels.append(Panel(picture, sentence, reading))


def build_sections(
    results: Results, notes: Sequence[str] = (), known: Sequence[str] = (), numbers: Sequence[str] = ()
) -> list[Section]:
    """All sections in the order in which a reader asks; those without results say how to get them."""
    return [
        recorded(results, known),
        order(results),
        separable(results),
        places(results),
        *in_the_prompt(results),
        controls(results),
        directions(results),
        *forgotten(results),
        *([Section("numbers", "The headline numbers in words", points=list(numbers))] if numbers else []),
        Section("unknown", "What is not known", points=[*limits(results), *notes]),
    ]


def recorded(results: Results, known: Sequence[str] = ()) -> Section:
    """What was recorded: loss curves here, tables of the store in the template."""
    section = Section("recorded", "What was recorded")
    losses = results.get("losses")
    if isinstance(losses, pd.DataFrame) and len(losses):
        picture = loss_curves_spec(losses, known)
        section.show(
            picture,
            more.loss_sentence(losses),
            "Each stage restarts on new entities, so the loss jumps at its start.",
        )
    return section


def order(results: Results) -> Section:
    """Is there an order: the plane, and rank correlation over stages and layers."""
    section = Section("order", "Is there an order?")
    projection = results.get("projection")
    if projection is None:
        section.missing = 'sl.project(ds, by="trained_stage")'
        return section
    section.lead = (
        "The axis w1 runs from the first group's mean to the last group's mean and is made from one half of the "
        "entities; the other half is projected, so the picture is not ordered by construction."
    )
    picture = centroid_path_spec(projection)
    section.show(
        picture,
        say.path_sentence(projection, picture),
        "One dot per group, joined in training order; both axes have about the same scale, bars are 95 % intervals.",
    )
    if "rank_correlation" in projection and {"stage", "layer"} <= set(projection["rank_correlation"].coords):
        rank = projection["rank_correlation"].assign_attrs(projection.attrs)
        label = "rank correlation with training order"
        reading = "What a stage before training shows is a control: there is nothing to be ordered yet."
        section.show(*_map_panel(rank, "stage", "layer", label, (-1.0, 1.0), 0.0), reading)
    return section


def separable(results: Results) -> Section:
    """How separable: the matrix of pairs."""
    section = Section("separable", "How separable are the groups?")
    probes = results.get("probes")
    if probes is None or "pair_first" not in probes.coords:
        section.missing = 'sl.probe(ds, target="trained_stage", pairs="all")'
        return section
    section.lead = "A linear probe is fitted for each pair of groups and scored on entities that it was not fitted on."
    picture = pair_matrix_spec(probes)
    sentence = say.matrix_sentence(probes, picture)
    if probes["pair"].size == 1 and (not picture.sliders or "layer" in probes["accuracy"].coords):
        section.lead += f" {sentence(picture.default())}"  # a matrix of one cell would be one huge square
        section.lead += " The next section shows it elsewhere." if picture.sliders else ""
        return section
    section.show(
        picture,
        sentence,
        "Row: the group trained earlier; column: later. n.s.: not told from chance.",
    )
    return section


def places(results: Results) -> Section:
    """Where: layer, token and stage."""
    section = Section("where", "Where is it: layer, token, stage?")
    probes = results.get("probes")
    if probes is None:
        section.missing = 'sl.probe(ds, target="trained_stage")'
        return section
    if "layer" in probes["accuracy"].coords:
        picture = layer_sweep_spec(probes)
        section.show(
            picture,
            say.sweep_sentence(probes, picture),
            (
                "Bold: the first group against the last, and the mean of all pairs, with 95 % intervals; "
                "thin: every other pair, in the colour of its later group."
            ),
        )
    scalar, label = _headline_scalar(probes)
    coords = set(scalar.coords)
    for x, y, reading in (
        ("stage", "layer", "White is chance."),
        ("layer", "token", "White is chance. Positions are those that were recorded."),
    ):
        if {x, y} <= coords and max(scalar.sizes.get(x, 1), scalar.sizes.get(y, 1)) > 1:
            section.show(*_map_panel(scalar, x, y, label, (0.0, 1.0), 0.5), reading)
    return section


def in_the_prompt(results: Results) -> list[Section]:
    """At which token of the prompt, where one stage was recorded at many of them; nothing otherwise."""
    probes = results.get("tokens")
    if probes is None:
        return []
    scalar, label = _headline_scalar(probes)
    reading = "White is chance. Negative positions count from the end of the prompt."
    section = Section("prompt", "At which token of the prompt?")
    section.show(*_map_panel(scalar, "layer", "token", label, (0.0, 1.0), 0.5), reading)
    return [section]


def _map_panel(
    scalar: xr.DataArray, x: str, y: str, label: str, limits: tuple[float, float], chance: float
) -> tuple[FigureSpec, Callable[[SliderValues], str]]:
    """A map of one number over two dims, with its sentence."""
    picture = scalar_map_spec(scalar, x, y, label, limits, chance)
    return picture, say.map_sentence(scalar, picture, label, chance)


def _headline_scalar(probes: xr.Dataset) -> tuple[xr.DataArray, str]:
    pair = extreme_pair(probes)
    result = estimate(probes)
    if pair and "pair" in result.dims:
        index = [str(p) for p in values_of(probes, "pair")].index(pair)
        return result["value"].isel(pair=index, drop=True).assign_attrs(probes.attrs), f"accuracy of {plain(pair, 24)}"
    return pair_mean(probes)["value"].assign_attrs(probes.attrs), "mean accuracy"


def controls(results: Results) -> Section:
    """Does it survive: controls beside the probe, distributions of the statistics, groups not seen yet."""
    section = Section("controls", "Does it survive the controls?")
    chosen = {label: results[key] for key, label in CONTROL_LABELS.items() if results.get(key) is not None}
    if len(chosen) > 1:
        picture = control_comparison_spec(chosen)
        section.show(
            picture,
            say.control_sentence(compared_rows(chosen), picture),
            (
                "If norms, losses or confidence were all there is, matching or regressing them out would "
                "bring the probe to the dashed line. The random subsample shows what the smaller matched "
                "sample costs by itself."
            ),
        )
    else:
        section.missing = "sl.statistics_probe, sl.matched_probe and sl.residual_probe"
    if results.get("control_table") is not None:
        section.tables.append(control_rows(results["control_table"]))
    unseen = unseen_sentence(results.get("probes"))
    if unseen:
        section.points.append(unseen)
    quantiles = results.get("statistics")
    if quantiles is not None:
        picture = statistic_distributions_spec(quantiles)
        section.show(
            picture,
            more.spread_sentence(quantiles, picture),
            "Dot: median; thick bar: quartiles; thin bar: 5 to 95 % of rows.",
        )
    return section


def directions(results: Results) -> Section:
    """How directions relate: cosines, generalisation, drift of centroids."""
    section = Section("directions", "How do the directions relate?")
    cosines, scores, centroids = results.get("cosines"), results.get("generalise"), results.get("centroids")
    if cosines is not None:
        picture = cosine_matrix_spec(cosines)
        section.show(
            picture,
            more.cosine_sentence(cosines, picture),
            (
                "Directions point to the later group. Pairs that share a group have a cosine by construction "
                "(about 0.5 if they share the same end), so compare pairs that share none."
            ),
        )
    probes = results.get("probes")
    if probes is not None and "coef" in probes and probes["coef"].sizes.get("stage", 1) > 1:
        picture = direction_drift_spec(probes)
        section.show(
            picture,
            more.turn_sentence(probes, picture),
            (
                "The last stage is compared with itself there: 1 by construction. Each line is one pair; between the "
                "dashed lines lie 95 % of unrelated directions."
            ),
        )
    if scores is not None:
        picture = probe_generalisation_spec(scores)
        section.show(
            picture,
            more.score_sentence(scores, picture),
            (
                "Groups that the probe was not fitted on fall where its direction puts them; an ordered "
                "row means one direction serves all."
            ),
        )
    if centroids is not None:
        picture = stage_drift_spec(centroids)
        section.show(
            picture,
            more.drift_sentence(centroids, picture),
            "A large dot marks the stage that trained on the group.",
        )
    if not section.panels:
        section.missing = "sl.cosines(probes), sl.generalise(probes, ds) and sl.centroids(ds)"
    return section


def forgotten(results: Results) -> list[Section]:
    """What is forgotten with time, where a run has asked for it; nothing otherwise."""
    curves: Mapping[str, xr.Dataset] = results.get("forgetting") or {}
    reading = "One line per group; right of 0 other groups are trained on, left of it the group is not known yet."
    section = Section("forgetting", "What is forgotten?")
    for table in curves.values():
        section.show(forgetting_spec(table), more.forgetting_sentence(table), reading)
    return [section] if section.panels else []
