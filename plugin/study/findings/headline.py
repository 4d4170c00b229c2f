"""Headline numbers of a study, each with interval, null and n; and what they say, in words.

The words follow from the numbers alone: a weak or absent effect is called so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stratalens.analyses.stats.estimates import estimate

if TYPE_CHECKING:
    import xarray as xr


Row = dict[str, Any]


def headline_row(
    name: str, result: xr.Dataset, variable: str, n: int, chance: float | None = None, **place: Any
) -> Row:
    """One headline number: a row of summary.json.

    Args:
        name: what it is, in words that stay the same from run to run.
        result: of an analysis verb.
        variable: the estimate in it.
        n: entities it rests on.
        chance: what is expected without any effect, where the result has no null of its own.
        place: labels to select (stage, layer, token, pair ...).
    """
    chosen = {dim: label for dim, label in place.items() if dim in result.dims}
    here = result.sel(chosen)
    found = estimate(here, variable, chance).squeeze()
    site = str(result.attrs.get("site", ""))
    numbers = {part: _number(found[part]) for part in ("value", "low", "high", "null", "p")}
    if variable == "accuracy" and "accuracy_mean" in here:  # over all rows, as the interval is
        numbers["value"] = _number(here["accuracy_mean"].squeeze())
    return {
        "name": name,
        "stage": _plain(place.get("stage")),
        "layer": _plain(place.get("layer")),
        "token": _plain(place.get("token")),
        **numbers,
        "n": n,
        "site": site,
    }


def _number(value: xr.DataArray) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def describe_headline(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the headline rows say about order and separability, in sentences."""
    by_name: dict[str, Mapping[str, Any]] = {str(row["name"]): row for row in rows}
    said = []
    for name in ("early v late accuracy", "first v last accuracy", "early v late accuracy after the final norm"):
        row = by_name.get(name)
        if row is not None and row["value"] is not None:
            said.append(_describe_accuracy(row, by_name.get(f"{name}, untrained")))
    for name in (
        "rank correlation of held-out centroids",
        "rank correlation of held-out centroids after the final norm",
    ):
        row = by_name.get(name)
        if row is not None and row["value"] is not None:
            said.append(_describe_order(row))
    return said


def _describe_accuracy(row: Mapping[str, Any], untrained: Mapping[str, Any] | None) -> str:
    value, low, null = row["value"], row["low"], row["null"]
    clear = low is not None and null is not None and low > null and (row["p"] is None or row["p"] < 0.05)
    strength = (
        "this is not told from chance"
        if not clear
        else "a clear effect"
        if value >= 0.75
        else "an effect of moderate size"
        if value >= 0.6
        else "a weak effect"
    )
    text = f"{_title(row)}: {value:z.2f}{_interval(row)}, shuffled labels {_format_null(null)}{_p(row)}: {strength}."
    if untrained is not None and untrained["value"] is not None:
        text += f" The untrained model at the same place: {untrained['value']:z.2f}{_interval(untrained)}."
    return text


def _describe_order(row: Mapping[str, Any]) -> str:
    value, p = row["value"], row["p"]
    strength = (
        "the order of training is there"
        if p is not None and p < 0.05 and value >= 0.9
        else "the order is there in part"
        if p is not None and p < 0.05 and value > 0
        else "no order is shown"
    )
    return f"{_title(row)}: {value:z.2f}{_interval(row)}, shuffled labels {_format_null(row['null'])}{_p(row)}: {strength}."


def _title(row: Mapping[str, Any]) -> str:
    where = [f"stage {row['stage']}", f"token {row['token']}"]
    if row["layer"] is not None:
        where.insert(1, f"layer {row['layer']}")
    name = str(row["name"])
    return f"{name[0].upper()}{name[1:]} ({row['site']}, {', '.join(where)}, {row['n']} entities)"


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None or row["high"] is None:
        return ""
    return f" (95 % interval {row['low']:z.2f} to {row['high']:z.2f})"


def _p(row: Mapping[str, Any]) -> str:
    return "" if row["p"] is None else f", p = {row['p']:z.3f}"


def _format_null(value: float | None) -> str:
    return "not known" if value is None else f"{value:z.2f}"
