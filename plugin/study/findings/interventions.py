"""Effects of interventions along the recency axis, each against three nulls, as a table, rows and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.stats.bootstrap import cluster_bootstrap
from stratalens.plugin.study.findings.analyses import Findings
from stratalens.plugin.study.findings.headline import Row, format_estimate, make_row, share_row
from stratalens.plugin.study.recording.interventions import (
    CONTRADICTIONS,
    SELF_REPORT,
    SHUFFLED,
    InterventionResults,
    Place,
)
from stratalens.plugin.study.recording.recency_axis import ANSWER, AXIS, PROBE, SITE

NULLS = ("random", "orthogonal", "shuffled")
LEVEL = 0.05
_DOSE = "dose (1 = distance between the two groups)"
DIRECTIONS = (AXIS, PROBE, ANSWER)
UNITS = {
    SELF_REPORT: "log odds of the later group",
    SHUFFLED: "log odds of the later group",
    CONTRADICTIONS: "log probability of the later answer minus the earlier one",
}
Doubles = npt.NDArray[np.float64]


def intervention_table(results: InterventionResults) -> xr.Dataset:
    """Collect the effects of all outcomes and places.

    Args:
        results: results of all jobs.

    Returns:
        Dataset over outcome, layer, token, direction, dose, null_kind and draw; NaN where nothing was measured. Doses
        are in distances between the two centroids.

        - effect, effect_low, effect_high, kl (outcome, layer, token, direction, dose): change of the outcome, in nats.
        - slope, slope_low, slope_high (outcome, layer, token, direction), null_slope (outcome, layer, token,
          null_kind, draw): change per dose.
        - slope_p (outcome, layer, token, direction): the largest p of the three nulls, over all places of an outcome.
        - ablated, ablated_low, ablated_high, ablated_p, null_ablated: the same for the change of the log odds of the
          true group by ablation.
        - unit (outcome, layer, token): length of dose 1.
    """
    parts = []
    for place in results.places:
        part = _effects_at(results.jobs, place)
        parts.append(part.expand_dims(outcome=[place.outcome], layer=[place.layer], token=[place.token]))
    table = xr.merge(parts, join="outer", compat="no_conflicts")
    outcomes, tokens = (list(dict.fromkeys(getattr(p, key) for p in results.places)) for key in ("outcome", "token"))
    names = [name for name in DIRECTIONS if name in table["direction"].values]
    table = table.sel(outcome=outcomes, token=tokens, direction=names)
    for name in ("slope", "ablated"):
        if name in table:
            table[f"{name}_p"] = p_of_each_null(table[name], table[f"null_{name}"]).max("null_kind")
    return table.assign_attrs(site=SITE, stage=results.stage, pair=list(results.pair))


def _effects_at(jobs: Mapping[str, xr.Dataset], place: Place) -> xr.Dataset:
    """Collect the effects at one place, in units of its dose."""
    doses = _labelled(jobs[f"{place.file}-doses"])
    names = [str(name) for name in doses["direction"].values]
    steer = [_labelled(jobs[f"{place.file}-steer_{null}"]) for null in NULLS]
    variables: dict[str, Any] = {"unit": place.unit}
    for name in ("slope", "slope_low", "slope_high"):
        variables[name] = ("direction", steer[0][name].values * place.unit)
    variables["null_slope"] = (("null_kind", "draw"), np.stack([s["null_slope"].values for s in steer]) * place.unit)
    for name in ("effect", "effect_low", "effect_high", "kl"):
        variables[name] = (("direction", "dose"), doses[name].transpose("direction", ...).values)
    if f"{place.file}-ablate_{NULLS[0]}" in jobs:
        ablate = [_labelled(jobs[f"{place.file}-ablate_{null}"]).sel(dose=1.0) for null in NULLS]
        for name in ("", "_low", "_high"):
            variables[f"ablated{name}"] = ("direction", ablate[0][f"effect{name}"].values)
        variables["null_ablated"] = (("null_kind", "draw"), np.stack([one["null"].values for one in ablate]))
    coords = {"direction": names, "dose": np.round(doses["dose"].values / place.unit, 6), "null_kind": list(NULLS)}
    return xr.Dataset(variables, coords=coords)


def _labelled(result: xr.Dataset) -> xr.Dataset:
    """Return the result of one stage and layer with plain text labels."""
    at = result.isel(stage=0, layer=0).load()
    return at.assign_coords({name: v.astype(object) for name, v in at.coords.items() if v.dtype.kind == "T"})


def p_of_each_null(value: xr.DataArray, null: xr.DataArray) -> xr.DataArray:
    """Compute the p of each null, over all places of an outcome.

    P is the share of directions of a null, the tested one counted, whose effect at any place is as large in size
    (Westfall and Young, 1993).

    Args:
        value: effects over outcome, layer, token and direction; NaN where nothing was measured.
        null: effects over outcome, layer, token, null_kind and draw.

    Returns:
        P over the dims of `value` and null_kind.
    """
    largest = abs(null).max(["layer", "token"])
    at_least = (largest >= abs(value) * (1 - 1e-9)).sum("draw")
    return ((1 + at_least) / (1 + null.sizes["draw"])).where(np.isfinite(value))


def add_intervention_results(findings: Findings, results: InterventionResults, seed: int) -> None:
    """Add the figures of the report with their verdicts, and rows.

    Args:
        findings: receives them.
        results: results of all jobs.
        seed: seed of resamples.
    """
    table = intervention_table(results)
    rows = intervention_rows(results, table, seed)
    findings.rows += rows
    findings.report["interventions"] = intervention_figures(table, rows)


def intervention_figures(table: xr.Dataset, rows: Sequence[Row]) -> dict[str, xr.Dataset]:
    """Make one result for each figure, of the form of `stratalens.intervene`; the band has all three nulls.

    Args:
        table: result of `intervention_table`.
        rows: result of `intervention_rows`, from which the verdicts follow.

    Returns:
        {name of the figure: Dataset}
    """
    figures = {}
    verdicts = describe_interventions(rows, table)
    table = table.expand_dims(stage=[table.attrs["stage"]])
    attrs = {"site": SITE, "null_kind": "of the same length, of three kinds"}
    for outcome in (str(name) for name in table["outcome"].values):
        own = table.sel(outcome=outcome, drop=True).dropna("direction", how="all", subset=["slope"])
        null = _pool(own["null_slope"])
        steered = own[["effect", "effect_low", "effect_high", "slope", "slope_low", "slope_high", "slope_p", "kl"]]
        steered = steered.assign(null=null * own["dose"], null_slope=null)
        words = {"kind": "steer", "outcome": f"{UNITS[outcome]} ({outcome})", "unit": "nats", "dose": _DOSE}
        figures[outcome] = steered.assign_attrs({**attrs, **words, "verdict": verdicts.get(outcome, "")})
        if outcome != SELF_REPORT:
            continue
        null = _pool(own["null_ablated"])
        parts = {
            "effect": "ablated",
            "effect_low": "ablated_low",
            "effect_high": "ablated_high",
            "effect_p": "ablated_p",
        }
        ablated = xr.Dataset({name: own[source].expand_dims(dose=[1.0]) for name, source in parts.items()})
        words = {"kind": "ablate", "outcome": "log odds of the true group", "unit": "nats"}
        ablated = ablated.assign(null=null.expand_dims(dose=[1.0]))
        figures["ablation"] = ablated.assign_attrs({**attrs, **words, "verdict": verdicts["ablation"]})
    return figures


def _pool(null: xr.DataArray) -> xr.DataArray:
    """Join the three nulls along the dim `random`."""
    return null.stack(random=("null_kind", "draw"), create_index=False).drop_vars("null_kind", errors="ignore")


def intervention_rows(results: InterventionResults, table: xr.Dataset, seed: int) -> list[Row]:
    """Make the rows of summary.json; `null` is the largest size of an effect of a direction without a meaning.

    Args:
        results: results of all jobs.
        table: result of `intervention_table`.
        seed: seed of resamples.
    """
    rows = []
    for place in results.places:
        at = table.sel(outcome=place.outcome, layer=place.layer, token=place.token)
        where = {"stage": results.stage, "layer": place.layer, "token": place.token, "site": SITE}
        n = _scored(results.jobs[f"{place.file}-doses"])
        for name, key in (("steering", "slope"), ("ablation", "ablated")):
            for direction in at["direction"].values if key in at else ():
                own = at.sel(direction=direction)
                if not np.isfinite(own[key]):
                    continue
                numbers = {k: float(own[v]) for k, v in _parts(key).items()}
                numbers["null"] = float(abs(own[f"null_{key}"]).max())
                rows.append(make_row(effect_name(place.outcome, name, str(direction)), **where, **numbers, n=n))
        if place.outcome == CONTRADICTIONS:
            continue
        rows += _accuracy_rows(results.jobs[f"{place.file}-ablate_random"], place, where, seed)
        shift = {"value": place.shift, "low": place.shift_low, "high": place.shift_high, "null": 0.0, "n": n}
        rows.append(make_row(f"{place.outcome}: distance of unseen groups along the {AXIS}", **where, **shift))
    for outcome in dict.fromkeys(place.outcome for place in results.places if place.outcome != CONTRADICTIONS):
        place = next(p for p in results.places if p.outcome == outcome)
        rows += _clean_rows(results.jobs[f"{place.file}-ablate_random"], outcome, results.stage, seed)
    return rows


def _parts(key: str) -> dict[str, str]:
    return {"value": key, "low": f"{key}_low", "high": f"{key}_high", "p": f"{key}_p"}


def effect_name(outcome: str, kind: str, direction: str) -> str:
    """Name of a row of summary.json.

    >>> effect_name("contradictions", "steering", "recency axis")
    'contradictions: change per dose of the recency axis'
    """
    return (
        f"{outcome}: change per dose of the {direction}"
        if kind == "steering"
        else (f"{outcome}: change by ablating the {direction}")
    )


def _scored(result: xr.Dataset) -> int:
    return int(result["scored"].values.sum())


def _signed(result: xr.Dataset) -> tuple[xr.Dataset, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The result of ablation, the group of every entity, and whether it is scored."""
    return _labelled(result), result["group"].values.astype(np.int64), result["scored"].values.astype(bool)


def _accuracy_rows(result: xr.Dataset, place: Place, where: Mapping[str, Any], seed: int) -> list[Row]:
    at, group, scored = _signed(result)
    rows = []
    for direction in [name for name in DIRECTIONS if name in at["direction"].values]:
        right = (at["outcome"].sel(direction=direction, dose=1.0).values[scored] > 0).astype(float)
        name = f"{place.outcome}: accuracy with the {direction} ablated"
        rows.append(share_row(name, right, 0.5, seed=seed, strata=group[scored], **where))
    return rows


def _clean_rows(result: xr.Dataset, outcome: str, stage: str, seed: int) -> list[Row]:
    """Accuracy and the difference between the groups without an intervention."""
    at, group, scored = _signed(result)
    clean, side = at["clean"].values[scored], group[scored]
    accuracy = share_row(f"{outcome}: accuracy", (clean > 0).astype(float), 0.5, seed=seed, strata=side, stage=stage)
    odds = clean * (2 * side - 1)
    signed = 2 * (2 * side - 1) * (odds - odds.mean())  # its mean is the difference of the means of equal groups
    low, high = cluster_bootstrap(signed, np.arange(len(signed)), strata=side, seed=seed)
    numbers = {"value": signed.mean(), "low": float(low), "high": float(high), "null": 0.0, "n": len(signed)}
    return [accuracy, make_row(f"{outcome}: log odds of the later group, later minus earlier", stage=stage, **numbers)]


def has_effect(row: Mapping[str, Any]) -> bool:
    """Whether the interval excludes 0 and p over all places is at most .05 against every null."""
    outside = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    return bool(outside and row["p"] is not None and row["p"] <= LEVEL)


def describe_interventions(rows: Sequence[Row], table: xr.Dataset) -> dict[str, str]:
    """Say what the interventions showed, from the rows alone.

    Args:
        rows: result of `intervention_rows`.
        table: result of `intervention_table`.

    Returns:
        {outcome: sentences}, with the key "ablation" too.
    """
    outcomes = [str(name) for name in table["outcome"].values]
    sentences = {
        name: _describe_steering(rows, table, name) for name in (SELF_REPORT, CONTRADICTIONS) if name in outcomes
    }
    if SELF_REPORT in outcomes:
        sentences["ablation"] = _describe_ablation(rows)
    return sentences


def _strongest(rows: Sequence[Row], name: str) -> Row | None:
    own = [row for row in rows if row["name"] == name]
    return max(own, key=lambda row: (has_effect(row), abs(row["value"]))) if own else None


def _describe_effect(row: Row) -> str:
    return (
        f"{format_estimate(row)} nats at layer {row['layer']}, token {row['token']} ({row['n']} entities; directions "
        f"without a meaning change it by up to {row['null']:.2f}, p = {row['p']:.3f})"
    )


def _describe_steering(rows: Sequence[Row], table: xr.Dataset, outcome: str) -> str:
    """Describe steering along the recency axis, with its controls."""
    row = _strongest(rows, effect_name(outcome, "steering", AXIS))
    assert row is not None
    later = "the later answer" if outcome == CONTRADICTIONS else "the later group"
    text = (
        f"Steering along the recency axis by the distance between {' and '.join(table.attrs['pair'])} changes the "
        f"{UNITS[outcome]} ({outcome}) by {_describe_effect(row)}"
    )
    if not has_effect(row):
        verdict = "no effect beyond that of directions without a meaning was shown"
    elif row["value"] < 0:
        verdict = f"the axis acts on the answer, but against {later}"
    else:
        verdict = f"the axis acts on the answer, towards {later}"
    control = _strongest(rows, effect_name(outcome, "steering", ANSWER))
    if control is not None:
        works = "does" if has_effect(control) else "does not, so that an absence says nothing"
        text += f". The direction of the answer itself should have an effect: it {works} ({control['value']:.2f})"
    shuffled = _strongest(rows, effect_name(SHUFFLED, "steering", AXIS)) if outcome == SELF_REPORT else None
    if shuffled is not None:
        text += f". In the model that was taught shuffled groups the axis changes it by {_describe_effect(shuffled)}"
        if has_effect(row) and has_effect(shuffled):
            verdict += "; it does so without any knowledge of the groups, too, so that this is not evidence of a report"
    return f"{text}. Result: {verdict}."


def _describe_ablation(rows: Sequence[Row]) -> str:
    """Describe the ablation of the recency axis."""
    row = _strongest(rows, effect_name(SELF_REPORT, "ablation", AXIS))
    accuracy = next(row for row in rows if row["name"] == f"{SELF_REPORT}: accuracy")
    assert row is not None
    if accuracy["low"] <= 0.5:
        verdict = "the model does not report the group better than chance, so that ablation has nothing to remove"
    elif has_effect(row) and row["value"] < 0:
        verdict = "the report needs the axis"
    else:
        verdict = "no loss beyond that of directions without a meaning was shown"
    return (
        f"Ablating the recency axis changes the log odds of the true group by {_describe_effect(row)}; the accuracy "
        f"without it is {format_estimate(accuracy)}. Result: {verdict}."
    )
