"""What the study asks of its store, and how the answers are written down.

Probes and projections are made for every stage and layer; the permutation
nulls, the controls and the site after the final norm only for the last stage,
where the claim is. Measuring itself is `stratalens.analyses`' work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import stratalens as sl
from stratalens.recency.headline import Row, in_words, rows_of
from stratalens.recency.parts import UNTRAINED
from stratalens.recency.settings import StudySettings
from stratalens.recency.watch import Watch
from stratalens.store.atomic import write_text

if TYPE_CHECKING:
    import xarray as xr

BY = "trained_stage"
HALVES = "half"


AFTER_NORM = " after the final norm"


@dataclass
class Findings:
    """Results by name: those of the report, and more for the headline numbers."""

    report: dict[str, Any] = field(default_factory=dict)
    headline: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)  # further rows of summary.json
    sentences: list[str] = field(default_factory=list)


def analyse(ds: xr.Dataset, settings: StudySettings, watch: Watch) -> Findings:
    """All analyses of a run; each says what it is about to do.

    The place of the headline numbers is fixed beforehand: the last stage, the
    last block and the first recorded position (the last token of the prompt).
    """
    a = settings.analysis
    token = ds.token.values[:1]
    last = ds.sel(stage=[settings.stage_names[-1]], token=token)  # what is trained after the stages comes later
    ends = [(settings.stage_names[0], settings.stage_names[-1])]
    top = last.isel(layer=[-1])
    seeded: dict[str, Any] = {"seed": settings.seed, "progress": False}
    fit: dict[str, Any] = {"C": a.C, "folds": a.folds, **seeded}
    null: dict[str, Any] = {"permutations": a.probe_permutations, **fit}
    early_late: dict[str, Any] = {"target": HALVES, "order": ["early", "late"]}
    plane: dict[str, Any] = {"by": BY, "repeats": a.repeats, **seeded}
    found = Findings()
    answers = found.headline
    results = found.report
    names = ("centroids", "plane", "pairs", "directions", "early v late", "final norm", "controls")

    def step(name: str, what: str) -> None:
        watch.tell(what, names.index(name), len(names))

    step("centroids", "centroids of every stage and layer")
    results["centroids"] = sl.centroids(ds, by=BY, progress=False)
    step("plane", "their plane, on entities held out from it")
    results["projection"] = sl.project(ds, permutations=a.sweep_permutations, bootstrap=a.sweep_permutations, **plane)
    answers["plane"] = sl.project(top, permutations=a.permutations, **plane)
    step("pairs", "probes of all pairs of stages, at every stage and layer")
    results["probes"] = sl.probe(ds, target=BY, pairs="all", **fit)
    answers["ends"] = sl.probe(top, target=BY, pairs=ends, **null)
    step("directions", "how the probes' directions relate")
    results["cosines"] = sl.cosines(results["probes"], over="pair")
    results["generalise"] = sl.generalise(results["probes"], ds)
    step("early v late", "early against late entities, with shuffled labels")
    answers["halves"] = sl.probe(top, **early_late, **null)
    start = ds.isel(stage=[0], layer=[-1]).sel(token=token)
    answers["halves, untrained"] = sl.probe(start, **early_late, **null)
    answers["ends, untrained"] = sl.probe(start, target=BY, pairs=ends, **null)
    answers["plane, untrained"] = sl.project(start, permutations=a.permutations, **plane)
    step("final norm", "the same after the final norm")
    if "ln_final" in ds:
        for stage, data in (("", last), (", untrained", ds.isel(stage=[0]).sel(token=token))):
            answers["norm plane" + stage] = sl.project(data, site="ln_final", permutations=a.permutations, **plane)
            answers["norm ends" + stage] = sl.probe(data, target=BY, site="ln_final", pairs=ends, **null)
            answers["norm halves" + stage] = sl.probe(data, site="ln_final", **early_late, **null)
    step("controls", "controls: norms, losses and confidence alone, matched, regressed out")
    if settings.record.statistics:
        alone: dict[str, Any] = {"target": BY, "pairs": ends, "folds": a.folds, **seeded}
        results["statistics_probe"] = sl.statistics_probe(last, **alone)
        answers["statistics_probe, untrained"] = sl.statistics_probe(start, **alone)
        results["matched_probe"] = sl.matched_probe(last, target=BY, pairs=ends, bins=a.bins, small="nan", **seeded)
        results["residual_probe"] = sl.residual_probe(last, target=BY, pairs=ends, **fit)
    watch.tell("analyses", len(names), len(names))
    return found


def headline_rows(found: Findings, ds: xr.Dataset, settings: StudySettings) -> list[Row]:
    """The headline numbers as rows of summary.json."""
    answers = found.headline
    final = settings.stage_names[-1]
    block, token = ds.layer.values[-1], ds.token.values[0]
    every = settings.entities_per_stage * settings.stages
    pair = 2 * settings.entities_per_stage
    accuracy = (("halves", "early v late accuracy", every), ("ends", "first v last accuracy", pair))
    order = (
        ("rank_correlation", "rank correlation of held-out centroids", 0.0),
        ("inner_rank_correlation", "rank correlation of held-out centroids without the ends of the axis", 0.0),
        ("exact_order", "share of splits in exact training order", None),
        ("r2", "straightness (r2) of held-out centroids", None),
    )
    rows = []
    for prefix, words, layer in (("", "", block), ("norm ", AFTER_NORM, None)):
        for suffix, stage in (("", final), (", untrained", UNTRAINED)):
            place = {"stage": stage, "layer": layer, "token": token}
            for key, name, n in accuracy:
                result = answers.get(prefix + key + suffix)
                if result is not None:
                    rows.append(rows_of(name + words + suffix, result, "accuracy", n, 0.5, **place))
            plane = answers.get(prefix + "plane" + suffix)
            if plane is not None:
                rows += [
                    rows_of(name + words + suffix, plane, variable, every, chance, **place)
                    for variable, name, chance in order
                ]
    place = {"stage": final, "layer": block, "token": token}
    for key, name in (
        ("statistics_probe", "first v last accuracy from norms, losses and confidence alone"),
        ("residual_probe", "first v last accuracy with norms, losses and confidence regressed out"),
    ):
        if key in found.report:
            rows.append(rows_of(name, found.report[key], "accuracy", pair, 0.5, **place))
    if "statistics_probe, untrained" in answers:
        name = "first v last accuracy from norms, losses and confidence alone, untrained"
        result = answers["statistics_probe, untrained"]
        rows.append(rows_of(name, result, "accuracy", pair, 0.5, **{**place, "stage": UNTRAINED}))
    if "matched_probe" in found.report:
        for sample in found.report["matched_probe"]["sample"].values:
            name = f"first v last accuracy matched on norms, losses and confidence: {sample}"
            rows.append(rows_of(name, found.report["matched_probe"], "accuracy", pair, 0.5, sample=sample, **place))
    return rows


def write_report(
    found: Findings,
    ds: xr.Dataset,
    settings: StudySettings,
    folder: Path,
    curves: Sequence[Mapping[str, Any]],
    described: Mapping[str, Any],
    notes: Sequence[str],
    proves_nothing: bool,
) -> tuple[Path, Path]:
    """Write report.html and summary.json; returns both paths."""
    from stratalens.analyses.plots.distributions import statistic_quantiles
    from stratalens.analyses.report import report
    from stratalens.store.info import info

    store = folder / "run.zarr"
    results: dict[str, Any] = {**found.report, "losses": pd.DataFrame(list(curves))}
    if settings.record.statistics:
        results["statistics"] = statistic_quantiles(ds.sel(stage=[settings.stage_names[-1]]), by=BY)
    rows = [*headline_rows(found, ds, settings), *found.rows]
    words = [*in_words(rows), *found.sentences, *(note for note in notes if note)]
    page = report(
        results,
        folder / "report.html",
        store_info={**info(str(store)), **described},
        notes=words,
        title="Do a model's activations tell in which order it was trained?",
        quick=proves_nothing,
    )
    summary = write_text(folder / "summary.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
    return page, summary
