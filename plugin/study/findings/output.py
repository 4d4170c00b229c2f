"""How the findings are written down: the headline numbers as rows, summary.json and the report."""

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


AFTER_NORM = " after the final norm"


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
                    rows.append(headline_row(name + words + suffix, result, "accuracy", n, 0.5, **place))
            plane = answers.get(prefix + "plane" + suffix)
            if plane is not None:
                rows += [
                    headline_row(name + words + suffix, plane, variable, every, chance, **place)
                    for variable, name, chance in order
                ]
    place = {"stage": final, "layer": block, "token": token}
    for key, name in (
        ("statistics_probe", "first v last accuracy from norms, losses and confidence alone"),
        ("residual_probe", "first v last accuracy with norms, losses and confidence regressed out"),
    ):
        if key in found.report:
            rows.append(headline_row(name, found.report[key], "accuracy", pair, 0.5, **place))
    if "statistics_probe, untrained" in answers:
        name = "first v last accuracy from norms, losses and confidence alone, untrained"
        result = answers["statistics_probe, untrained"]
        rows.append(headline_row(name, result, "accuracy", pair, 0.5, **{**place, "stage": UNTRAINED}))
    if "matched_probe" in found.report:
        for sample in found.report["matched_probe"]["sample"].values:
            name = f"first v last accuracy matched on norms, losses and confidence: {sample}"
            rows.append(
                headline_row(name, found.report["matched_probe"], "accuracy", pair, 0.5, sample=sample, **place)
            )
    return rows


def write_report(
    found: Findings,
    ds: xr.Dataset,
    settings: StudySettings,
    folder: Path,
    curves: Sequence[Mapping[str, Any]],
    described: Mapping[str, Any],
    notes: Sequence[str],
    smoke_test: bool,
    *,
    rows: Sequence[Row],
    highlights: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Write report.html and summary.json; returns both paths.

    Args:
        found: of one seed.
        ds: its store.
        settings: its settings.
        folder: gets both files.
        curves: losses of training.
        described: the model in words, and `store`, the path of the store.
        notes: under the limits.
        smoke_test: say so at the top.
        rows: of summary.json; what they say is a section of the report.
        highlights: of the box at the top; those of the figures otherwise.
    """
    from stratalens.analyses.report.report import report
    from stratalens.analyses.stats.quantiles import statistic_quantiles
    from stratalens.store.state.info import info

    facts = info(str(described["store"]))
    about = {key: value for key, value in described.items() if key != "store"}
    results: dict[str, Any] = {**found.report, "losses": pd.DataFrame(list(curves))}
    if settings.record.statistics:
        results["statistics"] = statistic_quantiles(ds.sel(stage=[settings.stage_names[-1]]), by=BY)
    page = report(
        results,
        folder / "report.html",
        store_info={**facts, **about},
        numbers=[*describe_headline(rows), *found.sentences],
        notes=[note for note in notes if note],
        title="Do a model's activations tell in which order it was trained?",
        quick=smoke_test,
        highlights=highlights,
    )
    summary = write_text_atomic(folder / "summary.json", json.dumps(list(rows), indent=1, allow_nan=False) + "\n")
    return page, summary
