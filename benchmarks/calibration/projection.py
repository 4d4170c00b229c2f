"""Calibrate the p-values and the intervals of `project`, and its claim of an order.

    python -m benchmarks.calibration.projection [--cells PATTERN ...] [--datasets N] [--quick] [--again] [--unclear]

Not part of the suite of benchmarks: a full run takes hours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import xarray as xr

from benchmarks.calibration.cells import COVERAGE, LEVEL, POWER, Cell, Draws
from benchmarks.calibration.designs import GROUP, Design, names
from benchmarks.calibration.readers import RUN, function, intervals, p_values
from benchmarks.calibration.runner import main

STATISTICS = {
    "r2": "R2",
    "r2_corrected": "R2 without noise",
    "rank_correlation": "rank correlation",
    "kendall": "Kendall's correlation",
    "inner_rank_correlation": "inner rank correlation",
    "exact_order": "exact order",
}
EXACT = ("R2", "rank correlation", "Kendall's correlation")  # means over 20 splits, almost without ties
DESIGNS = {
    "iid": Design("6 x 12 entities", (12,) * 6, d=8, effect=0.25),
    "ragged": Design("6 x 12 entities x 1 to 6 rows, shared noise 1 sd", (12,) * 6, d=8, rows=6, ragged=True,
                     entity_sd=1.0, effect=0.35),
    "unbalanced": Design("40, 8, 8 and 20 entities", (40, 8, 8, 20), d=8, effect=0.5),
    "wide": Design("6 x 12 entities, 100 features (n < d)", (12,) * 6, d=100, effect=0.5),
    "small": Design("3 x 4 entities", (4, 4, 4), d=8, effect=2.0),
    "torn": Design("6 x 12 entities x 2 rows, 2 of each group in two", (12,) * 6, d=8, rows=2, entity_sd=1.0, torn=2,
                   effect=0.35),
}  # fmt: skip


def plane(design: Design, seed: int, number: int, effect: float, layout: str = "line", **options: Any) -> xr.Dataset:
    """Draw data sets and project their centroids."""
    ds = design.data(seed, number, effect, layout)
    result: xr.Dataset = function("project")(ds, GROUP, order=names(design), seed=seed % 1000, **options, **RUN)
    return result


def rejections(design: Design, permutations: int, effect: float, layout: str, seed: int, number: int) -> Draws:
    """Return the p-values of every data set."""
    return p_values(plane(design, seed, number, effect, layout, permutations=permutations, bootstrap=0), STATISTICS)


def coverage(design: Design, effect: float, seed: int, number: int) -> Draws:
    """Return the intervals of every data set; the truth is the mean of the estimates, as no closed form is known."""
    return intervals(plane(design, seed, number, effect, permutations=0, bootstrap=400), measures=STATISTICS)


CELLS: list[Cell] = []
for name, design in DESIGNS.items():
    for permutations, suffix in ((99, ""), (19, "-few")):
        if suffix and name != "iid":
            continue
        words = f"{design.words}, {permutations} permutations"
        for effect, kind, share in ((0.0, LEVEL, 1.0), (design.effect, POWER, 0.5)):
            draw = partial(rejections, design, permutations, effect, "line")
            cell_name = f"project-{kind}-{name}{suffix}"
            CELLS.append(Cell(cell_name, "project", kind, words, draw, share=share, exact=EXACT))

for count in (5, 6, 7, 9):
    design = Design(f"{count} x 12 entities", (12,) * count, d=8, effect=1.5)
    words = f"{design.words}, 99 permutations"
    # The groups have random means, so that the order of the call is a random order of separable groups.
    CELLS.append(
        Cell(
            f"project-random-order-{count}", "project, random orders of separable groups", LEVEL, words,
            partial(rejections, design, 99, design.effect, "random"),
            exact=("inner rank correlation",) if count > 5 else (),
            informative=tuple(words for words in STATISTICS.values() if words != "inner rank correlation"),
        )
    )  # fmt: skip
    CELLS.append(
        Cell(
            f"project-true-order-{count}", "project, random orders of separable groups", POWER, words,
            partial(rejections, design, 99, 0.5, "line"), share=0.5,
        )
    )  # fmt: skip

for label, design in {
    "noise": Design("6 x 12 entities, noise", (12,) * 6, d=8, effect=0.0),
    "weak": Design("6 x 12 entities, steps of 0.15 sd", (12,) * 6, d=8, effect=0.15),
    "middle": Design("6 x 12 entities, steps of 0.4 sd", (12,) * 6, d=8, effect=0.4),
    "strong": Design("6 x 12 entities, steps of 1 sd", (12,) * 6, d=8, effect=1.0),
    "large": Design("4 x 40 entities, steps of 0.3 sd", (40,) * 4, d=8, effect=0.3),
    "ragged": Design("6 x 12 entities x 1 to 6 rows, steps of 0.5 sd", (12,) * 6, d=8, rows=6, ragged=True,
                     entity_sd=1.0, effect=0.5),
    "unbalanced": Design("40, 8, 8 and 20 entities, steps of 0.5 sd", (40, 8, 8, 20), d=8, effect=0.5),
}.items():  # fmt: skip
    draw_intervals = partial(coverage, design, design.effect)
    CELLS.append(Cell(f"project-coverage-{label}", "project", COVERAGE, design.words, draw_intervals))

if __name__ == "__main__":
    main(__doc__, ["projection"])
