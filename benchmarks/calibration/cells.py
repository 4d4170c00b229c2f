"""A cell of the calibration: one analysis of one kind of data, its error rates over many data sets, and its aim."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL, POWER, COVERAGE, FALSE = "level", "power", "coverage", "false verdicts"
ALPHA = 0.05
# Lowest and highest rate that meet the aim, by kind.
AIMS: dict[str, tuple[float, float]] = {LEVEL: (0.0, 0.06), COVERAGE: (0.93, 1.0), FALSE: (0.0, 0.08)}
EXACT_LEVEL = (0.035, 0.06)  # of a permutation test of a measure without ties
MET, UNCLEAR, MISSED = "met", "unclear", "missed"

# By the words of each measure, one number a data set: a p-value, True for a wrong claim, or (value, low, high, truth)
# where the mean over the data sets replaces a truth that is NaN.
Draws = Mapping[str, npt.NDArray[Any]]


class NotAvailableError(Exception):
    """The installed version does not have the function that a cell calls."""


@dataclass(frozen=True)
class Cell:
    """One analysis of one kind of data.

    Attributes:
        name: of its document, unique.
        analysis: heading of its table.
        kind: LEVEL, POWER, COVERAGE or FALSE.
        setting: the data, in words.
        draw: function of (seed, number) that analyses so many independent data sets.
        batch: data sets of one call of `draw`, which share labels, splits and permutations.
        share: part of the data sets of a full run that this cell needs.
        exact: measures whose level is not only bounded but exact, because it has no ties.
        informative: measures without an aim.
    """

    name: str
    analysis: str
    kind: str
    setting: str
    draw: Callable[[int, int], Draws]
    batch: int = 20
    share: float = 1.0
    exact: tuple[str, ...] = ()
    informative: tuple[str, ...] = ()

    def aim(self, measure: str) -> tuple[float, float] | None:
        """Return the lowest and the highest rate that meet the aim, or None."""
        if measure in self.informative or self.kind == POWER:
            return None
        return EXACT_LEVEL if self.kind == LEVEL and measure in self.exact else AIMS[self.kind]


def summarize(cell: Cell, draws: Draws) -> list[dict[str, Any]]:
    """Return the rate of every measure, its Monte Carlo standard error, and the verdict.

    Returns:
        For each measure, a dict with measure, kind, n, missing, rate, error, aim and verdict; for intervals also the
        mean value, truth and width, and the rates of a truth below and above.
    """
    rows = []
    for measure, values in draws.items():
        if len(values) == 0 or np.isnan(values.astype(float)).all():
            continue
        if values.ndim == 2 and np.isnan(values[:, 1:3]).all():
            continue  # the analysis gives no interval here
        row = _coverage(values) if values.ndim == 2 else _rejections(values)
        aim = cell.aim(measure)
        row["error"] = standard_error(row["rate"], row["n"])
        row["aim"] = None if aim is None else list(aim)
        row["verdict"] = None if aim is None else judge(row["rate"], row["error"], aim)
        rows.append({"measure": measure, **row})
    return rows


def _rejections(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Share of p-values up to ALPHA, or of True; a missing value is no claim."""
    if values.dtype == bool:
        return {"n": len(values), "missing": 0, "rate": float(values.mean())}
    missing = np.isnan(values)
    claims = np.where(missing, 1.0, values) <= ALPHA + 1e-9
    return {"n": len(values), "missing": int(missing.sum()), "rate": float(claims.mean())}


def _coverage(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Share of the intervals (value, low, high, truth) that hold the truth."""
    known = ~np.isnan(values[:, :3]).any(axis=1)
    value, low, high, truth = values[known].T
    expected = float(value.mean() if np.isnan(truth).any() else truth.mean())
    below, above = expected < low - 1e-9, expected > high + 1e-9
    return {
        "n": int(known.sum()),
        "missing": int((~known).sum()),
        "rate": float(1 - (below | above).mean()),
        "truth_below": float(below.mean()),
        "truth_above": float(above.mean()),
        "value": float(value.mean()),
        "truth": expected,
        "width": float((high - low).mean()),
    }


def standard_error(rate: float, n: int) -> float:
    """Return the Monte Carlo standard error of a rate; two pseudo-counts keep it above zero at 0 and 1.

    >>> round(standard_error(0.05, 400), 3), round(standard_error(0.0, 400), 4)
    (0.011, 0.0025)
    """
    shrunk = (rate * n + 1) / (n + 2)
    return float(np.sqrt(shrunk * (1 - shrunk) / n))


def judge(rate: float, error: float, aim: tuple[float, float]) -> str:
    """Say whether a rate meets its aim; UNCLEAR = outside by less than two standard errors.

    >>> judge(0.05, 0.011, (0.035, 0.06)), judge(0.07, 0.012, (0.035, 0.06)), judge(0.2, 0.02, (0.035, 0.06))
    ('met', 'unclear', 'missed')
    """
    distance = max(aim[0] - rate, rate - aim[1])
    if distance <= 1e-9:
        return MET
    return UNCLEAR if distance < 2 * error else MISSED
