"""Where in the prompt, and in which prompt: the last stage at many tokens and templates (its store is last.zarr)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import stratalens as sl
from stratalens.plugin.study.config.settings import AfterSettings, StudySettings
from stratalens.plugin.study.findings.analyses import BY, Findings
from stratalens.plugin.study.findings.headline import Row, headline_row

if TYPE_CHECKING:
    import xarray as xr


def add_token_results(found: Findings, wide: xr.Dataset, settings: StudySettings) -> None:
    """First against last stage at every token of every template; and on one template from probes of the others.

    The rows are of the last block, as the other headline numbers; the report's map has all layers of one template.
    """
    a = settings.analysis
    ends = (settings.stage_names[0], settings.stage_names[-1])
    fit: dict[str, Any] = {"target": BY, "pairs": [ends], "C": a.C, "folds": a.folds, "seed": settings.seed}
    fit["order"] = list(settings.stage_names)  # the store has one stage only
    block = wide.isel(layer=[-1])
    place = {"stage": ends[1], "layer": block.layer.values[0]}
    n = 2 * settings.entities_per_stage
    templates = list(dict.fromkeys(str(name) for name in wide.template.values))
    best: list[str] = []
    found.report["tokens"] = sl.probe(wide.isel(entity=_rows(wide, templates[0])), progress=False, **fit)
    for template in templates:
        probes = sl.probe(block.isel(entity=_rows(wide, template)), progress=False, **fit)
        values: dict[str, Row] = {}
        for token in wide.token.values:
            row = headline_row(
                f"first v last accuracy, template {template}", probes, "accuracy", n, 0.5, token=token, **place
            )
            found.rows.append(row)
            values[str(token)] = row
        first = next(iter(values.values()))
        top = max(values.values(), key=lambda row: row["value"] or 0.0)
        best.append(
            f"{template!r} {first['value']:z.2f} at {first['token']}, highest {top['value']:z.2f} at {top['token']}"
        )
    words = f"First v last by template and token (last block, {n} entities): {'; '.join(best)}."
    if len(templates) > 1:
        held = templates[-1]
        token = wide.token.values[:1]
        probes = sl.probe(block.sel(token=token), test={"template": held}, progress=False, **fit)
        name = f"first v last accuracy on template {held} from probes of the others"
        row = headline_row(name, probes, "accuracy", n, 0.5, token=token[0], **place)
        found.rows.append(row)
        words += f" Probes of the other templates are right for {row['value']:z.2f} on {held!r}."
        if settings.record.statistics:
            controls = _control_rows(block.sel(token=token), held, settings, fit, n, place)
            found.rows += controls
            known = [row for row in controls if row["value"] is not None]
            told = ", ".join(f"{row['value']:z.2f} {row['name'].rpartition(', ')[2]}" for row in known)
            words += f" The controls there: {told}."
    found.sentences.append(words)


def _control_rows(
    block: xr.Dataset, held: str, settings: StudySettings, fit: Mapping[str, Any], n: int, place: Mapping[str, Any]
) -> list[Row]:
    """The controls as the claim is made: fitted on the other templates, scored on one that they never saw."""
    name = f"first v last accuracy on template {held} from probes of the others"
    here = {**place, "token": block.token.values[0]}
    tested: dict[str, Any] = {**fit, "test": {"template": held}, "progress": False}
    shared = {key: value for key, value in tested.items() if key not in ("C", "folds")}
    alone = sl.statistics_probe(block, **shared, folds=fit["folds"])
    residual = sl.residual_probe(block, **tested)
    matched = sl.matched_probe(block, **shared, C=fit["C"], bins=settings.analysis.bins, small="nan")
    rows = [
        headline_row(f"{name}, from norms, losses and confidence alone", alone, "accuracy", n, 0.5, **here),
        headline_row(f"{name}, with these regressed out", residual, "accuracy", n, 0.5, **here),
    ]
    for sample in matched["sample"].values:
        words = f"{name}, matched on these: {sample}"
        rows.append(headline_row(words, matched, "accuracy", n, 0.5, sample=sample, **here))
    return rows


def _rows(wide: xr.Dataset, template: str) -> npt.NDArray[np.int64]:
    return np.flatnonzero(wide.template.values == template)


def add_after_results(found: Findings, settings: StudySettings) -> None:
    """Rows for every checkpoint of the courses after the stages, beside the last stage's; nothing without such."""
    probes = found.report["probes"]
    first, last = settings.stage_names[0], settings.stage_names[-1]
    recorded = [str(name) for name in probes.stage.values]
    layer, token = probes.layer.values[-1], probes.token.values[0]
    for extra in settings.after:
        stages = [name for name in checkpoint_names(extra) if name in recorded]
        if not stages:
            continue
        values = []
        for stage in (last, *stages):
            place = {"stage": stage, "layer": layer, "token": token, "pair": f"{first} v {last}"}
            name = f"first v last accuracy after {stage}"
            values.append(headline_row(name, probes, "accuracy", 2 * settings.entities_per_stage, 0.5, **place))
        found.rows += values
        told = ", ".join(f"{row['value']:z.2f} after {row['stage']}" for row in values)
        found.sentences.append(f"Training goes on ({describe_course(extra)}): first v last {told}.")
        for group in extra.train_on:
            moved = [_relative_position_row(found, settings, group, stage) for stage in (last, stages[-1])]
            found.rows += moved
            found.sentences.append(
                f"{group}, taught once more, lies at {moved[0]['value']:z.2f} of the way from {first} to {last} before "
                f"and at {moved[1]['value']:z.2f} after (held-out centroids on the axis of each checkpoint)."
            )


def checkpoint_names(extra: AfterSettings) -> list[str]:
    """The stages that a course leaves."""
    return [extra.name] if extra.checkpoints == 1 else [f"{extra.name}-{k}" for k in range(1, extra.checkpoints + 1)]


def describe_course(extra: AfterSettings) -> str:
    """A course in words."""
    what = " and ".join(extra.train_on) + " once more" if extra.train_on else "all stages mixed"
    return f"{extra.name}: {what}" + (f", {extra.epochs:g} epochs" if extra.epochs else "")


def _relative_position_row(found: Findings, settings: StudySettings, group: str, stage: str) -> Row:
    """Where a group's centroid lies between those of the first and the last stage: 0 to 1, or beyond."""
    plane = found.report["projection"]
    here = plane.isel(layer=-1, token=0).sel(stage=stage, component="w1")
    ends = [float(here["coordinate"].sel(group=name)) for name in (settings.stage_names[0], settings.stage_names[-1])]
    low, value, high = (
        (float(here[name].sel(group=group)) - ends[0]) / (ends[1] - ends[0])
        for name in ("coordinate_low", "coordinate", "coordinate_high")
    )
    return {
        "name": f"place of {group} between first and last stage",
        "stage": stage,
        "layer": plane.layer.values[-1].item(),
        "token": str(plane.token.values[0]),
        "value": value,
        "low": low,
        "high": high,
        "null": None,
        "p": None,
        "n": settings.entities_per_stage,
        "site": str(plane.attrs.get("site", "")),
    }
