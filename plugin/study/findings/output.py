"""The files of the findings: summary.json with the headline numbers as rows, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from stratalens.analyses.report.report import report
from stratalens.analyses.stats.quantiles import statistic_quantiles
from stratalens.plugin.progress import PhaseProgress, format_duration
from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings
from stratalens.plugin.study.findings.analyses import BY, Findings
from stratalens.plugin.study.findings.headline import (
    INNER_ORDER,
    ORDER,
    STEP_COSINE,
    Row,
    describe_headline,
    describe_steps,
    headline_row,
)
from stratalens.plugin.study.recording.stores import STORE
from stratalens.store.files import write_text_atomic
from stratalens.store.state.info import info

PROJECTION_ROWS = (  # variable, name and chance level
    ("inner_rank_correlation", INNER_ORDER, 0.0),
    ("rank_correlation", ORDER, 0.0),
    ("exact_order", "share of splits in exact training order", None),
    ("r2", "straightness (r2) of held-out centroids", None),
    ("r2_corrected", "straightness (r2) of centroids without noise", None),
    ("step_cosine_mean", STEP_COSINE, None),
)


def headline_rows(findings: Findings, ds: xr.Dataset, settings: StudySettings) -> list[Row]:
    """Make the headline numbers as rows of summary.json.

    Args:
        findings: the results.
        ds: the store of all stages.
        settings: the settings of the study.
    """
    results = findings.headline
    final = settings.stage_names[-1]
    block, token = ds.layer.values[-1], ds.token.values[0]
    everyone = settings.entities_per_stage * settings.stages
    pair = 2 * settings.entities_per_stage
    accuracies = (("halves", "early v late accuracy", everyone), ("ends", "first v last accuracy", pair))
    rows = []
    for prefix, norm, layer in (("", "", block), ("norm ", " after the final norm", None)):
        for suffix, stage in (("", final), (", untrained", UNTRAINED)):
            place = {"stage": stage, "layer": layer, "token": token}
            for key, name, n in accuracies:
                result = results.get(prefix + key + suffix)
                if result is not None:
                    rows.append(headline_row(name + norm + suffix, result, "accuracy", n, 0.5, **place))
            plane = results.get(prefix + "plane" + suffix)
            if plane is not None:
                for variable, name, chance in PROJECTION_ROWS:
                    rows.append(headline_row(name + norm + suffix, plane, variable, everyone, chance, **place))
                    if f"{variable}_null" not in plane and chance is None:
                        rows[-1]["null"] = None  # permuted labels leave no distances to measure
    place = {"stage": final, "layer": block, "token": token}
    alone = "first v last accuracy from norms, losses and confidence alone"
    regressed_out = "first v last accuracy with norms, losses and confidence regressed out"
    for key, name in (("statistics_probe", alone), ("residual_probe", regressed_out)):
        if key in findings.report:
            rows.append(headline_row(name, findings.report[key], "accuracy", pair, 0.5, **place))
    if "statistics_probe, untrained" in results:
        result = results["statistics_probe, untrained"]
        here = {**place, "stage": UNTRAINED}
        rows.append(headline_row(f"{alone}, untrained", result, "accuracy", pair, 0.5, **here))
    matched = findings.report.get("matched_probe")
    if matched is not None:
        for sample in matched["sample"].values:
            name = f"first v last accuracy matched on norms, losses and confidence: {sample}"
            rows.append(headline_row(name, matched, "accuracy", pair, 0.5, sample=sample, scored="matched", **place))
    return rows


@dataclass(frozen=True)
class Outcome:
    """Paths of the output of a finished run."""

    folder: Path
    store: Path
    report: Path
    summary: Path


@dataclass(frozen=True)
class FinishedSeed:
    """The results of one seed, before the report.

    Attributes:
        settings: the settings of the seed.
        folder: the folder of the seed.
        ds: the store of all stages.
        findings: the results of the analyses.
        losses: loss curves of training.
        model: the description of the model.
        limits: caveats of the settings.
        progress: the progress of the run.
    """

    settings: StudySettings
    folder: Path
    ds: xr.Dataset
    findings: Findings
    losses: Sequence[Mapping[str, Any]]
    model: Mapping[str, Any]
    limits: Sequence[str]
    progress: PhaseProgress

    def rows(self) -> list[Row]:
        """Make all rows of summary.json."""
        return [*headline_rows(self.findings, self.ds, self.settings), *self.findings.rows]

    def write(
        self,
        folder: Path,
        notes: Sequence[str],
        smoke_test: bool,
        rows: list[Row] | None = None,
        highlights: Sequence[str] = (),
    ) -> Outcome:
        """Write report.html and summary.json.

        Args:
            folder: receives both files.
            notes: remarks that the report shows with its caveats.
            smoke_test: put a banner at the top that the results are not meaningful.
            rows: rows over several seeds; None takes those of this seed.
            highlights: sentences of the box at the top; empty for those of the figures.
        """
        own = rows is None
        rows = self.rows() if rows is None else rows
        store = self.folder / STORE
        with self.progress.phase("report", f"writing {folder / 'report.html'} and summary.json"):
            results: dict[str, Any] = {**self.findings.report, "losses": pd.DataFrame(list(self.losses))}
            if self.settings.record.statistics:
                results["statistics"] = statistic_quantiles(self.ds.sel(stage=[self.settings.stage_names[-1]]), by=BY)
            page = report(
                results,
                folder / "report.html",
                store_info={**info(str(store)), **self.model},
                numbers=[
                    *describe_headline(rows, self.settings.stages),
                    *describe_steps(self.findings.headline),
                    *self.findings.sentences,
                ],
                notes=(*self.limits, *notes),
                title="Do the activations of a model encode its training order?",
                quick=smoke_test,
                highlights=highlights,
            )
            for name, table in self.findings.tables.items():
                write_text_atomic(self.folder / name, table.to_csv(index=False))
            summary = write_text_atomic(folder / "summary.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
        seconds = {name: round(value, 1) for name, value in self.progress.seconds.items()}
        (self.folder / "seconds.json").write_text(json.dumps(seconds) + "\n", encoding="utf-8")
        if own:
            total = format_duration(sum(self.progress.seconds.values()))
            self.progress.say(f"All done in {total}. Open {page} in a browser; numbers: {summary}")
        return Outcome(folder, store, page, summary)
