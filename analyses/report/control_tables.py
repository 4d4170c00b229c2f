"""Tables of the report: what each control, and each set of statistics, leaves of an effect."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.plots.spec import plain_text

#: Names of the rows of `sl.control_table` on the page; other rows are shown under their own name.
ROW_LABELS = {
    "probe": "activations",
    "normalized": "activations at unit length",
    "statistics": "norms, losses, confidence alone",
    "statistics_boosting": "norms, losses, confidence alone (boosting)",
    "matched: all": "matching: trained on all rows",
    "matched: matched": "matching: trained on matched rows",
    "matched: random_subsample": "matching: trained on as many rows at random",
    "matched: matched, unmatched test rows": "matching: trained on matched rows, unmatched test rows",
    "weighted": "weighted to equal statistics",
    "conditional": "compared with labels drawn from the statistics",
    "residual": "activations, statistics regressed out",
    "random_direction": "a random direction",
    "shuffled_label": "labels shuffled",
    "shuffled_entity": "entities shuffled",
    "untrained_stage": "before training",
}


@dataclass(frozen=True)
class Table:
    """A table of the page; all cells are text."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def control_table(table: xr.Dataset) -> Table:
    """Tabulate the effect that remains under each control.

    Args:
        table: result of `sl.control_table`; the last stage, the deepest layer, the last token and the first pair
            are shown, of groups without an order the mean over pairs.
    """
    index: dict[Hashable, int] = {dim: -1 for dim in ("stage", "layer", "token") if dim in table["accuracy"].dims}
    pairs = table["accuracy"].sizes.get("pair", 0)
    averaged = pairs > 1 and not table.attrs.get("ordered", True)
    if pairs and not averaged:
        index["pair"] = 0
    here = table.isel(index)
    if averaged:  # a mean of bounds is wider than the interval of the mean
        here = here.mean("pair", skipna=False)
    rows = []
    for name in map(str, table["control"].values):
        row = here.sel(control=name)
        matched = str(row["matched_on"].item()) if "matched_on" in row.coords else ""
        site = str(table.attrs.get("site", ""))
        label = ROW_LABELS.get(name, name)
        if matched:
            label += f" (matched on {matched.replace(f'{site}_', '')})"
        cells = [_cell(row, key) for key in ("accuracy", "lost", "left")]
        rows.append((plain_text(label), *cells))
    words = [
        f"{dim} {plain_text(here[dim].item())}" for dim in ("stage", "layer", "token", "pair") if dim in here.coords
    ]
    words += [f"mean over {pairs} pairs"] if averaged else []
    caption = f"Remaining effect at {', '.join(words)}; 95 % intervals over entities, paired by entity"
    lost = "accuracy lost"
    if table.attrs.get("measure") == "auc":
        caption += ". The classes are unequal, so effects are AUC above 0.50"
        lost = "AUC lost"
    return Table(caption, ("control", "accuracy", lost, "remaining share of the effect"), tuple(rows))


def statistic_set_table(table: pd.DataFrame) -> Table:
    """Tabulate what each set of statistics leaves of the effect of the first against the last group.

    Args:
        table: columns statistics, control, bins, accuracy, accuracy_low, accuracy_high, null, left, left_low,
            left_high, support.
    """
    rows = []
    for entry in table.to_dict("records"):
        label = str(entry["control"]) + (f", {entry['bins']} bins" if entry["bins"] else "")
        numbers = [
            f"{entry[key]:z.2f} ({entry[f'{key}_low']:z.2f} to {entry[f'{key}_high']:z.2f})"
            if np.isfinite(entry[key])
            else "not known"
            for key in ("accuracy", "left")
        ]
        null, support = (f"{entry[key]:z.2f}" if np.isfinite(entry[key]) else "" for key in ("null", "support"))
        rows.append((plain_text(str(entry["statistics"]) or "none"), plain_text(label), *numbers, null, support))
    caption = (
        "What sets of statistics leave of the effect; 95 % intervals over entities. Matching has a random subsample of "
        "the same size next to it. Without common support nothing is known"
    )
    columns = ("statistics", "control", "accuracy", "remaining share of the effect", "null", "common support")
    return Table(caption, columns, tuple(rows))


def _cell(row: xr.Dataset, key: str) -> str:
    value, low, high = (float(row[name]) for name in (key, f"{key}_low", f"{key}_high"))
    if not np.isfinite(float(row["accuracy"])):
        return "too few rows" if key == "accuracy" else "not known"
    if not np.isfinite(value):
        return "undefined: the activations are not above chance" if key == "left" else "not known"
    return f"{value:z.2f} ({low:z.2f} to {high:z.2f})" if np.isfinite(low) else f"{value:z.2f}"
