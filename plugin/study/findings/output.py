"""The files of the findings: summary.json with the headline numbers as rows, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings
from stratalens.plugin.study.findings.analyses import BY, Findings
from stratalens.plugin.study.findings.headline import Row, describe_headline, headline_row
from stratalens.store.files import write_text_atomic

if TYPE_CHECKING:
    import xarray as xr


PROJECTION_ROWS = (  # variable, name and chance level
    ("rank_correlation", "rank correlation of held-out centroids", 0.0),
    ("inner_rank_correlation", "rank correlation of held-out centroids without the ends of the axis", 0.0),
    ("exact_order", "share of splits in exact training order", None),
    ("r2", "straightness (r2) of held-out centroids", None),
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
                rows += [
                    headline_row(name + norm + suffix, plane, variable, everyone, chance, **place)
                    for variable, name, chance in PROJECTION_ROWS
                ]
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


def write_report(
    findings: Findings,
    ds: xr.Dataset,
    settings: StudySettings,
    folder: Path,
    *,
    rows: Sequence[Row],
    losses: Sequence[Mapping[str, Any]],
    store: Path,
    model: Mapping[str, Any],
    notes: Sequence[str] = (),
    highlights: Sequence[str] = (),
    smoke_test: bool = False,
) -> tuple[Path, Path]:
    """Write report.html and summary.json.

    Args:
        findings: the results of one seed.
        ds: its store of all stages.
        settings: its settings.
        folder: receives both files.
        rows: rows of summary.json; the report describes them in sentences.
        losses: loss curves of training.
        store: path of the store.
        model: the description of the model.
        notes: remarks below the caveats.
        highlights: sentences of the box at the top; empty for those of the figures.
        smoke_test: put a banner at the top that the results are not meaningful.

    Returns:
        Paths of the report and of the summary.
    """
    from stratalens.analyses.report.report import report
    from stratalens.analyses.stats.quantiles import statistic_quantiles
    from stratalens.store.state.info import info

    results: dict[str, Any] = {**findings.report, "losses": pd.DataFrame(list(losses))}
    if settings.record.statistics:
        results["statistics"] = statistic_quantiles(ds.sel(stage=[settings.stage_names[-1]]), by=BY)
    page = report(
        results,
        folder / "report.html",
        store_info={**info(str(store)), **model},
        numbers=[*describe_headline(rows), *findings.sentences],
        notes=notes,
        title="Do the activations of a model encode its training order?",
        quick=smoke_test,
        highlights=highlights,
    )
    summary = write_text_atomic(folder / "summary.json", json.dumps(list(rows), indent=1, allow_nan=False) + "\n")
    return page, summary
