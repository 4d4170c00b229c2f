"""Contradicted entities: which answer the model gives at every checkpoint, and whether recent ones keep the later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import stratalens as sl
from stratalens.analyses.stats.bootstrap import cluster_bootstrap
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.findings.analyses import HALVES, Findings
from stratalens.plugin.study.findings.correlation import correlate_within_strata
from stratalens.plugin.study.findings.headline import Row
from stratalens.store.files import write_text_atomic

if TYPE_CHECKING:
    import xarray as xr


CONFLICT_TABLE = "conflict.csv"


def add_conflict_results(
    found: Findings, ds: xr.Dataset, conflict: xr.Dataset, settings: StudySettings, table: Path
) -> None:
    """Rows for every checkpoint (share giving the later answer) and for the last one (does recency predict it)."""
    a = settings.analysis
    place = {"layer": [ds.layer.values[-1]], "token": ds.token.values[:1]}
    probes = sl.probe(
        ds.sel(**place),
        target=HALVES,
        order=["early", "late"],
        C=a.C,
        folds=a.folds,
        seed=settings.seed,
        progress=False,
    )
    rows = {which: np.flatnonzero(conflict.which.values == which) for which in ("first", "second", "unseen")}
    frames, shares = [], []
    for stage in (str(name) for name in conflict.stage.values if name in ds.stage.values):
        at = conflict.sel({"stage": stage, **place}).isel(layer=0, token=0)
        loss = {which: at.answer_loss.values[rows[which]].astype(float) for which in ("first", "second")}
        fitted = probes.sel(stage=stage).isel(layer=0, token=0, pair=0)
        coef, activations = np.asarray(fitted.coef.values), at.resid_post.values[rows["unseen"]]
        score = activations @ coef.reshape(-1) + float(fitted.intercept)
        prefers = loss["first"] - loss["second"]
        right = (prefers > 0).astype(float)
        low, high = cluster_bootstrap(right, np.arange(len(right)), seed=settings.seed, bounds=(0, 1))
        shares.append(_row("share of contradicted entities with the later answer", stage, place, right.mean(), probes))
        shares[-1] |= {"low": float(low), "high": float(high), "null": 0.5, "n": len(right)}
        identifiers = at.entity_id.values[rows["first"]].astype(str)
        frames.append(
            pd.DataFrame({"stage": stage, "entity_id": identifiers, "later_answer": prefers, "recency_score": score})
        )
    frame = pd.concat(frames, ignore_index=True)
    write_text_atomic(table, frame.to_csv(index=False))
    final = settings.stage_names[-1]
    last = frame[frame["stage"] == final]
    numbers = correlate_within_strata(
        last["recency_score"].to_numpy(float),
        last["later_answer"].to_numpy(float),
        np.zeros(len(last), dtype=np.int64),
        seed=settings.seed,
    )
    name = "rank correlation of recency score and preference for the later answer"
    relation = _row(name, final, place, numbers["value"], probes) | numbers | {"n": len(last)}
    found.rows += [*shares, relation]
    told = ", ".join(f"{row['value']:z.2f} after {row['stage']}" for row in shares)
    words = f"Contradictions: of {len(last)} entities taught two answers, the later one is preferred by {told}."
    if relation["value"] is not None:
        words += (
            f" After {final} the recency score goes with the preference at rank correlation {relation['value']:z.2f} "
            f"(95 % interval {relation['low']:z.2f} to {relation['high']:z.2f}, p = {relation['p']:z.3f})."
        )
    found.sentences.append(words)


def _row(name: str, stage: str, place: Mapping[str, Any], value: Any, probes: xr.Dataset) -> Row:
    number = None if value is None else float(value)
    where = {"stage": stage, "layer": place["layer"][0].item(), "token": str(place["token"][0])}
    rest = {"low": None, "high": None, "null": None, "p": None, "n": None}
    return {"name": name, **where, "value": number, **rest, "site": str(probes.attrs.get("site", ""))}
