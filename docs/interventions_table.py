"""Make the tables of a study's interventions: python docs/interventions_table.py RUN TARGET.csv.

The run folder has a complete `interventions` folder. The file gets one row for every effect, with the p against each
null; the same rows are printed as Markdown. The p of a place alone and the last table, about the axis, are descriptions
and no part of a verdict.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import stratalens as sl
from stratalens.analyses.stats.bootstrap import cluster_bootstrap
from stratalens.plugin.study.config.settings import read_settings
from stratalens.plugin.study.findings.interventions import NULLS, intervention_table, p_of_each_null
from stratalens.plugin.study.recording.interventions import (
    SHUFFLED,
    InterventionResults,
    Place,
    read_interventions,
)
from stratalens.plugin.study.recording.recency_axis import SITE, make_recency_axis

KINDS = {"steer": "slope", "ablate": "ablated"}


def effects(results: InterventionResults) -> Iterator[dict[str, Any]]:
    """Yield one row for every effect: the slope per dose of steering, or the change by ablation."""
    table = intervention_table(results)
    for kind, name in KINDS.items():
        null = table[f"null_{name}"]
        p = p_of_each_null(table[name], null)
        for place in results.places:
            where = {"outcome": place.outcome, "layer": place.layer, "token": place.token}
            for direction in table["direction"].values:
                at = table.sel(direction=direction, **where)
                if not np.isfinite(at[name]):
                    continue
                row = {"kind": kind, **where, "direction": direction, "value": at[name].item()}
                row |= {end: at[f"{name}_{end}"].item() for end in ("low", "high")}
                row["null"] = abs(at[f"null_{name}"]).max().item()
                own_p = p.sel(direction=direction, **where)
                row |= {f"p_{null}": own_p.sel(null_kind=null).item() for null in own_p["null_kind"].values}
                here = {"layer": [place.layer], "token": [place.token]}
                alone = p_of_each_null(table[name].sel(here), null.sel(here)).sel(direction=direction, **where)
                row["p_of_this_place_alone"] = alone.max().item()
                if kind == "steer":
                    row |= {f"kl_{dose}": at["kl"].sel(dose=[-dose, dose]).max().item() for dose in (1, 2, 4)}
                yield row


def clean_outcomes(results: InterventionResults) -> Iterator[dict[str, str]]:
    """Yield the mean outcome of every question without an intervention."""
    for outcome in dict.fromkeys(place.outcome for place in results.places):
        place = next(place for place in results.places if place.outcome == outcome)
        clean = results.jobs[f"{place.file}-doses"]["clean"].values.ravel()
        yield {"outcome": outcome, "mean without intervention, nats": number(clean.mean(), 2)}


def axis_noise(run: Path, results: InterventionResults, place: Place) -> dict[str, str]:
    """Compare the axis at a place with those of shuffled groups, and measure it on entities that did not make it."""
    settings = read_settings(run / "run.yaml")
    assert settings.interventions is not None
    ds = sl.open_store(run / "run.zarr")
    entity, stage = (ds[name].values.astype(object) for name in ("entity_id", "trained_stage"))
    asked = np.isin(entity, results.jobs[f"{place.file}-doses"]["entity_id"].values.astype(object))
    makers = entity[np.isin(stage, results.pair) & ~asked]
    draws = settings.interventions.random
    axis = make_recency_axis(ds, results.pair, results.stage, place.layer, place.token, makers, settings, draws)
    shuffled = np.linalg.norm(axis.shuffled.values[0], axis=1)
    cells = {
        "made for": place.outcome,
        "block, token": describe_place(place.layer, place.token),
        "distance of the groups that make the axis": number(axis.unit, 2),
        "the same of shuffled groups": f"{number(shuffled.min(), 2)} to {number(shuffled.max(), 2)}",
        "distance of unseen groups, in doses": "all entities make the axis",
        "the same in the fine-tuned model": interval(place.shift, place.shift_low, place.shift_high),
    }
    if asked.any():
        part = ds[SITE].sel(stage=results.stage, layer=place.layer, token=place.token)
        unseen = np.asarray(part.isel(entity=np.flatnonzero(asked)).values, dtype=np.float64)
        along = unseen @ axis.vectors.values[0, 0] / axis.unit**2
        side = (stage[asked] == results.pair[1]).astype(int)
        signed = 2 * (2 * side - 1) * (along - along.mean())  # its mean is the difference of the means of equal groups
        ends = cluster_bootstrap(signed, np.arange(len(signed)), strata=side, seed=settings.seed)
        cells["distance of unseen groups, in doses"] = interval(signed.mean(), *map(float, ends))
    return cells


def number(value: float, decimals: int) -> str:
    """Format a number; a zero has no sign.

    >>> number(-0.25, 2), number(-0.001, 2)
    ('-0.25', '0.00')
    """
    return f"{value:z.{decimals}f}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Format a value and its interval, with more decimals where it is small.

    >>> interval(0.0412, 0.0311, 0.0513), interval(3.1, 3.0, 3.2)
    ('0.041 (0.031 to 0.051)', '3.10 (3.00 to 3.20)')
    """
    if value is None or low is None or high is None:
        return ""
    largest = max(abs(low), abs(high))
    decimals = 2 if largest >= 0.1 else 3 if largest >= 0.01 else 4
    value, low, high = (number(end, decimals) for end in (value, low, high))
    return f"{value} ({low} to {high})"


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Write rows as a table."""
    head, *lines = (f"| {' | '.join(cells)} |\n" for cells in (rows[0], *(row.values() for row in rows)))
    return head + "|---" * len(rows[0]) + "|\n" + "".join(lines) + "\n"


def describe_place(layer: int, token: str) -> str:
    """Name a place."""
    return f"{layer}, {'end of the name' if token == 'entity_last' else token}"


def shown(row: dict[str, Any]) -> dict[str, str]:
    """Return the cells of one effect."""
    ps = [row[key] for key in row if key in {f"p_{null}" for null in NULLS}]
    cells = {
        "outcome": row["outcome"],
        "direction": row["direction"],
        "block, token": describe_place(row["layer"], row["token"]),
        "slope per dose" if row["kind"] == "steer" else "change": interval(row["value"], row["low"], row["high"]),
        "p: random, orthogonal, shuffled": ", ".join(number(p, 3 if p < 0.1 else 2) for p in ps),
    }
    if row["kind"] == "steer":
        cells["KL at dose 2, 4"] = f"{number(row['kl_2'], 3)}, {number(row['kl_4'], 3)}"
    return cells


def main(run: Path, target: Path) -> None:
    """Write the file and print the tables."""
    results = read_interventions(run)
    rows = list(effects(results))
    pd.DataFrame(rows).round(6).to_csv(target, index=False)
    for kind in KINDS:
        sys.stdout.write(markdown([shown(row) for row in rows if row["kind"] == kind]))
    sys.stdout.write(markdown(list(clean_outcomes(results))))
    places = [place for place in results.places if place.outcome != SHUFFLED]  # which has the axis of the self-report
    sys.stdout.write(markdown([axis_noise(run, results, place) for place in places]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
