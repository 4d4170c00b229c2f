"""Forgetting and recency: is an entity that looks recent also one whose answer is still known?

Known is what the entity was taught: whether the likeliest of all answers is the
true one, and how likely that is (`recording.answers`). Related to it is the
recency score (out of fold, of the probe of early against late) by rank
correlation over entities: over all stages, where time alone makes one; within
stages, where it cannot; and there partialled for the loss over the prompt, as
an alias that is remembered is read with less surprise. Kinds of question are
always kept apart, as some are easier than others.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import stratalens as sl
from stratalens.analyses.plots.stages import forgetting_table
from stratalens.analyses.stats.bootstrap import cluster_bootstrap, p_value
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.findings.analyses import BY, HALVES, Findings
from stratalens.plugin.study.findings.correlation import correlate_within_strata
from stratalens.plugin.study.findings.headline import Row
from stratalens.store.files import write_text_atomic

if TYPE_CHECKING:
    import xarray as xr


ACCURACY, LOSS = "answer accuracy", "answer loss"


def add_forgetting_results(
    found: Findings, ds: xr.Dataset, answers: pd.DataFrame, settings: StudySettings, table: Path
) -> None:
    """Rows, sentences and figures, and a csv of every entity at every checkpoint.

    The csv has stage, entity_id, trained_stage, exposure, recency_score, prompt_loss (mean loss over the prompt),
    recorded_answer_loss (of the answer behind the recorded prompt, a question never seen in training), and, of the
    questions that the entity was taught and asked again, kinds, answer_accuracy (share answered rightly) and
    answer_loss (mean of minus the log probability of the true answer), so that other questions can be asked of it.

    Args:
        found: gets them.
        ds: the store of all stages, with statistics.
        answers: what was answered at every checkpoint; may be empty.
        settings: of the study.
        table: the csv.
    """
    frame, probes = _make_entity_table(ds, answers, settings)
    write_text_atomic(table, frame.to_csv(index=False))
    final = settings.stage_names[-1]
    last = frame[frame["stage"] == final]
    place = {"layer": probes.layer.values[0].item(), "token": str(probes.token.values[0])}
    if len(answers):
        _add_accuracy_results(found, answers[answers["trained"].astype(bool)], settings)
        found.report["forgetting"] = _make_forgetting_curves(ds, frame)
    told = []
    outcomes = {ACCURACY: "answer_accuracy", LOSS: "answer_loss"} if len(answers) else {LOSS: "recorded_answer_loss"}
    for outcome, column in outcomes.items():
        rows = _correlation_rows(last, outcome, column, settings)
        for row in rows:
            row |= {"stage": final, **place, "n": len(last), "site": str(probes.attrs.get("site", ""))}
        found.rows += rows
        told += [_sentence(outcome, rows)] if all(row["value"] is not None for row in rows) else []
    found.sentences += told


def _make_entity_table(
    ds: xr.Dataset, answers: pd.DataFrame, settings: StudySettings
) -> tuple[pd.DataFrame, xr.Dataset]:
    """One row for every checkpoint and entity, and the probes that the scores are of."""
    a = settings.analysis
    here = _one_template(ds).isel(layer=[-1]).sel(token=ds.token.values[:1])
    probes = sl.probe(
        here, target=HALVES, order=["early", "late"], C=a.C, folds=a.folds, seed=settings.seed, progress=False
    )
    frames = []
    for stage in ds.stage.values:
        at = here.sel(stage=stage).isel(token=0)
        columns = {
            "stage": str(stage),
            "entity_id": at.entity_id.values.astype(str),
            BY: at[BY].values.astype(str),
            "exposure": at.exposure.values,
            "recency_score": probes.score.sel(stage=stage).isel(layer=0, token=0, pair=0).values,
            "prompt_loss": at.running_loss.values,
            "recorded_answer_loss": at.answer_loss.values,
        }
        frames.append(pd.DataFrame(columns))
    frame = pd.concat(frames, ignore_index=True)
    if not len(answers):
        return frame, probes
    taught = answers[answers["trained"].astype(bool)].astype({"right": float})
    each = taught.groupby(["stage", "entity_id"], sort=False)
    known = each.agg(kinds=("kind", ",".join), answer_accuracy=("right", "mean"), answer_loss=("answer_loss", "mean"))
    return frame.merge(known.reset_index(), on=["stage", "entity_id"], how="left", validate="one_to_one"), probes


def _one_template(ds: xr.Dataset) -> xr.Dataset:
    return ds.isel(entity=np.flatnonzero(ds.template.values == str(ds.template.values[0])))


def _correlation_rows(last: pd.DataFrame, outcome: str, column: str, settings: StudySettings) -> list[Row]:
    """Over all stages, within them, and within them partialled for the prompt's loss."""
    kinds = last["kinds"] if "kinds" in last else pd.Series("", index=last.index)
    apart, within = (pd.factorize(labels)[0].astype(np.int64) for labels in (kinds, last[BY] + "/" + kinds))
    score, known, prompt = (last[name].to_numpy(float) for name in ("recency_score", column, "prompt_loss"))
    name = f"rank correlation of recency score and {outcome}"
    related = partial(correlate_within_strata, seed=settings.seed, draws=max(1, settings.analysis.permutations))
    return [
        {"name": name, **related(score, known, apart)},
        {"name": f"{name} within stages", **related(score, known, within)},
        {
            "name": f"{name} within stages, prompt loss partialled out",
            **related(score, known, within, prompt),
        },
    ]


def _add_accuracy_results(found: Findings, taught: pd.DataFrame, settings: StudySettings) -> None:
    """How many answers are known: of all that was taught so far at every checkpoint, of each stage at the last one."""
    order = {name: number for number, name in enumerate(taught["stage"].unique())}
    rows = []
    for stage, mine in taught.groupby("stage", sort=False):
        so_far = mine[mine[BY].map(order).fillna(len(order)) <= order[stage]]
        name = ACCURACY if len(so_far) else f"{ACCURACY} before any training"
        rows.append(_accuracy_row(name, str(stage), so_far if len(so_far) else mine, settings))
    final = settings.stage_names[-1]
    at_end = taught[taught["stage"] == final]
    groups = [
        _accuracy_row(f"{ACCURACY}, entities of {name}", final, at_end[at_end[BY] == name], settings)
        for name in settings.stage_names
    ]
    found.rows += [*rows, *groups]
    told = ", ".join(f"{row['value']:z.2f} of {name}" for row, name in zip(groups, settings.stage_names, strict=True))
    nulls = [row["null"] for row in groups]
    found.sentences.append(
        f"What is still known after {final} (share of questions taught for which the likeliest of all answers is the "
        f"true one): {told}; by chance {min(nulls):z.2f} to {max(nulls):z.2f} (answers shuffled among "
        "entities that were asked the same)."
    )


def _accuracy_row(name: str, stage: str, mine: pd.DataFrame, settings: StudySettings) -> Row:
    """Share of right answers; the null shuffles what was said among questions of one kind."""
    right, units = mine["right"].to_numpy(float), pd.factorize(mine["entity_id"])[0]
    low, high = cluster_bootstrap(right, units, seed=settings.seed, bounds=(0, 1))
    random, draws = np.random.default_rng([9, settings.seed]), max(1, settings.analysis.permutations)
    said, true = mine["said"].to_numpy(str), mine["answer"].to_numpy(str)
    hits = np.zeros(draws)
    for rows in (np.flatnonzero(mine["kind"] == kind) for kind in mine["kind"].unique()):
        for draw in range(draws):
            hits[draw] += (said[random.permutation(rows)] == true[rows]).sum()
    null = hits / len(mine)
    return {
        "name": name,
        "stage": stage,
        "layer": None,
        "token": None,
        "value": float(right.mean()),
        "low": float(low),
        "high": float(high),
        "null": float(null.mean()),
        "p": float(p_value(null, np.array(right.mean()))),
        "n": len(np.unique(units)),
        "site": None,
    }


def _make_forgetting_curves(ds: xr.Dataset, frame: pd.DataFrame) -> dict[str, xr.Dataset]:
    """Means of every group at every checkpoint, for the figures."""
    first = _one_template(ds)
    stages, entities = first.stage.values.astype(str), first.entity_id.values.astype(str)
    curves = {}
    for name, column in ((ACCURACY, "answer_accuracy"), (LOSS, "answer_loss")):
        values = frame.pivot(index="stage", columns="entity_id", values=column).loc[stages, entities].to_numpy(float)
        kept = first.drop_vars(first.data_vars).assign({name: (("stage", "entity"), values)})
        curves[name] = forgetting_table(kept, BY, name)
    curves[LOSS].attrs["units"] = "nats"
    return curves


def _sentence(outcome: str, rows: list[Row]) -> str:
    _, within, partial = rows
    more = "higher" if within["value"] >= 0 else "lower"
    return (
        f"Forgetting: over all stages the recency score goes with {outcome} at rank correlation {_said(rows[0])}; "
        f"within stages, entities with a higher score have {'an' if outcome[0] in 'aeiou' else 'a'} {outcome} that is "
        f"{more}, {_said(within)}; with the loss over the prompt partialled out {_said(partial)}: {_verdict(rows)}."
    )


def _said(row: Row) -> str:
    return f"{row['value']:z.2f} (95 % interval {row['low']:z.2f} to {row['high']:z.2f}, p = {row['p']:z.3f})"


def _verdict(rows: list[Row]) -> str:
    if rows[1]["p"] >= 0.05:
        return "within stages no relation is shown"
    return "a relation beyond that loss" if rows[2]["p"] < 0.05 else "nothing is shown beyond that loss"
