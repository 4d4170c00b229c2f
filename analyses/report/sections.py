"""Sections of the report: the figures and tables of each question, in the order in which a reader asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import xarray as xr

from stratalens.analyses.data.training_order import is_ordered
from stratalens.analyses.plots.centroid_map import centroid_components, centroid_map_spec
from stratalens.analyses.plots.centroids import centroid_path_spec
from stratalens.analyses.plots.distributions import loss_curves_spec, statistic_distributions_spec
from stratalens.analyses.plots.forgetting import forgetting_spec
from stratalens.analyses.plots.group_recall import group_recall_spec
from stratalens.analyses.plots.html_page import PageFigure
from stratalens.analyses.plots.interventions import dose_response_spec, intervention_map_spec
from stratalens.analyses.plots.matrices import accuracy_limits, cosine_matrix_spec, pair_matrix_spec, scalar_map_spec
from stratalens.analyses.plots.probes import (
    comparison_rows,
    control_comparison_spec,
    is_multiclass,
    layer_sweep_spec,
    main_pair,
    plain_measure,
)
from stratalens.analyses.plots.spec import FigureSpec, SliderValues, plain_text, values_of
from stratalens.analyses.plots.stages import (
    direction_drift_spec,
    probe_generalisation_spec,
    stage_drift_spec,
)
from stratalens.analyses.plots.wording import GroupWords, group_words
from stratalens.analyses.report import control_sentences, group_sentences, intervention_sentences, sentences
from stratalens.analyses.report.caveats import caveats, control_rows, time_control_sentence
from stratalens.analyses.report.control_tables import Table, control_table, statistic_set_table
from stratalens.analyses.report.phrases import name_intervals_once
from stratalens.analyses.stats.estimates import estimate, pair_mean

Results = Mapping[str, Any]


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
        self.figures.append(PageFigure(spec, lambda values: name_intervals_once(sentence(values)), reading))


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
        order_section(results) if have_order(results) else groups_section(results),
        separability_section(results),
        location_section(results),
        *prompt_sections(results),
        controls_section(results),
        directions_section(results),
        *forgetting_sections(results),
        *intervention_sections(results),
        *([Section("numbers", "Headline numbers", points=list(numbers))] if numbers else []),
        Section("unknown", "Limitations", points=[*caveats(results), *notes]),
        recorded_section(results, known),
    ]


def have_order(results: Results) -> bool:
    """Whether the groups of a run have a known order; without any result, the order is unknown and asked for."""
    grouped = _grouped(results)
    return not grouped or all(is_ordered(data) for data in grouped)


def words_of(results: Results) -> GroupWords | None:
    """Return the words about the groups of a run; None without any result."""
    grouped = _grouped(results)
    return group_words(grouped[0]) if grouped else None


def _grouped(results: Results) -> list[xr.Dataset]:
    names = ("projection", "centroids", "multiclass", "probes", "statistics")
    return [data for name in names if isinstance(data := results.get(name), xr.Dataset)]


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
    section = Section("order", "Is there an order?")
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
        group_sentences.path_sentence(projection, spec),
        f"One dot a group, joined in {group_words(projection).order}. Both axes have about the same scale; bars are "
        "95 % intervals.",
    )
    inner = "inner_rank_correlation"
    name = inner if inner in projection and projection.sizes["group"] > 3 else "rank_correlation"
    if name in projection and {"stage", "layer"} <= set(projection[name].coords):
        rank = projection[name].assign_attrs(projection.attrs)
        label = "rank correlation of inner groups" if name == inner else "rank correlation of the groups"
        reading = "A stage before training is a control: no order exists there yet."
        section.add(*_map_figure(rank, "stage", "layer", label, (-1.0, 1.0), 0.0), reading)
    straightness = group_sentences.straightness_sentence(projection)
    if straightness:
        section.points.append(straightness)
    return section


def groups_section(results: Results) -> Section:
    """Build the section on groups without an order: their centroids."""
    centroids, words = results.get("centroids"), words_of(results)
    column = words.by if words is not None else "the label"
    section = Section("groups", f"Groups of {column}")
    if centroids is None:
        section.missing = f'sl.centroids(ds, by="{column}")'
        return section
    section.lead = (
        f"The groups of {column} have no order. The figure shows their means in the two directions in which the means "
        "differ most."
    )
    components = centroid_components(centroids)
    spec = centroid_map_spec(centroids, components)
    reading = "One dot a group. Both axes have about the same scale, and each place has axes of its own."
    section.add(spec, group_sentences.centroid_map_sentence(components, spec), reading)
    projection = results.get("projection")
    if projection is not None:
        spec = centroid_path_spec(projection)
        section.add(spec, group_sentences.path_sentence(projection, spec), "One dot a group; bars are 95 % intervals.")
    return section


def separability_section(results: Results) -> Section:
    """Build the section on separability: one probe of all groups, where there is one, and the matrix of pairs."""
    section = Section("separable", "Separability of the groups")
    probes, multiclass = results.get("probes"), results.get("multiclass")
    if multiclass is not None:
        section.lead = "One linear probe distinguishes all groups at once and is scored on held-out entities."
        if "layer" in multiclass["accuracy"].coords:
            spec = layer_sweep_spec(multiclass)
            reading = "Bars are 95 % intervals over entities."
            section.add(spec, sentences.sweep_sentence(multiclass, spec), reading)
        if "right" in multiclass:
            spec, shares = group_recall_spec(multiclass)
            reading = "Share of a group's rows that the probe of all groups assigns to it. Bars are 95 % intervals."
            section.add(spec, sentences.recall_sentence(shares, spec), reading)
    if probes is None or "pair_first" not in probes.coords:
        section.missing = "" if section.figures else 'sl.probe(ds, target="trained_stage", pairs="all")'
        return section
    section.lead += " A linear probe is fitted for each pair of groups and scored on held-out entities."
    spec = pair_matrix_spec(probes)
    sentence = sentences.matrix_sentence(probes, spec)
    if probes["pair"].size == 1 and (not spec.sliders or "layer" in probes["accuracy"].coords):
        section.lead += f" {sentence(spec.default_values())}"  # a matrix of one cell would be one huge square
        section.lead += " The next section shows other positions." if spec.sliders else ""
        return section
    words = group_words(probes)
    trained = "Row: the group trained earlier. Column: the group trained later. "
    ordered = "Row: the group that comes first. Column: the group that comes second. " if words.ordered else ""
    reading = f"{trained if words.trained else ordered}n.s.: not distinguishable from chance."
    section.add(spec, sentence, reading)
    return section


def location_section(results: Results) -> Section:
    """Build the section on layer, token and stage."""
    section = Section("where", "Layer, token and stage")
    probes, multiclass = results.get("probes"), results.get("multiclass")
    if probes is None and multiclass is None:
        section.missing = 'sl.probe(ds, target="trained_stage")'
        return section
    if probes is not None and "layer" in probes["accuracy"].coords:
        spec = layer_sweep_spec(probes)
        ordered = (
            "Bold: the first group against the last, and the mean of all pairs, with 95 % intervals. "
            "Thin: every other pair, in the colour of its later group."
        )
        unordered = "Bold: the mean of all pairs, with 95 % intervals. Thin: single pairs."
        section.add(spec, sentences.sweep_sentence(probes, spec), ordered if is_ordered(probes) else unordered)
    headline = probes if multiclass is None else multiclass
    assert headline is not None
    scalar, label, chance = _headline_scalar(headline)
    coords = set(scalar.coords)
    white = f"White is chance ({chance:.2g})." if chance != 0.5 else "White is chance."
    for x, y, reading in (
        ("stage", "layer", white),
        ("layer", "token", f"{white} The map has all recorded positions."),
    ):
        if {x, y} <= coords and max(scalar.sizes.get(x, 1), scalar.sizes.get(y, 1)) > 1:
            section.add(*_map_figure(scalar, x, y, label, accuracy_limits(chance, scalar), chance), reading)
    return section


def prompt_sections(results: Results) -> list[Section]:
    """Build the section on the tokens of the prompt, if many were recorded."""
    probes = results.get("tokens")
    if probes is None:
        return []
    scalar, label, chance = _headline_scalar(probes)
    reading = "White is chance. Negative positions count from the end of the prompt."
    section = Section("prompt", "Tokens of the prompt")
    section.add(*_map_figure(scalar, "layer", "token", label, accuracy_limits(chance, scalar), chance), reading)
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
    if isinstance(results.get("statistic_sets"), pd.DataFrame):
        section.tables.append(statistic_set_table(results["statistic_sets"]))
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
            f"Directions point to the {'later' if have_order(results) else 'second'} group. Pairs that share a group "
            "have a cosine by construction, about 0.5 if they share the same end. Compare pairs that share no group.",
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
            "The probe was fitted on two of the groups. "
            + (
                "If the others are also in order, one direction orders all."
                if is_ordered(scores)
                else "The others show which of the two they resemble along its direction."
            ),
        )
    if centroids is not None:
        spec = stage_drift_spec(centroids)
        trained = group_words(centroids).trained
        reading = "A large dot marks the stage that trained the group." if trained else "One line a group."
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


def intervention_sections(results: Results) -> list[Section]:
    """Build the section on interventions, if the run has any."""
    effects: Mapping[str, xr.Dataset] = results.get("interventions") or {}
    section = Section("interventions", "Does the model use it?")
    for result in effects.values():
        spec = dose_response_spec(result)
        section.add(
            spec,
            intervention_sentences.dose_sentence(result, spec),
            "An effect counts if it is outside the grey band of random directions. The sentences below judge the "
            "largest effect over all places and doses.",
        )
        if result["effect"].sizes.get("layer", 1) > 1:
            spec = intervention_map_spec(result)
            reading = 'White is no effect; "n.s." is no stronger than random directions. The places are not corrected.'
            section.add(spec, intervention_sentences.map_sentence(result, spec), reading)
        section.points += str(result.attrs.get("verdict", "")).splitlines()
    return [section] if section.figures else []


def _map_figure(
    scalar: xr.DataArray, x: str, y: str, label: str, limits: tuple[float, float], chance: float
) -> tuple[FigureSpec, Callable[[SliderValues], str]]:
    """Return a map of one number over two dims, with its statement."""
    spec = scalar_map_spec(scalar, x, y, label, limits, chance)
    return spec, sentences.map_sentence(scalar, spec, label, chance)


def _headline_scalar(probes: xr.Dataset) -> tuple[xr.DataArray, str, float]:
    """Return the accuracy of the first-versus-last pair (else of all groups or pairs), its label and its chance."""
    pair = main_pair(probes)
    result = estimate(probes)
    measure = plain_measure(str(result.attrs["measured"]))
    if is_multiclass(probes):
        label = f"{measure} of all groups of {group_words(probes).by}"
    elif pair and "pair" in result.dims:
        result = result.isel(pair=[str(p) for p in values_of(probes, "pair")].index(pair), drop=True)
        label = f"{measure} of {plain_text(pair, 24)}"
    else:
        label = f"mean {measure} over pairs" if result.sizes.get("pair", 1) > 1 else measure
    if "pair" in result.dims:
        result = pair_mean(probes)
    return result["value"].assign_attrs(probes.attrs), label, round(float(result["null"].mean()), 3)
