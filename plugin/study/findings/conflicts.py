"""Contradicted entities: the preferred answer at every checkpoint, and its relation to the recency score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.findings.analyses import Findings, probe_halves
from stratalens.plugin.study.findings.correlation import correlate_within_strata
from stratalens.plugin.study.findings.headline import format_estimate, format_p, make_row, share_row
from stratalens.store.files import write_text_atomic

CONFLICT_TABLE = "conflict.csv"


def add_conflict_results(
    findings: Findings, ds: xr.Dataset, conflict: xr.Dataset, settings: StudySettings, table: Path
) -> None:
    """Add rows and a sentence about contradicted entities, and write a table of them.

    The rows are the share of entities with the later answer at every checkpoint, and the rank correlation of this
    preference with the recency score at the last stage.

    Args:
        findings: receives the rows and the sentence.
        ds: the store of all stages.
        conflict: the store of contradicted entities.
        settings: the settings of the study.
        table: the csv file, with one row for every checkpoint and entity.
    """
    place = {"layer": ds.layer.values[-1:], "token": ds.token.values[:1]}
    probes = probe_halves(ds.sel(**place), settings)
    where: dict[str, Any] = {name: values[0] for name, values in place.items()}
    where["site"] = str(probes.attrs.get("site", ""))
    rows = {which: np.flatnonzero(conflict.which.values == which) for which in ("first", "second", "unseen")}
    frames, shares = [], []
    for stage in (str(name) for name in conflict.stage.values if name in ds.stage.values):
        at = conflict.sel({"stage": stage, **place}).isel(layer=0, token=0)
        loss = {which: at.answer_loss.values[rows[which]].astype(float) for which in ("first", "second")}
        probe = probes.sel(stage=stage).isel(layer=0, token=0, pair=0)
        activations = at.resid_post.values[rows["unseen"]]
        score = activations @ np.asarray(probe.coef.values).reshape(-1) + float(probe.intercept)
        preference = loss["first"] - loss["second"]  # positive: the later answer is the likelier one
        later = (preference > 0).astype(float)
        name = "share of contradicted entities with the later answer"
        shares.append(share_row(name, later, 0.5, seed=settings.seed, stage=stage, **where))
        identifiers = at.entity_id.values[rows["first"]].astype(str)
        columns = {"stage": stage, "entity_id": identifiers, "later_answer": preference, "recency_score": score}
        frames.append(pd.DataFrame(columns))
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
    relation = make_row(name, stage=final, **where, **numbers, n=len(last))
    findings.rows += [*shares, relation]
    listed = ", ".join(f"{row['value']:z.2f} after {row['stage']}" for row in shares)
    sentence = (
        f"Contradictions: the model prefers the later answer for these shares of {len(last)} entities that were taught "
        f"two answers: {listed}."
    )
    if relation["value"] is not None:
        sentence += (
            f" After {final} the rank correlation of the recency score and this preference is "
            f"{format_estimate(relation)}, {format_p(relation)}."
        )
    findings.sentences.append(sentence)
