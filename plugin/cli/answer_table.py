"""The answer of `stratalens analyze`: the best places, and the order of ordered groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from stratalens.plugin.cli.analysis_options import as_options
from stratalens.plugin.cli.output import emit_table, print_status

if TYPE_CHECKING:
    import xarray as xr

    from stratalens.analyses.suite import Suite

ROWS = 5
COLUMNS = ("stage", "layer", "token", "pair", "estimate", "low", "high", "null", "p", "p_max")
ALPHA = 0.05


def answer_of(suite: Suite) -> dict[str, Any]:
    """Return the answer of an analysis, for `--json` and for the table.

    Returns:
        Dict with these entries:

        - by, ordered: the label column, and whether its groups have an order
        - measure: the measure of the best places
        - permutations: label shuffles of the probes
        - note: permutations that a claim about the best place needs; empty if there are enough
        - best: one dict a place, with the columns stage, layer, token, pair, estimate, low, high, null, p and p_max;
          None where a number is unknown
        - order: inner rank correlation, its p and the least possible p at the last stage, deepest layer and last token
        - left_out: one sentence for each analysis that could not be computed
    """
    answer: dict[str, Any] = {"by": suite.by, "ordered": suite.ordered, "best": [], "left_out": list(suite.skipped)}
    probes = suite.results.get(suite.headline)
    if probes is not None:
        from stratalens.analyses.accessor import Strata

        best = Strata(probes).best(n=ROWS)
        answer["measure"] = str(best["measure"].iloc[0]) if len(best) else "accuracy"
        answer["permutations"] = int(probes.attrs.get("permutations", 0))
        answer["note"] = as_options(str(best.attrs.get("note", "")))
        answer["best"] = [{name: _plain(row.get(name)) for name in COLUMNS} for row in best.to_dict("records")]
    projection = suite.results.get("projection")
    if projection is not None:
        answer["order"] = _order(cast("xr.Dataset", projection))
    return answer


def show_answer(answer: Mapping[str, Any]) -> None:
    """Print the best places to standard output, and what p can reach to standard error."""
    if answer["best"]:
        order = "in order" if answer["ordered"] else "without an order"
        rows = [_cells(row) for row in answer["best"]]
        shown = [i for i, name in enumerate(COLUMNS) if name in ("estimate", "low", "high") or any(r[i] for r in rows)]
        title = f"best places for {answer['by']} ({order}): {answer['measure'].replace('_', ' ')} of the probe"
        columns = [COLUMNS[i].replace("p_max", "p max") for i in shown]
        emit_table(title, columns, [[row[i] for i in shown] for row in rows], borders=False)
        print_status(_p_note(answer))
    if answer.get("order"):
        emit_table("order at the last stage, layer and token", ["what", "value"], _order_rows(answer))


def _p_note(answer: Mapping[str, Any]) -> str:
    """Say what the two p-values compare, and how many permutations a claim needs if it cannot be reached."""
    if not answer["permutations"]:
        return answer["note"] or "no p-values"
    text = "p max allows for the choice of the best of all places; p does not"
    return f"{text}. {answer['note'][:1].upper()}{answer['note'][1:]}" if answer["note"] else text


def _order(projection: xr.Dataset) -> dict[str, Any]:
    here = projection.isel({d: -1 for d in ("stage", "layer", "token") if d in projection.dims})
    names = ("inner_rank_correlation", "inner_rank_correlation_p", "rank_correlation", "rank_correlation_p")
    numbers = {name: _plain(float(here[name])) for name in names if name in here}
    least = projection.attrs.get("least_p")
    return {**numbers, "least_p": None if least is None else _plain(float(least)), "groups": projection.sizes["group"]}


def _order_rows(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    order = answer["order"]
    rows = [("rank correlation of the inner groups", _number(order.get("inner_rank_correlation")))]
    p, least = order.get("inner_rank_correlation_p"), order.get("least_p")
    if least is None or least > ALPHA:
        bound = f" (at least {least:.2g})" if least is not None else ""
        rows.append(("p under random orders of them", f"cannot reach {ALPHA:g} with {order['groups']} groups{bound}"))
    else:
        rows.append(("p under random orders of them", _number(p, 3)))
    rows.append(("rank correlation of all groups", _number(order.get("rank_correlation"))))
    rows.append(("p with no difference between groups", _number(order.get("rank_correlation_p"), 3)))
    return rows


def _cells(row: Mapping[str, Any]) -> list[str]:
    texts = []
    for name in COLUMNS:
        value = row[name]
        digits = 3 if name in ("p", "p_max") else 2
        texts.append(_number(value, digits) if name in COLUMNS[4:] else "" if value is None else str(value))
    return texts


def _number(value: Any, digits: int = 2) -> str:
    """Return a number as text; empty if it is unknown."""
    return "" if value is None else f"{value:z.{digits}f}"


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: NaN as None, NumPy scalars as Python numbers."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
