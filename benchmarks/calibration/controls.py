"""Calibrate the p-values and the intervals of the controls: statistics alone, matched, regressed out, weighted.

    python -m benchmarks.calibration.controls [--cells PATTERN ...] [--datasets N] [--quick] [--again] [--unclear]

Not part of the suite of benchmarks: a full run takes hours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.calibration.cells import COVERAGE, LEVEL, POWER, Cell, Draws
from benchmarks.calibration.designs import GROUP, Design, Doubles, names
from benchmarks.calibration.readers import (
    RUN,
    claims,
    conditional_p,
    flat,
    function,
    intervals,
    matched_rows,
    p_values,
)
from benchmarks.calibration.runner import main
from stratalens.analyses.stats.estimates import pair_mean

EXACT = ("AUC",)
TIE = 1.5  # difference of the classes in the statistic, in standard deviations
DESIGNS = {
    "iid": Design("60 v 60 entities", (60, 60), effect=1.0),
    "clustered": Design("40 v 40 entities x 3 rows, shared noise 3 sd", (40, 40), rows=3, entity_sd=3.0, effect=4.0),
    "unbalanced": Design("100 v 25 entities", (100, 25), effect=1.2),
    "wide": Design("40 v 40 entities, 120 features (n < d)", (40, 40), d=120, effect=1.8),
    "torn": Design("40 v 40 entities x 4 rows, 5 of each group in both, shared noise 1 sd", (40, 40), rows=4,
                   entity_sd=1.0, torn=5, effect=1.5),
}  # fmt: skip


def statistics_data(
    design: Design, seed: int, layers: int, effect: float = 0.0, tie: float = TIE, carried: float = 1.0, number: int = 1
) -> xr.Dataset:
    """Draw data sets with statistics that are tied to the label.

    Args:
        design: of the activations.
        seed: of all draws.
        layers: number of data sets.
        effect: real difference of the classes in the first feature.
        tie: difference of the classes in the first statistic; its noise has the same clusters as the activations.
        carried: amount of the first statistic that the second feature carries.
        number: of statistics `statistic0`, `statistic1`, ...; only the first one is tied.
    """
    ds = design.data(seed, layers, effect)
    rng = np.random.default_rng([seed, 7])
    entity = np.unique(ds["entity_id"].values.astype(str), return_inverse=True)[1]
    group = np.unique(ds[GROUP].values.astype(str), return_inverse=True)[1]
    values = rng.standard_normal((number, layers, len(group)))
    if design.entity_sd:
        values += design.entity_sd * rng.standard_normal((number, layers, entity.max() + 1))[:, :, entity]
        values /= design.sd
    values[0] += tie * group
    x = ds["resid_post"].values.copy()
    x[:, :, 0, 1] += carried * values[0]
    statistics = {f"statistic{i}": (("layer", "entity"), v) for i, v in enumerate(values)}
    return ds.assign(resid_post=(ds["resid_post"].dims, x), **statistics)


def call(name: str, ds: xr.Dataset, design: Design, seed: int, number: int = 1, **options: Any) -> xr.Dataset:
    """Call a control with the statistics of `statistics_data`."""
    statistics = tuple(f"statistic{i}" for i in range(number))
    arguments = {"statistics": statistics, "order": names(design), "seed": seed % 1000, **options, **RUN}
    result: xr.Dataset = function(name)(ds, GROUP, **arguments)
    return result


def statistics_p(design: Design, tie: float, count: int, options: dict[str, Any], seed: int, number: int) -> Draws:
    """Return the p-values of statistics alone."""
    ds = statistics_data(design, seed, number, tie=tie, number=count)
    return p_values(call("statistics_probe", ds, design, seed, count, **options))


def residual_p(design: Design, effect: float, options: dict[str, Any], seed: int, number: int) -> Draws:
    """Return the p-values of probes of residuals."""
    return p_values(call("residual_probe", statistics_data(design, seed, number, effect), design, seed, **options))


def matched_claims(design: Design, effect: float, options: dict[str, Any], seed: int, number: int) -> Draws:
    """Return claims by the intervals of the matched probe, and of its gap to a random subsample."""
    ds = statistics_data(design, seed, number, effect)
    result = call("matched_probe", ds, design, seed, small="nan", **options)
    out = {}
    for scored, rows in matched_rows(result, "matched").items():
        out[f"interval above chance, scored on {scored} rows"] = claims(rows)
        if "gap_low" in rows and scored in ("matched", "test"):
            out["interval of the gap without 0"] = (flat(rows["gap_low"]) > 0) | (flat(rows["gap_high"]) < 0)
    return out


def weighted_claims(design: Design, effect: float, options: dict[str, Any], seed: int, number: int) -> Draws:
    """Return claims by the interval of the weighted probe."""
    result = call("weighted_probe", statistics_data(design, seed, number, effect), design, seed, **options)
    return {"interval above chance": claims(result)}


def conditional_claims(design: Design, effect: float, options: dict[str, Any], seed: int, number: int) -> Draws:
    """Return the p-values of the conditional test."""
    result = call("conditional_test", statistics_data(design, seed, number, effect), design, seed, **options)
    return conditional_p(result)


def interval_draws(name: str, design: Design, options: dict[str, Any], seed: int, number: int) -> Draws:
    """Return the intervals of one control; the truth is the mean of the estimates."""
    ds = statistics_data(design, seed, number, design.effect)
    return intervals(call(name, ds, design, seed, **options))


def matched_intervals(design: Design, options: dict[str, Any], seed: int, number: int) -> Draws:
    """Return the intervals of the matched probe's samples and of its gap."""
    ds = statistics_data(design, seed, number, design.effect)
    result = call("matched_probe", ds, design, seed, small="nan", **options)
    out = {}
    for sample in ("all", "matched"):
        for scored, rows in matched_rows(result, sample).items():
            for measure, values in intervals(rows).items():
                out[f"{measure}, trained on {sample} rows, scored on {scored} rows"] = values
            if "gap_low" in rows and sample == "matched":
                out |= {f"{k}, scored on {scored} rows": v for k, v in intervals(rows, measures={"gap": "gap"}).items()}
    return out


def baseline_intervals(design: Design, baseline: str, seed: int, number: int) -> Draws:
    """Return the intervals of a baseline."""
    ds = design.data(seed, number, design.effect)
    result = function("baseline_probe")(ds, GROUP, baseline, order=names(design), seed=seed % 1000, **RUN)
    return intervals(result)


def table_intervals(design: Design, seed: int, number: int) -> Draws:
    """Return the intervals of `lost` and `left`; the truth of `left` is the ratio of the mean effects."""
    ds = statistics_data(design, seed, number, design.effect, tie=0.7)
    options: dict[str, Any] = {"order": names(design), "seed": seed % 1000, **RUN}
    results = {
        "probe": function("probe")(ds, GROUP, **options),
        "statistics alone": call("statistics_probe", ds, design, seed),
        "regressed out": call("residual_probe", ds, design, seed, kind="linear"),
        "matched": call("matched_probe", ds, design, seed, small="nan"),
    }
    table = function("control_table")(results)
    out = {}
    for control in table["control"].values:
        if control == "probe" or ("all" in control or "random" in control):
            continue
        row = table.sel(control=control)
        effect, whole = flat(row["effect"]), flat(table["effect"].sel(control="probe"))
        truth = {"left": np.full(number, np.nanmean(effect) / whole.mean())}
        out |= {f"{k}, {control}": v for k, v in intervals(row, truth, {"lost": "lost", "left": "left"}).items()}
    return out


def pair_mean_intervals(replicates: tuple[int, float] | None, effect: float, seed: int, number: int) -> Draws:
    """Return the intervals of the mean over three pairs, over folds or over (repeats, held-out share)."""
    design = Design("", (40, 40, 40), effect=effect)
    ds = statistics_data(design, seed, number, effect, tie=0.0)
    if replicates is None:
        result = function("probe")(ds, GROUP, order=names(design), seed=seed % 1000, **RUN)
    else:
        repeats, holdout = replicates
        result = call("matched_probe", ds, design, seed, repeats=repeats, holdout=holdout, bins=3, small="nan")
        result = next(iter(matched_rows(result, "all").values()))
    numbers = pair_mean(result, "accuracy")
    columns: list[Doubles] = [flat(numbers[name]) for name in ("value", "low", "high")]
    return {"accuracy": np.stack([*columns, np.full(number, np.nan)], axis=1)}


def level_and_power(
    key: str, analysis: str, draw: Callable[..., Draws], options: dict[str, Any], batch: int = 10, **cell: Any
) -> list[Cell]:
    """Return a cell of the level, where nothing is left, and one of the power for each design."""
    cells = []
    for name, design in DESIGNS.items():
        for kind, effect, share in ((LEVEL, 0.0, 1.0), (POWER, design.effect, 0.5)):
            words = f"{design.words}; the statistic differs by {TIE} sd" + _permutations(options)
            own = partial(draw, design, effect, options)
            cells.append(Cell(f"{key}-{kind}-{name}", analysis, kind, words, own, batch=batch, share=share, **cell))
    return cells


def _permutations(options: dict[str, Any]) -> str:
    return f", {options['permutations']} permutations" if "permutations" in options else ""


CELLS: list[Cell] = []
for name, design in DESIGNS.items():
    count = 40 if name == "wide" else 1
    design = Design("20 v 20 entities", (20, 20)) if name == "wide" else design
    for permutations in (99, 19) if name == "iid" else (99,):
        for kind, tie, share in ((LEVEL, 0.0, 1.0), (POWER, 0.6 if count == 1 else 2.0, 0.5)):
            own = partial(statistics_p, design, tie, count, {"permutations": permutations})
            words = f"{design.words}, {count} statistic{'s' if count > 1 else ''}, {permutations} permutations"
            suffix = "-few" if permutations == 19 else ""
            CELLS.append(
                Cell(
                    f"statistics-{kind}-{name}{suffix}", "statistics_probe, logistic", kind, words, own,
                    share=share, exact=EXACT,
                )
            )  # fmt: skip
for kind, tie, share in ((LEVEL, 0.0, 0.5), (POWER, 1.5, 0.25)):
    own = partial(statistics_p, Design("", (20, 20)), tie, 1, {"permutations": 19, "model": "boosting"})
    words = "20 v 20 entities, 1 statistic, 19 permutations"
    analysis = "statistics_probe, boosting"
    CELLS.append(Cell(f"statistics-boosting-{kind}", analysis, kind, words, own, batch=4, share=share, exact=EXACT))
for regression in ("linear", "spline"):
    residual: dict[str, Any] = {"kind": regression, "permutations": 39}
    CELLS += level_and_power(
        f"residual-{regression}", f"residual_probe, {regression}", residual_p, residual, exact=EXACT
    )
UNMATCHED = "interval above chance, scored on unmatched rows"
for method in ("bins", "nearest"):
    analysis = f"matched_probe, {method}"
    CELLS += level_and_power(
        f"matched-{method}", analysis, matched_claims, {"method": method}, informative=(UNMATCHED,)
    )
CELLS += level_and_power("weighted", "weighted_probe", weighted_claims, {})
CELLS += level_and_power("conditional", "conditional_test", conditional_claims, {"permutations": 99}, batch=4)

for name in ("iid", "clustered", "unbalanced"):
    design = DESIGNS[name]
    words = f"{design.words}, signal {design.effect:g} sd"
    for key, analysis, covered in (
        ("statistics", "statistics_probe, logistic", partial(interval_draws, "statistics_probe", design, {})),
        ("residual-linear", "residual_probe, linear",
         partial(interval_draws, "residual_probe", design, {"kind": "linear"})),
        ("residual-spline", "residual_probe, spline",
         partial(interval_draws, "residual_probe", design, {"kind": "spline"})),
        ("matched", "matched_probe, bins", partial(matched_intervals, design, {})),
        ("weighted", "weighted_probe", partial(interval_draws, "weighted_probe", design, {})),
        ("random-direction", "baseline_probe, random_direction",
         partial(baseline_intervals, design, "random_direction")),
        ("shuffled-entity", "baseline_probe, shuffled_entity", partial(baseline_intervals, design, "shuffled_entity")),
        ("table", "control_table", partial(table_intervals, design)),
    ):  # fmt: skip
        CELLS.append(Cell(f"{key}-coverage-{name}", analysis, COVERAGE, words, covered, batch=10))
boosted = partial(interval_draws, "statistics_probe", DESIGNS["iid"], {"model": "boosting"})
CELLS.append(
    Cell("statistics-boosting-coverage", "statistics_probe, boosting", COVERAGE, DESIGNS["iid"].words, boosted, batch=4)
)
for key, replicates, words in (
    ("folds", None, "5 folds"),
    ("5x0.2", (5, 0.2), "5 splits that hold out .2"),
    ("20x0.5", (20, 0.5), "20 splits that hold out .5"),
):
    own = partial(pair_mean_intervals, replicates, 0.7)
    setting = f"3 x 40 entities, signal 0.7 sd, {words}"
    CELLS.append(Cell(f"pair-mean-coverage-{key}", "mean over pairs", COVERAGE, setting, own, batch=10))

if __name__ == "__main__":
    main(__doc__, ["controls"])
