"""Calibrate the p-values and the intervals of `probe`, and of the best of several places.

    python -m benchmarks.calibration.probe [--cells PATTERN ...] [--datasets N] [--quick] [--again] [--unclear]

Not part of the suite of benchmarks: a full run takes hours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.calibration.cells import COVERAGE, LEVEL, POWER, Cell, Draws, NotAvailableError
from benchmarks.calibration.designs import GROUP, THREE, TWO, Design, names
from benchmarks.calibration.readers import QUALITY, RUN, flat, function, interval_claims, intervals, p_values
from benchmarks.calibration.runner import main
from benchmarks.calibration.truths import ordinal_truth, two_class_truth

PLACES = 4  # so few that 99 permutations can reach p <= .05 after a correction
EXACT = ("AUC", "R2")  # accuracy has many ties, which make its p-values larger
Options = dict[str, Any]


def fit(
    design: Design, options: Options, seed: int, number: int, effect: float = 0.0, layout: str = "line"
) -> xr.Dataset:
    """Draw data sets and fit their probes."""
    ds = design.data(seed, number, effect, layout)
    result: xr.Dataset = function("probe")(ds, GROUP, order=names(design), seed=seed % 1000, **options, **RUN)
    return result


def rejections(design: Design, options: Options, effect: float, layout: str, seed: int, number: int) -> Draws:
    """Return the p-values of every data set; without permutations, claims by the intervals."""
    result = fit(design, options, seed, number, effect, layout)
    return p_values(result) if options.get("permutations") else interval_claims(result)


def coverage(design: Design, options: Options, effect: float, layout: str, seed: int, number: int) -> Draws:
    """Return the intervals of every data set with the exact quality of its own fold probes."""
    result = fit(design, {"fold_coefs": True, **options}, seed, number, effect, layout)
    group, _ = design.labels(np.random.default_rng([seed, len(design.sizes), design.d]))
    rows = np.bincount(group)
    if options.get("pairs") == "ordinal":
        return intervals(result, {"r2": ordinal_truth(result, design, effect, rows)})
    if options.get("pairs") == "multiclass":  # no closed form: the truth is the mean of the estimates
        return intervals(result)
    return intervals(result, two_class_truth(result, design, effect, rows))


def best_place(
    design: Design, options: Options, places: int, shared: float, effect: float, seed: int, number: int
) -> Draws:
    """Return the smallest p-values of several places; a planted effect is at the first place only."""
    rows: dict[str, list[float]] = {}
    for i in range(number):
        ds = design.data(1000 * seed + i, places, shared=shared)
        if effect:
            planted = design.data(1000 * seed + i, places, effect, shared=shared)
            ds = ds.assign(resid_post=xr.where(ds["layer"] == 0, planted["resid_post"], ds["resid_post"]))
            ds = ds.assign(resid_post=ds["resid_post"].transpose("layer", "entity", "token", "d_model"))
        result = function("probe")(ds, GROUP, order=names(design), seed=i, **options, **RUN)
        if "accuracy_p_max" not in result:
            raise NotAvailableError("the result of probe has no accuracy_p_max")
        for name, words in QUALITY.items():
            if f"{name}_p_max" in result:
                smallest = {
                    "p_max": flat(result[f"{name}_p_max"]),
                    "false discovery rate": flat(function("fdr")(result[f"{name}_p"])),
                    "p, not corrected": flat(result[f"{name}_p"]),
                }
                for kind, values in smallest.items():
                    own = values[:1] if effect else values
                    rows.setdefault(f"{words}, {kind}", []).append(float(np.nanmin(own)))
    return {name: np.array(values) for name, values in rows.items()}


def level_and_power(
    analysis: str, key: str, designs: dict[str, Design], options: Options, layout: str = "line", batch: int = 20
) -> list[Cell]:
    """Return a cell of the level and one of the power for each design."""
    cells = []
    for name, design in designs.items():
        shared: dict[str, Any] = {"batch": batch, "exact": EXACT}
        null, planted = (partial(rejections, design, options, effect, layout) for effect in (0.0, design.effect))
        words = (
            f"{design.words}, {options['permutations']} permutations" if options.get("permutations") else design.words
        )
        cells.append(Cell(f"probe-{key}-level-{name}", analysis, LEVEL, words, null, **shared))
        cells.append(Cell(f"probe-{key}-power-{name}", analysis, POWER, words, planted, share=0.5, **shared))
    return cells


def covered(key: str, analysis: str, design: Design, options: Options, layout: str = "line") -> Cell:
    """Return a cell of the coverage of intervals with the effect of a design."""
    signal = f"signal {design.effect:g} sd" if design.effect else "noise"
    words = f"{design.words}, {design.d} features, {signal}"
    name = f"probe-coverage-{key}"
    return Cell(name, analysis, COVERAGE, words, partial(coverage, design, options, design.effect, layout))


def two(size: int, effect: float, d: int = 10, **options: Any) -> Design:
    """Return a design of two equal classes."""
    words = f"{size} v {size} entities" + (f" x {options['rows']} rows" if "rows" in options else "")
    return Design(words, (size, size), d=d, effect=effect, **options)


CELLS: list[Cell] = []
for method, permutations in (("logistic", 99), ("ridge", 39), ("lda", 39), ("diffmeans", 99)):
    CELLS += level_and_power(f"probe, {method}", method, TWO, {"method": method, "permutations": permutations})
    few: dict[str, Any] = {"method": method, "permutations": 19}
    CELLS += level_and_power(f"probe, {method}", f"{method}-few", {"iid": TWO["iid"]}, few)
CELLS += level_and_power(
    "probe, ordinal", "ordinal", THREE, {"pairs": "ordinal", "method": "ridge", "permutations": 39}
)
CELLS += level_and_power(
    "probe, multiclass", "multiclass", THREE, {"pairs": "multiclass", "permutations": 19}, "axes", batch=5
)
CELLS += level_and_power("probe, logistic, judged by its interval", "interval", TWO, {"method": "logistic"})

for kind, share in (("independent", 0.0), ("correlated", 0.8)):
    for design_name in ("iid", "clustered"):
        design = TWO[design_name]
        words = f"{design.words}, {PLACES} {kind} places, 99 permutations"
        for effect, what, part in ((0.0, LEVEL, 1.0), (1.5 * design.effect, POWER, 0.5)):
            function_of_seed = partial(
                best_place, design, {"method": "diffmeans", "permutations": 99}, PLACES, share, effect
            )
            uncorrected = tuple(f"{words}, p, not corrected" for words in QUALITY.values())
            CELLS.append(
                Cell(
                    f"probe-best-{what}-{kind}-{design_name}", f"best of {PLACES} places, diffmeans", what, words,
                    function_of_seed, batch=4, share=part, informative=uncorrected,
                )
            )  # fmt: skip

for size in (10, 20, 50, 200):
    for label, effect in (("noise", 0.0), ("signal", 1.0)):
        diffmeans = {"method": "diffmeans"}
        CELLS.append(covered(f"diffmeans-{size}-{label}", "probe, diffmeans", two(size, effect), diffmeans))
LOGISTIC: Options = {"method": "logistic"}
for label, design in {
    "50-wide-noise": two(50, 0.0, d=100),
    "50-signal": two(50, 1.0, d=20),
    "8-clustered": two(8, 1.6, rows=10, entity_sd=1.0),
    "15-clustered": two(15, 1.6, rows=10, entity_sd=1.0),
    "torn": Design(
        "15 v 15 entities x 4 rows, 3 of each group in both", (15, 15), rows=4, entity_sd=1.0, torn=3, effect=1.6
    ),
    "unbalanced": Design("100 v 10 entities", (100, 10), effect=3.0),
    "ceiling-20": two(20, 5.0, d=4),
    "ceiling-15": two(15, 4.0, d=4),
    "ceiling-clustered": two(15, 6.0, d=4, rows=4, entity_sd=1.0),
}.items():
    CELLS.append(covered(f"logistic-{label}", "probe, logistic", design, LOGISTIC))
for label in ("iid", "clustered", "unbalanced"):
    ordinal: Options = {"pairs": "ordinal", "method": "ridge"}
    CELLS.append(covered(f"ordinal-{label}", "probe, ordinal", THREE[label], ordinal))
    CELLS.append(covered(f"multiclass-{label}", "probe, multiclass", THREE[label], {"pairs": "multiclass"}, "axes"))

if __name__ == "__main__":
    main(__doc__, ["probe"])
