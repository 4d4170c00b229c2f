"""The effect at other places: by token and prompt template at the last stage, and after further training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

import stratalens as sl
from stratalens.plugin.study.config.settings import AfterSettings, StudySettings
from stratalens.plugin.study.findings.analyses import BY, SITE, Findings, select_template
from stratalens.plugin.study.findings.headline import Row, headline_row, make_row
from stratalens.plugin.study.findings.statistic_sets import (
    describe_statistic_sets,
    measure_statistic_sets,
    statistic_set_rows,
)


def add_token_results(findings: Findings, wide: xr.Dataset, settings: StudySettings) -> None:
    """Add results of first against last stage by token, template and across templates.

    The rows are of the last block, as the other headline numbers. The figure of the report has all layers of one
    template.

    Args:
        findings: receives rows, a sentence and a figure.
        wide: the store of the last stage.
        settings: the settings of the study.
    """
    a = settings.analysis
    final = settings.stage_names[-1]
    fit: dict[str, Any] = {"target": BY, "pairs": [settings.end_stages], "C": a.C, "folds": a.folds}
    # The order of the stages: the store has only one of them.
    fit |= {"order": list(settings.stage_names), "seed": settings.seed, "progress": False}
    block = wide.isel(layer=[-1])
    place = {"stage": final, "layer": block.layer.values[0]}
    n = 2 * settings.entities_per_stage
    templates = list(dict.fromkeys(str(name) for name in wide.template.values))
    findings.report["tokens"] = sl.probe(select_template(wide, templates[0]), **fit)
    phrases: list[str] = []
    for template in templates:
        probes = sl.probe(select_template(block, template), **fit)
        name = f"first v last accuracy, template {template}"
        rows = [headline_row(name, probes, "accuracy", n, 0.5, token=token, **place) for token in wide.token.values]
        findings.rows += rows
        first, best = rows[0], max(rows, key=lambda row: row["value"] or 0.0)
        phrases.append(
            f"{template!r} {first['value']:z.2f} at {first['token']}, highest {best['value']:z.2f} at {best['token']}"
        )
    sentence = f"First v last accuracy by template and token (last block, {n} entities): {'; '.join(phrases)}."
    if len(templates) > 1:
        test = templates[-1]
        token = wide.token.values[:1]
        probes = sl.probe(block.sel(token=token), test={"template": test}, **fit)
        name = f"first v last accuracy on template {test} from probes of the others"
        row = headline_row(name, probes, "accuracy", n, 0.5, token=token[0], **place)
        findings.rows.append(row)
        sentence += f" Probes fitted on the other templates: {row['value']:z.2f} on {test!r}."
        if settings.record.statistics:
            controls = _control_rows(block.sel(token=token), name, test, settings, fit, n, place)
            findings.rows += controls
            listed = ", ".join(
                f"{row['value']:z.2f} {row['name'].removeprefix(name + ', ')}"
                for row in controls
                if row["value"] is not None
            )
            sentence += f" Controls on {test!r}: {listed}."
            if a.statistic_sets:
                table = measure_statistic_sets(block.sel(token=token), settings, test={"template": test})
                findings.rows += statistic_set_rows(table, f", template {test}", n, site=SITE, token=token[0], **place)
                findings.sentences.append(
                    describe_statistic_sets(table, f"template {test!r}, on which nothing was fitted")
                )
                findings.tables[f"controls-{test}.csv"] = table
    findings.sentences.append(sentence)


def _control_rows(
    block: xr.Dataset,
    name: str,
    test: str,
    settings: StudySettings,
    fit: Mapping[str, Any],
    n: int,
    place: Mapping[str, Any],
) -> list[Row]:
    """Make rows of the controls, fitted on the other templates and scored on one.

    Args:
        block: the last block of the store of the last stage, at one token.
        name: name of the row without a control.
        test: the template to score on.
        settings: the settings of the study.
        fit: keywords of `stratalens.probe`.
        n: number of entities.
        place: stage and layer of the rows.
    """
    here = {**place, "token": block.token.values[0]}
    keywords: dict[str, Any] = {**fit, "test": {"template": test}}
    shared = {key: value for key, value in keywords.items() if key not in ("C", "folds")}
    alone = sl.statistics_probe(block, **shared, folds=fit["folds"])
    residual = sl.residual_probe(block, **keywords)
    matched = sl.matched_probe(block, **shared, C=fit["C"], bins=settings.analysis.bins, small="nan")
    return [
        headline_row(f"{name}, from norms, losses and confidence alone", alone, "accuracy", n, 0.5, **here),
        headline_row(f"{name}, with these regressed out", residual, "accuracy", n, 0.5, **here),
        *(
            headline_row(
                f"{name}, matched on these: {sample}",
                matched,
                "accuracy",
                n,
                0.5,
                sample=sample,
                scored="matched",
                **here,
            )
            for sample in matched["sample"].values
        ),
    ]


def add_after_results(findings: Findings, settings: StudySettings) -> None:
    """Add results for every checkpoint of the courses after the stages.

    Args:
        findings: holds the results of all stages; receives rows and sentences.
        settings: the settings of the study.
    """
    probes = findings.report["probes"]
    first, last = settings.end_stages
    recorded = [str(name) for name in probes.stage.values]
    place = {"layer": probes.layer.values[-1], "token": probes.token.values[0], "pair": f"{first} v {last}"}
    n = 2 * settings.entities_per_stage
    for extra in settings.after:
        stages = [name for name in extra.checkpoint_names if name in recorded]
        if not stages:
            continue
        rows = [
            headline_row(f"first v last accuracy after {stage}", probes, "accuracy", n, 0.5, stage=stage, **place)
            for stage in (last, *stages)
        ]
        findings.rows += rows
        listed = ", ".join(f"{row['value']:z.2f} after {row['stage']}" for row in rows)
        findings.sentences.append(f"Further training ({describe_course(extra)}): first v last accuracy {listed}.")
        for group in extra.train_on:
            before, after = (_relative_position_row(findings, settings, group, stage) for stage in (last, stages[-1]))
            findings.rows += [before, after]
            findings.sentences.append(
                f"The centroid of {group}, which is taught again, is at {before['value']:z.2f} of the way from {first} "
                f"to {last} before and at {after['value']:z.2f} after (held-out centroids on the axis of each "
                "checkpoint)."
            )


def describe_course(extra: AfterSettings) -> str:
    """Describe a course after the stages.

    >>> describe_course(AfterSettings(name="again", train_on=("s1",), epochs=2))
    'again: s1 again, 2 epochs'
    """
    texts = " and ".join(extra.train_on) + " again" if extra.train_on else "all stages mixed"
    return f"{extra.name}: {texts}" + (f", {extra.epochs:g} epochs" if extra.epochs else "")


def _relative_position_row(findings: Findings, settings: StudySettings, group: str, stage: str) -> Row:
    """Make the row of a centroid's position between first (0) and last stage (1)."""
    projection = findings.report["projection"]
    here = projection.isel(layer=-1, token=0).sel(stage=stage, component="w1")
    first, last = (float(here["coordinate"].sel(group=name)) for name in settings.end_stages)
    low, value, high = (
        (float(here[name].sel(group=group)) - first) / (last - first)
        for name in ("coordinate_low", "coordinate", "coordinate_high")
    )
    return make_row(
        f"place of {group} between first and last stage",
        stage=stage,
        layer=projection.layer.values[-1],
        token=projection.token.values[0],
        value=value,
        low=low,
        high=high,
        n=settings.entities_per_stage,
        site=str(projection.attrs.get("site", "")),
    )
