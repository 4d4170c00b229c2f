"""First screen of the report: the answer in one line, and four numbers with interval and null.

The line and the tiles use the numbers of the sentences at one place: the last stage that trained a group, the deepest
layer and the last token. No other place is searched, so none of them is the largest of many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.plots.probes import common_pairs, comparison_rows, is_multiclass, main_pair, plain_measure
from stratalens.analyses.plots.spec import SLIDER_DIMS, plain_text, values_of
from stratalens.analyses.plots.wording import GroupWords, group_words
from stratalens.analyses.report.caveats import control_rows, untrained_pair_mask
from stratalens.analyses.report.control_sentences import ACTIVATIONS, ALONE, NO_OVERLAP, REGRESSED, WEIGHTED
from stratalens.analyses.report.group_sentences import ALPHA, LEAST_GROUPS
from stratalens.analyses.report.phrases import Numbers, compare_with_chance, is_different
from stratalens.analyses.stats.estimates import PARTS, estimate, judged_measure, pair_mean

INNER_ORDER = "inner_rank_correlation"
MOST_TILES = 4


@dataclass(frozen=True)
class Tile:
    """One number of the first screen.

    Attributes:
        label: what the number measures.
        value: the number as text.
        interval: its 95 % interval as text; empty without one.
        null: value without any signal, as text.
        words: comparison with the null.
        place: stage, layer and token.
        bar: positions of value, low, high and null on the scale of the tile, in percent; low and high are those of the
            value without an interval.
    """

    label: str
    value: str
    interval: str
    null: str
    words: str
    place: str
    bar: Mapping[str, float]


def verdict(results: Mapping[str, Any], stage: str = "") -> str:
    """Return the answer of the report in one line; empty without probes.

    Args:
        results: results of the report by name.
        stage: stage at which the groups are compared; empty = the last one.

    Returns:
        "Yes", "Partly" or "No" with the reasons. "Yes" needs an effect that remains under the controls and, of ordered
        groups, an order that is distinguishable from random orders.
    """
    main = _main_result(results)
    if main is None:
        return ""
    words, numbers = group_words(main), _numbers(main, stage)
    if not np.isfinite(numbers["value"]):
        return ""
    separate = _above(numbers)
    order = _order_state(results, words, stage)
    remains, control = _control_clause(results, stage, separate)
    if not separate and order != "shown":
        answer = "No"
    elif separate and remains and order in ("shown", ""):
        answer = "Yes" if control else "Yes, before controls"
    else:
        answer = "Partly"
    clauses = [f"{_subject(main)} {'are' if separate else 'are not'} distinguished ({numbers['value']:z.2f})"]
    if order:
        clauses.append(f"{words.order} {_ORDER_WORDS[order]}")
    clauses += [control] if control else []
    return f"{answer}: {'; '.join(clauses)}."


_ORDER_WORDS = {
    "shown": "is shown by the groups between the first and the last",
    "not shown": "is not shown by the groups between the first and the last",
    "not tested": "cannot be tested with these groups",
}


def _order_state(results: Mapping[str, Any], words: GroupWords, stage: str) -> str:
    """Return whether the order is shown; empty for groups without one, or without a projection."""
    projection = results.get("projection")
    if not words.ordered or projection is None:
        return ""
    least = float(projection.attrs.get("least_p", np.nan))
    if INNER_ORDER not in projection or projection.sizes["group"] < LEAST_GROUPS or not least <= ALPHA:
        return "not tested"
    inner = _numbers(projection, stage, INNER_ORDER, 0.0)
    if not np.isfinite(inner["p"]):
        return "not tested"
    return "shown" if inner["p"] <= ALPHA and inner["value"] > 0 else "not shown"


def _control_clause(results: Mapping[str, Any], stage: str, separate: bool) -> tuple[bool, str]:
    """Return whether an effect remains under the controls, and the clause that says so; empty without controls."""
    rows = _control_numbers(results, stage)
    known = {label: numbers for label, numbers in rows.items() if np.isfinite(numbers["value"])}
    alone = [known[label] for label in ALONE if label in known]
    if not separate or not alone or ACTIVATIONS not in known:
        return True, ""
    statistics = max(alone, key=lambda numbers: numbers["value"] - numbers["null"])
    if not _above(statistics):
        return True, "norms, losses and confidence alone do not separate them"
    reach = f"norms, losses and confidence alone reach {statistics['value']:z.2f}"
    adjusted = [known[label] for label in (WEIGHTED, REGRESSED) if label in known]
    if adjusted and all(_above(numbers) for numbers in adjusted):
        remaining = min(numbers["value"] for numbers in adjusted)
        return True, f"{reach}, and with these controlled {remaining:z.2f} remains"
    if statistics["value"] > NO_OVERLAP:
        return False, f"{reach}, so the effect cannot be separated from them"
    return False, f"{reach}, and with these controlled no effect is certain" if adjusted else reach


def tiles(results: Mapping[str, Any], stage: str = "") -> list[Tile]:
    """Return at most four numbers of the first screen.

    Args:
        results: results of the report by name.
        stage: stage at which the groups are compared; empty = the last one.
    """
    main = _main_result(results)
    if main is None:
        return []
    shown: list[Tile | None] = []
    projection = results.get("projection")
    if projection is not None and INNER_ORDER in projection and group_words(projection).ordered:
        label = "rank correlation of the inner groups with their order"
        shown.append(_tile(label, projection, stage, INNER_ORDER, 0.0))
    shown.append(_tile(f"{plain_measure(judged_measure(main))}, {_subject(main)}", main, stage))
    rows = _control_results(results)
    pairs = max((values_of(data, "pair") for data in rows.values()), key=len, default=[])
    same = main_pair(main) in [str(pair) for pair in pairs]
    which = plain_text(pairs[0]).replace(" v ", " and ") if len(pairs) == 1 else f"{len(pairs)} pairs"
    which = _subject(main) if same else which
    if not same and ACTIVATIONS in rows and len(rows) > 1:
        shown.append(_tile(f"accuracy of {which}", rows[ACTIVATIONS], stage))
    names = {ALONE[0]: f"{ALONE[0]}, {which}", WEIGHTED: f"{which}, {WEIGHTED}"}
    names[REGRESSED] = f"{which}, norms, losses and confidence regressed out"
    shown += [_tile(label, rows[name], stage) for name, label in names.items() if name in rows]
    shown.append(_untrained_tile(main))
    return [tile for tile in shown if tile is not None][:MOST_TILES]


def _untrained_tile(main: xr.Dataset) -> Tile | None:
    """Return the main number at the stage before any training; None without such a stage."""
    mask = untrained_pair_mask(main)
    if mask is None:
        return None
    before = mask["stage"].values[mask.values.all(axis=1)]
    return _tile(f"before training, {_subject(main)}", main, str(before[0])) if len(before) else None


def _main_result(results: Mapping[str, Any]) -> xr.Dataset | None:
    """Return the probe of the first and the last group of ordered groups, else the probe of all groups."""
    probes, multiclass = results.get("probes"), results.get("multiclass")
    if isinstance(probes, xr.Dataset) and (main_pair(probes) or not isinstance(multiclass, xr.Dataset)):
        return probes
    return multiclass if isinstance(multiclass, xr.Dataset) else None


def _subject(main: xr.Dataset) -> str:
    pair = main_pair(main)
    if pair:
        return plain_text(pair).replace(" v ", " and ")
    if is_multiclass(main):
        return f"the {main.sizes.get('group', 0)} groups of {group_words(main).by}"
    pairs = values_of(main, "pair")
    return plain_text(pairs[0]).replace(" v ", " and ") if len(pairs) == 1 else f"{len(pairs)} pairs of groups"


def _control_results(results: Mapping[str, Any]) -> dict[str, xr.Dataset]:
    rows = control_rows(results)
    return common_pairs(comparison_rows(rows)) if rows else {}


def _control_numbers(results: Mapping[str, Any], stage: str) -> dict[str, Numbers]:
    return {label: _numbers(data, stage) for label, data in _control_results(results).items()}


def _numbers(data: xr.Dataset, stage: str, name: str | None = None, chance: float | None = None) -> Numbers:
    """Return value, low, high, null and p at the place of the first screen."""
    if name is not None:
        result = estimate(data, name, chance)
    else:
        pair, pairs = main_pair(data), [str(p) for p in values_of(data, "pair")]
        result = estimate(data)
        several = "pair" in result.dims
        result = result.isel(pair=pairs.index(pair)) if several and pair in pairs else pair_mean(data)
    place = _place(data, stage)
    result = result.sel({dim: value for dim, value in place.items() if dim in result.dims})
    return {part: float(result[part]) for part in PARTS}


def _place(data: xr.Dataset, stage: str) -> dict[str, Any]:
    """Return the stage, the deepest layer and the last token of a result, where it has them."""
    place = {}
    for dim in SLIDER_DIMS:
        values = values_of(data, dim)
        if values:
            preferred = {"stage": stage, "token": "last"}.get(dim)
            place[dim] = preferred if preferred in values else values[-1]
    return place


def _tile(
    label: str, data: xr.Dataset, stage: str, name: str | None = None, chance: float | None = None
) -> Tile | None:
    numbers = _numbers(data, stage, name, chance)
    if not np.isfinite(numbers["value"]):
        return None
    low, high = numbers["low"], numbers["high"]
    interval = bool(np.isfinite(low) and np.isfinite(high))
    least = -1.0 if name == INNER_ORDER or min(numbers["value"], low if interval else 0.0) < 0 else 0.0
    positions = {
        "value": numbers["value"],
        "low": low if interval else numbers["value"],
        "high": high if interval else numbers["value"],
        "null": numbers["null"],
    }
    words = compare_with_chance(numbers)
    if name == INNER_ORDER:
        words = f"p = {numbers['p']:.2g} under random orders" if np.isfinite(numbers["p"]) else "not tested"
    return Tile(
        label=label,
        value=f"{numbers['value']:z.2f}",
        interval=f"[{low:z.2f}, {high:z.2f}]" if interval else "",
        null=f"{numbers['null']:z.2f}" if np.isfinite(numbers["null"]) else "",
        words=words,
        place=", ".join(f"{dim} {plain_text(value)}" for dim, value in _place(data, stage).items()),
        bar={key: _percent(value, least) for key, value in positions.items()},
    )


def _percent(value: float, least: float) -> float:
    share = (value - least) / (1 - least) if np.isfinite(value) else 0.0
    return round(100 * min(max(share, 0.0), 1.0), 1)


def _above(numbers: Numbers) -> bool:
    return is_different(numbers) and numbers["value"] > numbers["null"]
