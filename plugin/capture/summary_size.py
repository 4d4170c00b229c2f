"""How large a summary is, next to the store of the same activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stratalens.plugin.capture.summary_plan import needed_order
from stratalens.plugin.capture.summary_sums import bytes_per_cell
from stratalens.store.errors import InputError

SHARE = 0.01  # a summary pays from the rows on where it takes this share of the store


def summary_size(
    *,
    layers: int,
    features: int,
    rows: int,
    groups: int = 2,
    tokens: int = 1,
    stages: int = 1,
    probes: Sequence[str] | None = None,
    sample: int = 256,
    itemsize: int = 2,
    order: str | None = None,
) -> dict[str, Any]:
    """Forecast the size of a summary of one site from its shape alone; no model is needed.

    Args:
        layers: recorded blocks.
        features: size of an activation, such as `d_model`.
        rows: activations of each token position: prompts, or all tokens where positions="all".
        groups: groups of the label, or token classes.
        tokens: token positions; 1 for positions="all".
        stages: number of stages.
        probes: as in `summarize`.
        sample: as in `summarize`.
        itemsize: bytes of a stored value: 2 for bfloat16, 4 for float32.
        order: order of the sums instead of the probes: "vectors", "scatter" or "squares".

    Returns:
        - bytes: the finished summary, without a few hundred kilobytes of metadata.
        - working_bytes: most disk space during the run, with the unfinished stage and its replacement.
        - device_bytes: sums on the model's device, in addition to the model.
        - stored_bytes: the activations that a store would hold.
        - share: bytes / stored_bytes.
        - rows_for_one_percent: rows from which on the summary takes less than 1 % of the stored bytes.

    Raises:
        InputError: a number is not positive, or an unknown probe.

    Example:
        >>> size = summary_size(layers=16, features=2048, rows=10**9)
        >>> size["bytes"] < 2e9, size["share"] < 1e-4, size["rows_for_one_percent"]
        (True, True, 2155300)
    """
    numbers = {"layers": layers, "features": features, "rows": rows, "groups": groups, "tokens": tokens}
    for name, value in {**numbers, "stages": stages, "itemsize": itemsize}.items():
        if value < 1:
            raise InputError(f"{name}={value!r} is not valid. Pass a number from 1.")
    cells = layers * tokens * groups
    finished, device = bytes_per_cell(order or needed_order(probes, by=""), features)
    sampled = cells * sample * features * 4
    per_stage = cells * finished + sampled + tokens * groups * (sample * 3 + 2) * 8
    per_row = layers * tokens * features * itemsize * stages
    total = per_stage * stages
    return {
        "bytes": total,
        "working_bytes": total + 2 * (cells * device + sampled),
        "device_bytes": cells * device,
        "stored_bytes": per_row * rows,
        "share": total / (per_row * rows),
        "rows_for_one_percent": rows_for_one_percent(total, per_row),
    }


def rows_for_one_percent(total: float, per_row: float) -> int:
    """Rows from which on a summary takes less than 1 % of the stored bytes.

    Args:
        total: bytes of the summary.
        per_row: bytes that a store holds for one row.

    Example:
        >>> rows_for_one_percent(1000, 10)
        10001
    """
    return math.floor(total / (SHARE * per_row)) + 1
