"""What the study asks of its store.

Probes and projections are made for every stage and layer; the permutation
nulls, the controls and the site after the final norm only for the last stage,
where the claim is. Measuring itself is `stratalens.analyses`' work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import stratalens as sl
from stratalens.analyses.controls.controls import BASELINES
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.findings.headline import Row
from stratalens.plugin.terminal import PhaseProgress

if TYPE_CHECKING:
    import xarray as xr


BY = "trained_stage"


HALVES = "half"


@dataclass
class Findings:
    """Results by name: those of the report, and more for the headline numbers."""

    report: dict[str, Any] = field(default_factory=dict)
    headline: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)  # further rows of summary.json
    sentences: list[str] = field(default_factory=list)


def run_analyses(ds: xr.Dataset, settings: StudySettings, watch: PhaseProgress) -> Findings:
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
        watch.update(what, names.index(name), len(names))

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
    step("final norm", "plane and probes after the final norm")
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
        made = sl.controls(last, BY, pairs=ends, which=("probe", "normalized", *BASELINES), **fit)
        for name in ("statistics", "matched", "residual"):
            made[name] = results[f"{name}_probe"]
        results["control_table"] = sl.control_table(made)
    watch.update("analyses", len(names), len(names))
    return found
