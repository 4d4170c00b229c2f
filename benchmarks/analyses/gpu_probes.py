"""Measure linear probes on a GPU: all pairs and folds of one layer, relative to the CPU cores and the card's limits.

Six groups of 1000 entities, all 15 pairs x 5 folds and a refit, at the width of SmolLM2 (576) and at 8192, on
activations with the spectrum of a residual stream (see analyses_probes). *scikit-learn* is LogisticRegression in
float32 at tol=1e-6. joblib distributes the fits over all cores with one BLAS thread each. The script measures some of
the fits and scales them to all, as if no core ever waited. *cuML* is its own logistic regression, one fit after
another. Our time includes scores, AUCs, intervals and the transfer to the card. The floor of the logistic fits is the
larger of two times: their iterations' products at the card's rate of float32 matrix products, and reading the
activations once for each product at the card's bandwidth. The floor of ridge is one product X'X of all rows and a
Cholesky factor for each fit, in float64.

    python -m benchmarks.analyses.gpu_probes [--widths 576 8192] [--rounds 3] [--fits 16]

`--backend cpu --widths 96` tests the script on a machine without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import joblib
import numpy as np
import xarray as xr
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks.analyses.probes import ALL_PAIRS, FOLDS, GROUPS, PER_GROUP, as_data, synthetic
from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios
from benchmarks.harness.measure import Timing, alternate, is_installed, time_once
from benchmarks.scaling import rates
from stratalens.analyses.estimators.backend import gpu_problem, resolve_backend
from stratalens.analyses.probes.probe import probe

TITLE, THEME = "Linear probes on a GPU", "GPU"
FITS = len(ALL_PAIRS) * (FOLDS + 1)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fit(x: np.ndarray, pair: tuple[int, int], fold: np.ndarray, left_out: int) -> Timing:
    """Time one fit of scikit-learn."""
    codes = np.repeat(np.arange(GROUPS), PER_GROUP)
    rows = ((codes == pair[0]) | (codes == pair[1])) & (fold != left_out)
    model = LogisticRegression(C=0.1, tol=1e-6, max_iter=5000)
    with threadpool_limits(1):
        return time_once(lambda: model.fit(x[rows], codes[rows] == pair[1]))


def scikit_learn(x: np.ndarray, fold: np.ndarray, fits: int) -> Timing:
    """Time some of the fits on all cores and scale to all fits."""
    every = [(pair, out) for pair in ALL_PAIRS for out in range(FOLDS + 1)]  # the last one leaves out no rows
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, min(fits, len(every))).round().astype(int)]
    jobs = [joblib.delayed(fit)(x, pair, fold, out) for pair, out in chosen]
    took = joblib.Parallel(n_jobs=CORES)(jobs)
    share = len(every) / len(chosen)
    return Timing(sum(t.wall for t in took) * share / CORES, sum(t.cpu for t in took) * share)


def limits(xp: Any, width: int) -> dict[str, float]:
    """Measure the device: float32 and float64 products, Cholesky factors (operations a second), bytes a second."""

    def wait() -> None:
        if xp is not np:
            xp.cuda.Stream.null.synchronize()

    def rate(amount: float, work: Callable[[], object]) -> float:
        return amount / rates.best_of(lambda: (work(), wait()), 3)

    side = min(width, 4096)
    narrow = xp.asarray(np.random.default_rng(0).standard_normal((side, side), dtype=np.float32))
    wide = narrow.astype(np.float64)
    positive = wide @ wide.T + side * xp.eye(side)
    much = xp.zeros(64 << 20, dtype=np.float32)
    return {
        "float32": rate(2 * side**3, lambda: narrow @ narrow),
        "float64": rate(2 * side**3, lambda: wide @ wide),
        "factor": rate(side**3 / 3, lambda: xp.linalg.cholesky(positive)),
        "bytes": rate(2 * much.nbytes, lambda: much.copy()),
    }


def floors(x: np.ndarray, logistic: xr.Dataset, card: dict[str, float]) -> dict[str, float]:
    """Return the lower bounds of the device's seconds."""
    n, d = x.shape
    pair = 2 * PER_GROUP
    iterations = float(logistic.iterations.mean()) * FITS
    by_rate = iterations * 4 * pair * d / card["float32"]
    by_bytes = float(logistic.iterations.max()) * 2 * x.nbytes / card["bytes"]
    factors = FITS * d**3 / 3 / card["factor"]
    return {"logistic": max(by_rate, by_bytes), "ridge": 2 * n * d * d / card["float64"] + factors}


def measure(report: Report, width: int, options: Any) -> None:
    """Measure one width."""
    x = synthetic(1, tokens=1, width=width)
    data, flat = as_data(x), np.ascontiguousarray(x[0, :, 0])
    fold = probe(data, method="diffmeans", progress=False).entity_fold.values
    results: dict[str, Any] = {}

    def ours(name: str, **how: Any) -> None:
        results[name] = probe(data, progress=False, **how)

    candidates: dict[str, Any] = {f"scikit-learn, {CORES} cores": partial(scikit_learn, flat, fold, options.fits)}
    for method in ("logistic", "ridge", "lda"):
        for backend in dict.fromkeys(("cpu", options.backend)):
            name = f"stratalens, {method}, {backend}"
            candidates[name] = partial(ours, name, method=method, backend=backend)
    missing = {}
    if is_installed("cuml") and options.backend == "gpu":
        candidates["cuML"] = partial(ours, "cuML", solver="library", backend="gpu")
    else:
        missing["cuML"] = "cuML is not installed, or there is no GPU"
    for (
        name,
        candidate,
    ) in candidates.items():  # compile kernels before the timing; at 8192 a warm-up of the host would take minutes
        if name == "cuML" or name.endswith(options.backend):
            candidate()
    runs = alternate(candidates, options.rounds, warmup=0)
    least = floors(flat, results["stratalens, logistic, cpu"], limits(resolve_backend(options.backend).xp, width))
    quality = {name: float(result.accuracy_mean.mean()) for name, result in results.items()}
    share = {
        f"stratalens, {method}, {options.backend}": [
            t.wall / least[method] for t in runs[f"stratalens, {method}, {options.backend}"]
        ]
        for method in least
    }
    report.timings(
        f"probes-{width}", f"{FITS} fits of {2 * PER_GROUP} rows x {width}", runs, next(iter(candidates)),
        ours=[name for name in candidates if name.startswith("stratalens")], missing=missing,
        extra={"mean accuracy": quality, "times the device's floor": share},
    )  # fmt: skip
    ours_there = f"stratalens, logistic, {options.backend}"
    gain = ratios(runs[next(iter(candidates))], runs[ours_there])
    report.target(f"speed of logistic relative to scikit-learn, {width} wide", gain, at_least=1)
    table = Table(f"agreement-{width}", f"Agreement with the CPU, {width} wide", [
        Column("name", ""), Column("gap", "accuracy, largest difference"), Column("angle", "1 - cos, largest"),
    ])  # fmt: skip
    for method in ("logistic", "ridge", "lda"):
        here, there = results[f"stratalens, {method}, cpu"], results[f"stratalens, {method}, {options.backend}"]
        a, b = (r.coef.values.reshape(-1, width).astype(np.float64) for r in (here, there))
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        gap = float(abs(here.accuracy_mean - there.accuracy_mean).max())
        table.add(name=method, gap=gap, angle=float(max(0.0, 1 - cosine.min())))
    report.add(table)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--widths", nargs="+", type=int, default=[576, 8192])
    parser.add_argument("--backend", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fits", type=int, default=16, help="number of scikit-learn's fits to measure")
    options = parse(parser, quick={"widths": [576], "rounds": 1, "fits": 2 * CORES})
    with Report(__file__, options, "scikit-learn", "cupy-cuda12x", "cupy-cuda13x", "cuml-cu12", "cuml-cu13") as report:
        problem = gpu_problem() if options.backend == "gpu" else None
        if problem is not None:
            report.skip(f"probes on a GPU: {problem}")
            return
        if options.backend == "gpu":
            properties = resolve_backend("gpu").xp.cuda.runtime.getDeviceProperties(0)
            report.note(f"Measured on one {properties['name'].decode()}")
        for width in options.widths:
            try:
                measure(report, width, options)
            except MemoryError as error:  # CuPy's error is a subclass; earlier measurements stay
                report.skip(f"probes of {width} features: {error}")


if __name__ == "__main__":
    main()
