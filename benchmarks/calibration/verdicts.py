"""Count false verdicts: statistics explain the groups, nothing else is left, and a control still claims an effect.

    python -m benchmarks.calibration.verdicts [--cells PATTERN ...] [--datasets N] [--quick] [--again] [--unclear]

The same controls then see a real effect next to a linear confound, which shows their power.
Not part of the suite of benchmarks: a full run takes hours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy.typing as npt
import xarray as xr

from benchmarks.calibration.cells import FALSE, POWER, Cell, Draws
from benchmarks.calibration.confounds import CONFOUNDS, STATISTICS, confounded
from benchmarks.calibration.designs import GROUP
from benchmarks.calibration.readers import RUN, claims, conditional_p, function, matched_rows
from benchmarks.calibration.runner import main

EFFECT = 0.6  # the real effect, in standard deviations of the noise; alone it gives an accuracy of .62
CLAIM = "claims an effect"
Control = Callable[[xr.Dataset, int], dict[str, npt.NDArray[Any]]]


def matched(ds: xr.Dataset, seed: int, **options: Any) -> dict[str, npt.NDArray[Any]]:
    """Judge by the matched probe, on matched test rows and, for comparison, on all test rows."""
    result = function("matched_probe")(ds, GROUP, small="nan", seed=seed, **options, **RUN)
    rows = matched_rows(result, "matched")
    out = {f"{CLAIM}, scored on {scored} rows": claims(r) for scored, r in rows.items() if scored != "matched"}
    return ({CLAIM: claims(rows["matched"])} if "matched" in rows else {}) | out


def interval(name: str, ds: xr.Dataset, seed: int, **options: Any) -> dict[str, npt.NDArray[Any]]:
    """Judge by the interval of a control."""
    return {CLAIM: claims(function(name)(ds, GROUP, STATISTICS, seed=seed, **options, **RUN))}


def default(ds: xr.Dataset, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Judge as the sentences of a report do first: by the weighted probe with its own choice of statistics."""
    return {CLAIM: claims(function("weighted_probe")(ds, GROUP, seed=seed, **RUN))}


def conditional(ds: xr.Dataset, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Judge by the p-values of the conditional test."""
    values = conditional_p(function("conditional_test")(ds, GROUP, STATISTICS, permutations=99, seed=seed, **RUN))
    return {f"{CLAIM}, {words}" if len(values) > 1 else CLAIM: p for words, p in values.items()}


# Heading, and function of (data, seed) that returns claims by their words; the first one is the default verdict.
CONTROLS: dict[str, tuple[str, Control]] = {
    "default": ("default verdict: weighted_probe with its defaults", default),
    "matched-default": ("matched_probe with its defaults", matched),
    "matched-bins": ("matched_probe, 10 bins of both statistics", partial(matched, statistics=STATISTICS, bins=10)),
    "matched-nearest": ("matched_probe, nearest", partial(matched, statistics=STATISTICS, method="nearest")),
    "residual-linear": ("residual_probe, linear", partial(interval, "residual_probe", kind="linear")),
    "residual-spline": ("residual_probe, spline", partial(interval, "residual_probe", kind="spline")),
    "weighted": ("weighted_probe", partial(interval, "weighted_probe")),
    "conditional": ("conditional_test", conditional),
}
SIZE = 300  # entities of each class


def draw(control: str, confound: str, effect: float, seed: int, number: int) -> Draws:
    """Return the claims of a control about every data set."""
    return CONTROLS[control][1](confounded(confound, seed, number, SIZE, effect), seed % 1000)


CELLS: list[Cell] = []
for key, (heading, _) in CONTROLS.items():
    informative = (f"{CLAIM}, scored on unmatched rows",)
    for confound, generator in CONFOUNDS.items():
        own = partial(draw, key, confound, 0.0)
        setting = f"{confound}: {(generator.__doc__ or '').strip().rstrip('.')}"
        CELLS.append(Cell(f"verdict-{key}-{confound}", heading, FALSE, setting, own, batch=8, informative=informative))
    own = partial(draw, key, "shift", EFFECT)
    setting = f"a real effect of {EFFECT:g} sd next to the linear confound"
    CELLS.append(Cell(f"verdict-{key}-power", heading, POWER, setting, own, batch=8))

if __name__ == "__main__":
    main(__doc__, ["verdicts"])
