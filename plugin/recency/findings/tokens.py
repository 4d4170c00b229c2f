"""Where in the prompt, and in which prompt: the last stage at many tokens and templates (its store is last.zarr)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import stratalens as sl
from stratalens.recency.findings.asking import BY, Findings
from stratalens.recency.findings.headline import Row, rows_of
from stratalens.recency.settings import StudySettings

if TYPE_CHECKING:
    import xarray as xr


def add_tokens(found: Findings, wide: xr.Dataset, settings: StudySettings) -> None:
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
            row = rows_of(
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
        row = rows_of(name, probes, "accuracy", n, 0.5, token=token[0], **place)
        found.rows.append(row)
        words += f" Probes of the other templates are right for {row['value']:z.2f} on {held!r}."
        if settings.record.statistics:
            controls = _controls(block.sel(token=token), held, settings, fit, n, place)
            found.rows += controls
            known = [row for row in controls if row["value"] is not None]
            told = ", ".join(f"{row['value']:z.2f} {row['name'].rpartition(', ')[2]}" for row in known)
            words += f" The controls there: {told}."
    found.sentences.append(words)


def _controls(
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
        rows_of(f"{name}, from norms, losses and confidence alone", alone, "accuracy", n, 0.5, **here),
        rows_of(f"{name}, with these regressed out", residual, "accuracy", n, 0.5, **here),
    ]
    for sample in matched["sample"].values:
        words = f"{name}, matched on these: {sample}"
        rows.append(rows_of(words, matched, "accuracy", n, 0.5, sample=sample, **here))
    return rows


def _rows(wide: xr.Dataset, template: str) -> npt.NDArray[np.int64]:
    return np.flatnonzero(wide.template.values == template)
