"""Forgetting: the relation of the recency score of an entity to the knowledge of its answers.

An answer is known if it is the likeliest of all answers; its loss measures the
same in degrees. The recency score is the out-of-fold score of the probe of
early against late entities. Three rank correlations over entities relate them:
over all stages, where time alone creates one; within stages, where time cannot;
and within stages with the loss over the prompt partialled out, because a model
reads an alias that it remembers with less surprise. Ranks always stay inside
one kind of question, since some kinds are easier than others.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratalens.analyses.plots.forgetting import forgetting_table
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.findings.analyses import BY, Findings, probe_halves, select_template
from stratalens.plugin.study.findings.correlation import correlate_within_strata
from stratalens.plugin.study.findings.headline import Row, format_estimate, format_p, make_row, share_row
from stratalens.store.files import write_text_atomic

if TYPE_CHECKING:
    import xarray as xr


ACCURACY, LOSS = "answer accuracy", "answer loss"


def add_forgetting_results(
    findings: Findings, ds: xr.Dataset, answers: pd.DataFrame, settings: StudySettings, table: Path
) -> None:
    """Add rows, sentences and figures about forgetting, and write its table.

    The table has one row for every checkpoint and entity. Its columns:

        stage, entity_id, trained_stage, exposure, recency_score
        prompt_loss: mean loss over the prompt
        recorded_answer_loss: loss of the answer to the recorded prompt, which training never uses

    With answers, these columns cover the trained questions of the entity:

        kinds: kinds of the questions
        answer_accuracy: share of right answers
        answer_loss: mean loss of the true answers

    Args:
        findings: receives rows, sentences and figures.
        ds: the store of all stages, with statistics.
        answers: the answers of every checkpoint; may be empty.
        settings: the settings of the study.
        table: the csv file.
    """
    trained = answers[answers["trained"].astype(bool)].astype({"right": float})
    frame, probes = _make_entity_table(ds, trained, settings)
    write_text_atomic(table, frame.to_csv(index=False))
    outcomes = {LOSS: "recorded_answer_loss"}
    if len(answers):
        outcomes = {ACCURACY: "answer_accuracy", LOSS: "answer_loss"}
        _add_accuracy_results(findings, trained, settings)
        findings.report["forgetting"] = _make_forgetting_curves(ds, frame)
    for outcome, column in outcomes.items():
        rows = _correlation_rows(frame, probes, outcome, column, settings)
        findings.rows += rows
        if all(row["value"] is not None for row in rows):
            findings.sentences.append(_describe_correlations(outcome, rows))


def _make_entity_table(
    ds: xr.Dataset, trained: pd.DataFrame, settings: StudySettings
) -> tuple[pd.DataFrame, xr.Dataset]:
    """Make the table of every checkpoint and entity, and the probes of its scores."""
    first = select_template(ds, str(ds.template.values[0]))
    here = first.isel(layer=[-1]).sel(token=ds.token.values[:1])
    probes = probe_halves(here, settings)
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
    if not len(trained):
        return frame, probes
    by_entity = trained.groupby(["stage", "entity_id"], sort=False)
    knowledge = by_entity.agg(
        kinds=("kind", ",".join), answer_accuracy=("right", "mean"), answer_loss=("answer_loss", "mean")
    )
    keys = ["stage", "entity_id"]
    return frame.merge(knowledge.reset_index(), on=keys, how="left", validate="one_to_one"), probes


def _correlation_rows(
    frame: pd.DataFrame, probes: xr.Dataset, outcome: str, column: str, settings: StudySettings
) -> list[Row]:
    """Correlate recency score and outcome: overall, within stages, and partially."""
    final = settings.stage_names[-1]
    last = frame[frame["stage"] == final]
    kinds = last["kinds"] if "kinds" in last else pd.Series("", index=last.index)
    by_kind, by_stage = (pd.factorize(labels)[0].astype(np.int64) for labels in (kinds, last[BY] + "/" + kinds))
    score, knowledge, prompt = (last[name].to_numpy(float) for name in ("recency_score", column, "prompt_loss"))
    draws = max(1, settings.analysis.permutations)
    correlate = partial(correlate_within_strata, score, knowledge, seed=settings.seed, draws=draws)
    name = f"rank correlation of recency score and {outcome}"
    numbers = {
        name: correlate(by_kind),
        f"{name} within stages": correlate(by_stage),
        f"{name} within stages, prompt loss partialled out": correlate(by_stage, prompt),
    }
    layer, token = probes.layer.values[0], str(probes.token.values[0])
    site = str(probes.attrs.get("site", ""))
    return [
        make_row(name, stage=final, layer=layer, token=token, **values, n=len(last), site=site)
        for name, values in numbers.items()
    ]


def _add_accuracy_results(findings: Findings, trained: pd.DataFrame, settings: StudySettings) -> None:
    """Add the accuracy at every checkpoint, and of each stage at the last one."""
    recorded = trained["stage"].unique()
    run = dict.fromkeys([*recorded[:1], *settings.stage_names, *recorded])  # stages that are not recorded, too
    order = {name: number for number, name in enumerate(run)}
    rows = []
    for stage, answers in trained.groupby("stage", sort=False):
        so_far = answers[answers[BY].map(order).fillna(len(order)) <= order[stage]]
        name = ACCURACY if len(so_far) else f"{ACCURACY} before any training"
        rows.append(_accuracy_row(name, str(stage), so_far if len(so_far) else answers, settings))
    final = settings.stage_names[-1]
    at_end = trained[trained["stage"] == final]
    groups = [
        _accuracy_row(f"{ACCURACY}, entities of {name}", final, at_end[at_end[BY] == name], settings)
        for name in settings.stage_names
    ]
    findings.rows += [*rows, *groups]
    listed = ", ".join(f"{row['value']:z.2f} of {name}" for row, name in zip(groups, settings.stage_names, strict=True))
    nulls = [row["null"] for row in groups]
    findings.sentences.append(
        f"Known answers after {final} (share of trained questions whose true answer is the likeliest): {listed}; "
        f"by chance {min(nulls):z.2f} to {max(nulls):z.2f} (answers shuffled among questions of one kind)."
    )


def _accuracy_row(name: str, stage: str, answers: pd.DataFrame, settings: StudySettings) -> Row:
    """Make the row of the share of right answers.

    The null shuffles answers among questions of one kind.
    """
    right, entities = answers["right"].to_numpy(float), pd.factorize(answers["entity_id"])[0]
    random, draws = np.random.default_rng([9, settings.seed]), max(1, settings.analysis.permutations)
    said, true = answers["said"].to_numpy(str), answers["answer"].to_numpy(str)
    hits = np.zeros(draws)
    for kind in answers["kind"].unique():
        rows = np.flatnonzero(answers["kind"] == kind)
        for draw in range(draws):
            hits[draw] += (said[random.permutation(rows)] == true[rows]).sum()
    null = hits / len(answers)
    return share_row(name, right, null, seed=settings.seed, units=entities, stage=stage)


def _make_forgetting_curves(ds: xr.Dataset, frame: pd.DataFrame) -> dict[str, xr.Dataset]:
    """Compute the means of every group at every checkpoint, for the figures."""
    first = select_template(ds, str(ds.template.values[0]))
    stages, entities = first.stage.values.astype(str), first.entity_id.values.astype(str)
    curves = {}
    for name, column in ((ACCURACY, "answer_accuracy"), (LOSS, "answer_loss")):
        values = frame.pivot(index="stage", columns="entity_id", values=column).loc[stages, entities].to_numpy(float)
        labels = first[["exposure"]]
        curves[name] = forgetting_table(labels.assign({name: (("stage", "entity"), values)}), BY, name)
    curves[LOSS].attrs["units"] = "nats"
    return curves


def _describe_correlations(outcome: str, rows: list[Row]) -> str:
    """Describe the three correlations of one outcome."""
    overall, within, partialled = rows
    article = "an" if outcome[0] in "aeiou" else "a"
    direction = "higher" if within["value"] >= 0 else "lower"
    if within["p"] >= 0.05:
        verdict = "no evidence of a relation within stages"
    elif partialled["p"] < 0.05:
        verdict = "a relation beyond the prompt loss"
    else:
        verdict = "no evidence of a relation beyond the prompt loss"
    numbers = [f"{format_estimate(row)}, {format_p(row)}" for row in (overall, within, partialled)]
    return (
        f"Forgetting: over all stages the rank correlation of recency score and {outcome} is {numbers[0]}. Within "
        f"stages, entities with a higher score have {article} {outcome} that is {direction}: {numbers[1]}. With the "
        f"prompt loss partialled out: {numbers[2]}. Result: {verdict}."
    )
