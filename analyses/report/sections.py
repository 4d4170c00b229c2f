"""Sections of the report: the figures and tables of each question, in the order in which a reader asks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.plots.centroids import centroid_path_spec
from stratalens.analyses.plots.distributions import loss_curves_spec, statistic_distributions_spec
from stratalens.analyses.plots.html_page import PageFigure
from stratalens.analyses.plots.matrices import cosine_matrix_spec, pair_matrix_spec, scalar_map_spec
from stratalens.analyses.plots.probes import comparison_rows, control_comparison_spec, layer_sweep_spec
from stratalens.analyses.plots.spec import FigureSpec, SliderValues, plain_text, values_of
from stratalens.analyses.plots.stages import (
    direction_drift_spec,
    forgetting_spec,
    probe_generalisation_spec,
    stage_drift_spec,
)
from stratalens.analyses.report import control_sentences, sentences
from stratalens.analyses.report.caveats import caveats, control_rows, time_control_sentence
from stratalens.analyses.stats.estimates import estimate, extreme_pair, pair_mean

Results = Mapping[str, Any]

#: Names of the rows of `sl.control_table` on the page; other rows are shown under their own name.
ROW_LABELS = {
    "probe": "activations",
    "normalized": "activations at unit length",
    "statistics": "norms, losses, confidence alone",
    "statistics_boosting": "norms, losses, confidence alone (boosting)",
    "matched: all": "matching: trained on all rows",
    "matched: matched": "matching: trained on matched rows",
    "matched: random_subsample": "matching: trained on as many rows at random",
    "matched: matched, unmatched test rows": "matching: trained on matched rows, unmatched test rows",
    "weighted": "weighted to equal statistics",
    "conditional": "compared with labels drawn from the statistics",
    "residual": "activations, statistics regressed out",
    "random_direction": "a random direction",
    "shuffled_label": "labels shuffled",
    "shuffled_entity": "entities shuffled",
    "untrained_stage": "before training",
}


@dataclass(frozen=True)
class Table:
    """A table of the page; all cells are text."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class Section:
    """One question with its figures.

    `missing` names the function that computes the answer.
    """

    key: str
    title: str
    lead: str = ""
    figures: list[PageFigure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    missing: str = ""

    def add(self, spec: FigureSpec, sentence: Callable[[SliderValues], str], reading: str) -> None:
        """Add a figure with its statement and a line on how to read it."""
        self.figures.append(PageFigure(spec, sentence, reading))


def build_sections(
    results: Results, notes: Sequence[str] = (), known: Sequence[str] = (), numbers: Sequence[str] = ()
) -> list[Section]:
    """Build all sections.

    Args:
        results: results by name, see `report`.
        notes: further limitations.
        known: trained stages in order, for the colours.
        numbers: headline numbers as sentences.
    """
    return [
        recorded_section(results, known),
        order_section(results),
        separability_section(results),
        location_section(results),
        *prompt_sections(results),
        controls_section(results),
        directions_section(results),
        *forgetting_sections(results),
        *([Section("numbers", "Headline numbers", points=list(numbers))] if numbers else []),
        Section("unknown", "Limitations", points=[*caveats(results), *notes]),
    ]


def recorded_section(results: Results, known: Sequence[str] = ()) -> Section:
    """Build the section on the recorded data: loss curves.

    The template adds the tables of the store.
    """
    section = Section("recorded", "Recorded data")
    losses = results.get("losses")
    if isinstance(losses, pd.DataFrame) and len(losses):
        reading = "Each stage starts with new entities, so the loss jumps at its start."
        section.add(loss_curves_spec(losses, known), sentences.loss_sentence(losses), reading)
    return section


def order_section(results: Results) -> Section:
    """Build the section on order: the plane (w1, w2), and rank correlations."""
    section = Section("order", "Order of the groups")
    projection = results.get("projection")
    if projection is None:
        section.missing = 'sl.project(ds, by="trained_stage")'
        return section
    section.lead = (
        "The axis w1 leads from the mean of the first group to the mean of the last group. One half of the entities "
        "defines it and the other half is projected, so the figure is not ordered by construction."
    )
    spec = centroid_path_spec(projection)
    section.add(
        spec,
        sentences.path_sentence(projection, spec),
        "One dot a group, joined in training order. Both axes have about the same scale; bars are 95 % intervals.",
    )
    if "rank_correlation" in projection and {"stage", "layer"} <= set(projection["rank_correlation"].coords):
        rank = projection["rank_correlation"].assign_attrs(projection.attrs)
        label = "rank correlation with training order"
        reading = "A stage before training is a control: no order exists there yet."
        section.add(*_map_figure(rank, "stage", "layer", label, (-1.0, 1.0), 0.0), reading)
    return section


def separability_section(results: Results) -> Section:
    """Build the section on separability: the matrix of pairs."""
    section = Section("separable", "Separability of the groups")
    probes = results.get("probes")
    if probes is None or "pair_first" not in probes.coords:
        section.missing = 'sl.probe(ds, target="trained_stage", pairs="all")'
        return section
    section.lead = "A linear probe is fitted for each pair of groups and scored on held-out entities."
    spec = pair_matrix_spec(probes)
    sentence = sentences.matrix_sentence(probes, spec)
    if probes["pair"].size == 1 and (not spec.sliders or "layer" in probes["accuracy"].coords):
        section.lead += f" {sentence(spec.default_values())}"  # a matrix of one cell would be one huge square
        section.lead += " The next section shows other positions." if spec.sliders else ""
        return section
    reading = "Row: the group trained earlier. Column: the group trained later. n.s.: not distinguishable from chance."
    section.add(spec, sentence, reading)
    return section


def location_section(results: Results) -> Section:
    """Build the section on layer, token and stage."""
    section = Section("where", "Layer, token and stage")
    probes = results.get("probes")
    if probes is None:
        section.missing = 'sl.probe(ds, target="trained_stage")'
        return section
    if "layer" in probes["accuracy"].coords:
        spec = layer_sweep_spec(probes)
        section.add(
            spec,
            sentences.sweep_sentence(probes, spec),
            "Bold: the first group against the last, and the mean of all pairs, with 95 % intervals. "
            "Thin: every other pair, in the colour of its later group.",
        )
    scalar, label = _headline_scalar(probes)
    coords = set(scalar.coords)
    for x, y, reading in (
        ("stage", "layer", "White is chance."),
        ("layer", "token", "White is chance. The map has all recorded positions."),
    ):
        if {x, y} <= coords and max(scalar.sizes.get(x, 1), scalar.sizes.get(y, 1)) > 1:
            section.add(*_map_figure(scalar, x, y, label, (0.0, 1.0), 0.5), reading)
    return section


def prompt_sections(results: Results) -> list[Section]:
    """Build the section on the tokens of the prompt, if many were recorded."""
    probes = results.get("tokens")
    if probes is None:
        return []
    scalar, label = _headline_scalar(probes)
    reading = "White is chance. Negative positions count from the end of the prompt."
    section = Section("prompt", "Tokens of the prompt")
    section.add(*_map_figure(scalar, "layer", "token", label, (0.0, 1.0), 0.5), reading)
    return [section]


def controls_section(results: Results) -> Section:
    """Build the section on controls: comparison, statistics, and control by time."""
    section = Section("controls", "Controls")
    chosen = control_rows(results)
    if len(chosen) > 1:
        spec = control_comparison_spec(chosen)
        section.add(
            spec,
            control_sentences.control_sentence(comparison_rows(chosen), spec, results.get("conditional_test")),
            "If norms, losses or confidence explained the whole effect, weighting the classes to equal statistics "
            "would reduce the accuracy to the dashed line. Matching balances the named statistics alone; the random "
            "subsample shows the cost of the smaller matched sample.",
        )
    else:
        section.missing = "sl.statistics_probe, sl.weighted_probe, sl.matched_probe and sl.residual_probe"
    if results.get("control_table") is not None:
        section.tables.append(control_table(results["control_table"]))
    time_control = time_control_sentence(results.get("probes"))
    if time_control:
        section.points.append(time_control)
    quantiles = results.get("statistics")
    if quantiles is not None:
        spec = statistic_distributions_spec(quantiles)
        reading = "Dot: median. Thick bar: quartiles. Thin bar: 5 to 95 % of rows."
        section.add(spec, control_sentences.statistics_sentence(quantiles, spec), reading)
    return section


def directions_section(results: Results) -> Section:
    """Build the section on directions: cosines, drift and generalisation."""
    section = Section("directions", "Directions")
    cosines, scores, centroids = results.get("cosines"), results.get("generalise"), results.get("centroids")
    if cosines is not None:
        spec = cosine_matrix_spec(cosines)
        section.add(
            spec,
            sentences.cosine_sentence(cosines, spec),
            "Directions point to the later group. Pairs that share a group have a cosine by construction, about 0.5 "
            "if they share the same end. Compare pairs that share no group.",
        )
    probes = results.get("probes")
    if probes is not None and "coef" in probes and probes["coef"].sizes.get("stage", 1) > 1:
        spec = direction_drift_spec(probes)
        section.add(
            spec,
            sentences.direction_drift_sentence(probes, spec),
            "One line a pair. The last stage is compared with itself, which gives 1 by construction. The dashed lines "
            "enclose 95 % of unrelated directions.",
        )
    if scores is not None:
        spec = probe_generalisation_spec(scores)
        section.add(
            spec,
            sentences.generalisation_sentence(scores, spec),
            "The probe was fitted on two of the groups. If the others are also in order, one direction orders all.",
        )
    if centroids is not None:
        spec = stage_drift_spec(centroids)
        reading = "A large dot marks the stage that trained the group."
        section.add(spec, sentences.centroid_drift_sentence(centroids, spec), reading)
    if not section.figures:
        section.missing = "sl.cosines(probes), sl.generalise(probes, ds) and sl.centroids(ds)"
    return section


def forgetting_sections(results: Results) -> list[Section]:
    """Build the section on forgetting, if the run computed it."""
    tables: Mapping[str, xr.Dataset] = results.get("forgetting") or {}
    reading = "One line a group. Right of 0, other groups are trained; left of 0, the group was not trained yet."
    section = Section("forgetting", "Forgetting")
    for table in tables.values():
        section.add(forgetting_spec(table), sentences.forgetting_sentence(table), reading)
    return [section] if section.figures else []


def control_table(table: xr.Dataset) -> Table:
    """Tabulate the effect that remains under each control.

    Args:
        table: result of `sl.control_table`; the last stage, the deepest layer, the last token and the first pair
            are shown.
    """
    index: dict[Hashable, int] = {dim: -1 for dim in ("stage", "layer", "token") if dim in table["accuracy"].dims}
    if "pair" in table["accuracy"].dims:
        index["pair"] = 0
    here = table.isel(index)
    rows = []
    for name in map(str, table["control"].values):
        row = here.sel(control=name)
        matched = str(row["matched_on"].item()) if "matched_on" in row.coords else ""
        site = str(table.attrs.get("site", ""))
        label = ROW_LABELS.get(name, name)
        if matched:
            label += f" (matched on {matched.replace(f'{site}_', '')})"
        cells = [_cell(row, key) for key in ("accuracy", "lost", "left")]
        rows.append((plain_text(label), *cells))
    words = [
        f"{dim} {plain_text(here[dim].item())}" for dim in ("stage", "layer", "token", "pair") if dim in here.coords
    ]
    caption = f"Remaining effect at {', '.join(words)}; 95 % intervals over entities, paired by entity"
    lost = "accuracy lost"
    if table.attrs.get("measure") == "auc":
        caption += ". The classes are unequal, so effects are AUC above 0.50"
        lost = "AUC lost"
    return Table(caption, ("control", "accuracy", lost, "remaining share of the effect"), tuple(rows))


def _cell(row: xr.Dataset, key: str) -> str:
    value, low, high = (float(row[name]) for name in (key, f"{key}_low", f"{key}_high"))
    if not np.isfinite(float(row["accuracy"])):
        return "too few rows" if key == "accuracy" else "not known"
    if not np.isfinite(value):
        return "undefined: the activations are not above chance" if key == "left" else "not known"
    return f"{value:z.2f} ({low:z.2f} to {high:z.2f})" if np.isfinite(low) else f"{value:z.2f}"


def _map_figure(
    scalar: xr.DataArray, x: str, y: str, label: str, limits: tuple[float, float], chance: float
) -> tuple[FigureSpec, Callable[[SliderValues], str]]:
    """Return a map of one number over two dims, with its statement."""
    spec = scalar_map_spec(scalar, x, y, label, limits, chance)
    return spec, sentences.map_sentence(scalar, spec, label, chance)


def _headline_scalar(probes: xr.Dataset) -> tuple[xr.DataArray, str]:
    """Return the accuracy of the first-versus-last pair (else of all) and its label."""
    pair = extreme_pair(probes)
    result = estimate(probes)
    if pair and "pair" in result.dims:
        index = [str(p) for p in values_of(probes, "pair")].index(pair)
        value = result["value"].isel(pair=index, drop=True)
        return value.assign_attrs(probes.attrs), f"accuracy of {plain_text(pair, 24)}"
    return pair_mean(probes)["value"].assign_attrs(probes.attrs), "mean accuracy"
