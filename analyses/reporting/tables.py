"""Tables of the report that are not the numbers of a figure: what is left of the effect after each control."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from stratalens.analyses.plots.picture import plain

#: How rows of `sl.control_table` are called on the page; others keep their own name.
ROW_LABELS = {
    "probe": "activations",
    "normalized": "activations at unit length",
    "statistics": "norms, losses, confidence alone",
    "matched: all": "matching: all rows",
    "matched: matched": "matching: matched rows",
    "matched: random_subsample": "matching: as many rows at random",
    "residual": "activations, statistics regressed out",
    "random_direction": "a random direction",
    "shuffled_label": "labels shuffled",
    "shuffled_entity": "entities shuffled",
    "untrained_stage": "before training",
}


@dataclass(frozen=True)
class Table:
    """A table as it stands on the page: texts only."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def control_rows(table: xr.Dataset) -> Table:
    """What is left after each control, at the last stage, the deepest layer, the last token and the first pair.

    Args:
        table: result of `sl.control_table`.
    """
    place: dict[Hashable, int] = {dim: -1 for dim in ("stage", "layer", "token") if dim in table["accuracy"].dims}
    if "pair" in table["accuracy"].dims:
        place["pair"] = 0
    here = table.isel(place)
    rows = []
    for name in map(str, table["control"].values):
        row = here.sel(control=name)
        rows.append((plain(ROW_LABELS.get(name, name)), *(_cell(row, key) for key in ("accuracy", "lost", "left"))))
    where = [f"{dim} {plain(here[dim].item())}" for dim in ("stage", "layer", "token", "pair") if dim in here.coords]
    caption = f"What is left of the effect at {', '.join(where)}; 95 % intervals over entities, paired by entity"
    return Table(caption, ("control", "accuracy", "accuracy lost", "share of the effect left"), tuple(rows))


def _cell(row: xr.Dataset, key: str) -> str:
    value, low, high = (float(row[name]) for name in (key, f"{key}_low", f"{key}_high"))
    if not np.isfinite(float(row["accuracy"])):
        return "too few rows" if key == "accuracy" else "not known"
    if not np.isfinite(value):
        return "no number: the activations are not above chance" if key == "left" else "not known"
    return f"{value:z.2f} ({low:z.2f} to {high:z.2f})" if np.isfinite(low) else f"{value:z.2f}"
