"""The analyses of a study.

Probes and projections cover every stage and layer. The permutation nulls, the controls and the site after the final
norm cover only the places of the headline numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import stratalens as sl
from stratalens.analyses.controls.controls import BASELINES
from stratalens.analyses.data.results import replace_place
from stratalens.plugin.progress import PhaseProgress
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.findings.headline import Row
from stratalens.plugin.study.findings.statistic_sets import (
    describe_statistic_sets,
    measure_statistic_sets,
    statistic_set_rows,
)

BY = "trained_stage"
HALVES: dict[str, Any] = {"target": "half", "order": ["early", "late"]}  # the probe of early against late entities
SITE, SETS_TABLE = "resid_post", "controls.csv"
STEPS = 8  # steps of run_analyses, for progress


@dataclass
class Findings:
    """Results of a study.

    Attributes:
        report: results that the report shows, by name.
        headline: further results for the headline numbers, by name.
        rows: further rows of summary.json.
        sentences: further sentences of the report.
        tables: tables that the run writes, by file name.
    """

    report: dict[str, Any] = field(default_factory=dict)
    headline: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def run_analyses(
    ds: xr.Dataset, settings: StudySettings, progress: PhaseProgress, ends: xr.Dataset | None = None
) -> Findings:
    """Run all analyses of the store of all stages.

    The headline numbers have a fixed place: the last stage, the last block and the first recorded position (the last
    token of the prompt).

    Args:
        ds: the store of all stages.
        settings: the settings of the study.
        progress: shows every step.
        ends: the untrained and the last stage of all entities, from which the headline numbers and controls come;
            None: those of `ds`.
    """
    a = settings.analysis
    token = ds.token.values[:1]
    whole = ds if ends is None else ends
    last = whole.sel(stage=[settings.stage_names[-1]], token=token)  # checkpoints after the stages come later
    top = last.isel(layer=[-1])
    untrained = whole.isel(stage=[0], layer=[-1]).sel(token=token)
    shared: dict[str, Any] = {"seed": settings.seed, "progress": False}
    fit: dict[str, Any] = {"C": a.C, "folds": a.folds, **shared}
    null: dict[str, Any] = {"permutations": a.probe_permutations, **fit}
    pair: dict[str, Any] = {"target": BY, "pairs": [settings.end_stages]}
    plane: dict[str, Any] = {"by": BY, "repeats": a.repeats, **shared}
    findings = Findings()
    results, headline = findings.report, findings.headline
    numbers = count()

    def start_step(description: str) -> None:
        progress.update(description, next(numbers), STEPS)

    start_step("centroids of every stage and layer")
    results["centroids"] = sl.centroids(ds, by=BY, progress=False)
    start_step("projection of the centroids of held-out entities")
    results["projection"] = sl.project(ds, permutations=a.sweep_permutations, bootstrap=a.sweep_permutations, **plane)
    headline["plane"] = sl.project(top, permutations=a.permutations, **plane)
    if ends is None:  # report and summary have one interval and one p of the same number
        results["projection"] = replace_place(results["projection"], headline["plane"])
    start_step("probes of all pairs of stages, at every stage and layer")
    results["probes"] = sl.probe(ds, target=BY, pairs="all", **fit)
    headline["ends"] = sl.probe(top, **pair, **null)
    start_step("cosines between probes, and their scores of all groups")
    results["cosines"] = sl.cosines(results["probes"], over="pair")
    results["generalise"] = sl.generalise(results["probes"], ds)
    start_step("probes of early against late entities, with shuffled labels")
    headline["halves"] = sl.probe(top, **HALVES, **null)
    headline["halves, untrained"] = sl.probe(untrained, **HALVES, **null)
    headline["ends, untrained"] = sl.probe(untrained, **pair, **null)
    headline["plane, untrained"] = sl.project(untrained, permutations=a.permutations, **plane)
    start_step("projection and probes after the final norm")
    if "ln_final" in ds:
        for suffix, data in (("", last), (", untrained", whole.isel(stage=[0]).sel(token=token))):
            norm: dict[str, Any] = {"site": "ln_final"}
            headline["norm plane" + suffix] = sl.project(data, permutations=a.permutations, **norm, **plane)
            headline["norm ends" + suffix] = sl.probe(data, **norm, **pair, **null)
            headline["norm halves" + suffix] = sl.probe(data, **norm, **HALVES, **null)
    start_step("controls: norms, losses and confidence alone, matched, regressed out")
    if settings.record.statistics:
        alone: dict[str, Any] = {**pair, "folds": a.folds, **shared}
        results["statistics_probe"] = sl.statistics_probe(last, **alone)
        headline["statistics_probe, untrained"] = sl.statistics_probe(untrained, **alone)
        results["matched_probe"] = sl.matched_probe(last, bins=a.bins, small="nan", **pair, **shared)
        results["residual_probe"] = sl.residual_probe(last, **pair, **fit)
        controls = sl.controls(last, BY, pairs=pair["pairs"], which=("probe", "normalized", *BASELINES), **fit)
        for name in ("statistics", "matched", "residual"):
            controls[name] = results[f"{name}_probe"]
        results["control_table"] = sl.control_table(controls)
        if a.statistic_sets:
            start_step("controls: what each set of statistics leaves of the effect")
            table = measure_statistic_sets(top, settings)
            place = {"stage": top.stage.values[0], "layer": top.layer.values[0], "token": token[0]}
            findings.rows += statistic_set_rows(table, "", 2 * settings.entities_per_stage, site=SITE, **place)
            findings.sentences.append(describe_statistic_sets(table, "the recorded template"))
            results["statistic_sets"] = findings.tables[SETS_TABLE] = table
    progress.update("analyses", STEPS, STEPS)
    return findings


def probe_halves(ds: xr.Dataset, settings: StudySettings) -> xr.Dataset:
    """Fit the probe of early against late entities, whose score is the recency score."""
    a = settings.analysis
    return sl.probe(ds, C=a.C, folds=a.folds, seed=settings.seed, progress=False, **HALVES)


def select_template(ds: xr.Dataset, template: str) -> xr.Dataset:
    """Select the rows of one prompt template."""
    return ds.isel(entity=np.flatnonzero(ds.template.values == template))
