"""The effect that sets of statistics leave: each set alone, matched, weighted, and compared with labels drawn from it.

The sets are those that the paper balances, six statistics of the activations and seven of the logits, and three losses.
The notes on the paper name four of its seven logit statistics (entropy, largest logit, logsumexp, fourth moment); mean,
standard deviation and skewness complete them here. Whether the paper balances a loss over the name is not visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import stratalens as sl
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.findings.headline import Row, make_row

ACTIVATION_SET = ("l2", "max", "mean", "std", "skewness", "kurtosis")
LOGIT_SET = ("entropy", "logit_max", "logsumexp", "logit_kurtosis", "logit_mean", "logit_std", "logit_skewness")
LOSS_SETS = {
    "loss at the position": ("loss",),
    "loss over the name": ("entity_loss",),
    "loss over the prompt": ("running_loss",),
}
TOGETHER = "set of all of these"
COLUMNS = (
    "statistics",
    "control",
    "bins",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "null",
    "p",
    "left",
    "left_low",
    "left_high",
    "support",
)


def statistic_sets(ds: xr.Dataset, site: str = "resid_post") -> dict[str, tuple[str, ...]]:
    """Name the sets whose statistics the data has, each on its own and all together.

    Args:
        ds: data with the statistics as variables, or with activations of the site.
        site: site of the activation statistics.

    Returns:
        {name: statistics}; statistics that are missing, or undefined in a row, leave out their set.

    Example:
        >>> x = (("entity", "token"), np.zeros((3, 1)))
        >>> sets = statistic_sets(xr.Dataset({"loss": x, "running_loss": x}))
        >>> list(sets), sets["set of all of these"]
        (['loss at the position', 'loss over the prompt', 'set of all of these'], ('loss', 'running_loss'))
    """

    def is_usable(name: str) -> bool:
        if name in ds:
            return bool(np.isfinite(ds[name]).all())
        return site in ds and name.startswith(f"{site}_")

    wanted = {
        "set of six activation statistics": tuple(f"{site}_{name}" for name in ACTIVATION_SET),
        "set of seven logit statistics": LOGIT_SET,
        **LOSS_SETS,
    }
    sets = {name: members for name, members in wanted.items() if all(map(is_usable, members))}
    if len(sets) > 1:
        sets[TOGETHER] = tuple(name for members in sets.values() for name in members)
    return sets


def measure_statistic_sets(
    ds: xr.Dataset, settings: StudySettings, *, test: Mapping[str, object] | None = None
) -> pd.DataFrame:
    """Measure the effect of first against last stage that every set leaves, under every control.

    Args:
        ds: one stage, layer and token.
        settings: the settings of the study.
        test: rows to score on, as in `stratalens.probe`, such as those of one template; None scores on held-out
            entities.

    Returns:
        One row for every set and control: statistics, control, bins (of matching), accuracy with its interval
        (accuracy_low, accuracy_high), null (chance, or what the statistics give the probe), p, left (share of the
        effect) with its interval (left_low, left_high), support (share of the rows with common support). Numbers are
        NaN where too few rows can be compared. The first row is the effect without a control.
    """
    a = settings.analysis
    shared: dict[str, Any] = {
        "pairs": [settings.end_stages],
        "order": list(settings.stage_names),
        "seed": settings.seed,
        "test": test,
        "progress": False,
    }
    fit: dict[str, Any] = {"C": a.C, "folds": a.folds}
    reference = sl.probe(ds, **shared, **fit)
    rows = [_table_row(_tabulate({"probe": reference}), "probe", "", "none", 0)]
    most_bins = int(0.6 * settings.entities_per_stage)  # each split needs a row of either class in every bin
    for name, members in statistic_sets(ds).items():
        chosen: dict[str, Any] = {"statistics": members, **shared}
        results = {
            "alone": sl.statistics_probe(ds, **chosen, folds=a.folds),
            "weighted": sl.weighted_probe(ds, **chosen, **fit),
            "conditional": sl.conditional_test(ds, **chosen, **fit, permutations=a.set_permutations),
        }
        rows.append(_table_row(_tabulate({"probe": reference, **results}), "alone", name, "alone", 0))
        boosted = "alone_boosting"
        table = _tabulate({"probe": reference, **results})
        if boosted in table["control"]:
            rows.append(_table_row(table, boosted, name, "alone, boosted trees", 0))
        for bins in (number for number in a.matching_bins if number <= most_bins):
            matched = sl.matched_probe(ds, **chosen, C=a.C, bins=bins, small="nan")
            entries = _tabulate({"probe": reference, "m": matched})
            for sample, label in (("matched", "matched"), ("random_subsample", "random subsample")):
                rows.append(_table_row(entries, f"m: {sample}", name, label, bins, matched))
        rows.append(_table_row(table, "weighted", name, "weighted", 0, results["weighted"]))
        rows.append(_table_row(table, "conditional", name, "labels drawn from them", 0, results["conditional"]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _tabulate(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    return sl.control_table(dict(results))


def _table_row(
    table: xr.Dataset, entry: str, statistics: str, control: str, bins: int, result: xr.Dataset | None = None
) -> dict[str, Any]:
    """Make one row from an entry of `stratalens.control_table`, and from the result for its support and p."""
    here = table.sel(control=entry)
    names = ("accuracy", "accuracy_low", "accuracy_high", "null", "left", "left_low", "left_high")
    row: dict[str, Any] = {name: float(here[name].squeeze()) for name in names}
    for column, variable in (("p", "p"), ("support", "support")):
        known = result is not None and variable in result
        row[column] = float(result[variable].squeeze()) if known and result is not None else float("nan")
    return {"statistics": statistics, "control": control, "bins": bins, **row}


def statistic_set_rows(table: pd.DataFrame, where: str, n: int, **place: Any) -> list[Row]:
    """Make rows of summary.json: the accuracy under each control, and the share of the effect that weighting leaves.

    Args:
        table: the result of `measure_statistic_sets`.
        where: end of the names of the rows, such as "" or ", template name".
        n: number of entities.
        place: stage, layer, token and site of the rows.
    """
    rows = []
    entry: Any  # a named tuple with the columns of the table
    for entry in table.itertuples(index=False):
        if entry.control == "none":
            continue
        name = f"{entry.statistics}: {entry.control}" + (f", {entry.bins} bins" if entry.bins else "")
        numbers = {"value": entry.accuracy, "low": entry.accuracy_low, "high": entry.accuracy_high}
        numbers |= {"null": entry.null, "p": entry.p}
        rows.append(make_row(f"first v last accuracy, {name}{where}", **place, **_without_nan(numbers), n=n))
        if entry.control == "weighted":
            numbers = {"value": entry.left, "low": entry.left_low, "high": entry.left_high}
            left = f"share of the effect that remains, {name}{where}"
            rows.append(make_row(left, **place, **_without_nan(numbers), n=n))
    return rows


def _without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


def describe_statistic_sets(table: pd.DataFrame, where: str) -> str:
    """Describe how well each set tells the stages alone, and which set leaves the least of the effect.

    Args:
        table: the result of `measure_statistic_sets`.
        where: the data, such as "the recorded template".
    """
    effect = table[table["control"] == "none"].iloc[0]
    text = f"What statistics leave of first against last on {where} ({effect['accuracy']:z.2f} without a control)."
    alone = table[table["control"] == "alone"]
    listed = ", ".join(f"{row.accuracy:z.2f} from the {row.statistics}" for row in alone.itertuples(index=False))
    text += f" Statistics alone: {listed}."
    weighted = table[table["control"] == "weighted"]
    known = weighted[np.isfinite(weighted["left"].to_numpy(float))]
    for row in known.itertuples(index=False):
        text += (
            f" Weighted to equal {row.statistics}, {row.left:z.2f} of the effect remains ({row.left_low:z.2f} to "
            f"{row.left_high:z.2f})."
        )
    unknown = weighted[~np.isfinite(weighted["accuracy"].to_numpy(float))]["statistics"].tolist()
    if unknown:
        text += (
            f" Nothing can be said at equal values of these, because they separate the stages: {'; '.join(unknown)}."
        )
    if len(known) > 1:
        single = known[known["statistics"] != TOGETHER]
        least = (single if len(single) else known).sort_values("left").iloc[0]
        text += f" The least remains at an equal {least['statistics']}." if least["left"] < 1 else ""
    return text
