"""Workload P: how long all pairs x folds of linear probes take, against the loop a researcher writes today.

Workload P is SmolLM2-sized: 30 layers x 6 groups x 1000 entities x 2 tokens x 576, all 15 pairs x 5 folds and one
refit each at every layer and token (5400 fits). This measures some of its layers (--layers) and both tokens, and of
the slow loops some of the pairs (--pairs); both are scaled to the whole, and what was measured is printed.

Compared in alternating runs, medians and spread of wall and CPU seconds:

    naive    np.load, LogisticRegression with its defaults (C as ours), cross_val_score, both cores, BLAS as it comes
    tuned    the same loop in float32 at tol=1e-6, one BLAS thread, pinned to one core
    ours     sl.probe for logistic, ridge, lda, diffmeans: two workers on two cores (--workers), fits, refits, scores,
             AUCs and bootstrap intervals included

    python benchmarks/probes_speed.py [--layers 2] [--pairs 1] [--rounds 3] [--workers 2] [--activations FILE.npy]

--activations takes a float array (layer, 6000, token, d) of real activations, groups in blocks of 1000; without it
the activations are synthetic: a decaying spectrum, a large mean and two massive features, as residual streams have;
or, with --gaussian, independent features of equal size, the easiest case for scikit-learn's solver and so the smallest
ratio to be had.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import warnings
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from common import Timing, alternate, describe, table
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import PredefinedSplit, cross_val_score
from threadpoolctl import threadpool_limits

from stratalens.analyses.probes import probe

GROUPS, PER_GROUP, WIDTH, LAYERS, TOKENS, FOLDS = 6, 1000, 576, 30, 2, 5
ALL_PAIRS = list(combinations(range(GROUPS), 2))
METHODS = ("logistic", "ridge", "lda", "diffmeans")
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def gaussian(layers: int, seed: int = 0) -> np.ndarray:
    """Independent standard normal features and a growing difference between groups."""
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((layers, GROUPS * PER_GROUP, TOKENS, WIDTH), dtype=np.float32)
    step = np.repeat([0, 0.2, 0.4, 0.7, 1.2, 2.0], PER_GROUP).astype(np.float32)
    out += step[:, None, None] * rng.standard_normal(WIDTH, dtype=np.float32) / np.sqrt(WIDTH, dtype=np.float32)
    return out


def synthetic(layers: int, seed: int = 0) -> np.ndarray:
    """Activations (layer, entity, token, d), rounded to bfloat16, with a growing difference between groups."""
    rng = np.random.default_rng(seed)
    out = np.empty((layers, GROUPS * PER_GROUP, TOKENS, WIDTH), np.float32)
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    spectrum = 6 * np.arange(1, WIDTH + 1) ** -0.7
    direction = rng.normal(size=WIDTH) / np.sqrt(WIDTH)
    step = np.repeat([0, 0.2, 0.4, 0.7, 1.2, 2.0], PER_GROUP)[:, None] * 0.6
    for slab in out:
        for t in range(TOKENS):
            x = (rng.normal(size=(len(slab), WIDTH)) * spectrum) @ turn.T + rng.normal(size=WIDTH) * 2
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


def loop(file: Path, fold: np.ndarray, pairs: list[tuple[int, int]], tuned: bool) -> dict[tuple[int, ...], float]:
    """Mean accuracy of every (layer, token, pair) by scikit-learn, with a refit each, as ours has."""
    x = np.load(file)
    codes = np.repeat(np.arange(GROUPS), PER_GROUP)
    out = {}
    for layer in range(x.shape[0]):
        for token in range(x.shape[2]):
            for a, b in pairs:
                rows = (codes == a) | (codes == b)
                X, y = np.ascontiguousarray(x[layer, rows, token]), (codes[rows] == b).astype(int)
                model = LogisticRegression(C=0.1, tol=1e-6, max_iter=5000) if tuned else LogisticRegression(C=0.1)
                scores = cross_val_score(model, X, y, cv=PredefinedSplit(fold[rows]))
                model.fit(X, y)
                out[layer, token, ALL_PAIRS.index((a, b))] = float(scores.mean())
    return out


def on_cores(count: int) -> None:
    """Keep this thread, and the threads it will start, on the first cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(CORES)[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--activations", type=Path)
    parser.add_argument("--first", type=int, default=0, help="first layer of --activations that is taken")
    parser.add_argument("--gaussian", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    if args.activations:
        x = np.array(np.load(args.activations, mmap_mode="r")[args.first :][: args.layers], np.float32)
    else:
        x = gaussian(args.layers) if args.gaussian else synthetic(args.layers)
    chosen = [ALL_PAIRS[i] for i in np.linspace(0, len(ALL_PAIRS) - 1, args.pairs + 2).round().astype(int)[1:-1]]
    whole = LAYERS / x.shape[0] * TOKENS / x.shape[2]
    scale = {"naive": whole * len(ALL_PAIRS) / len(chosen), "tuned": whole * len(ALL_PAIRS) / len(chosen)}
    print(describe("scikit-learn", "scipy", "xarray"))
    kind = "real activations" if args.activations else "Gaussian" if args.gaussian else "synthetic residual stream"
    print(f"# workload P: {x.shape[0]} of {LAYERS} layers, {x.shape[2]} tokens, {kind}; {args.workers} workers")
    print(f"# the loops: {len(chosen)} of {len(ALL_PAIRS)} pairs; all scaled to the whole workload")
    data = as_data(x)
    fold = probe(data.isel(layer=[0], token=[0]), method="diffmeans", progress=False).entity_fold.values
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activations.npy"
        np.save(file, x)

        def naive() -> None:
            on_cores(args.workers)
            found["naive"] = loop(file, fold, chosen, False)

        def tuned() -> None:
            on_cores(1)
            with threadpool_limits(1):
                found["tuned"] = loop(file, fold, chosen, True)

        def ours(method: str) -> None:
            on_cores(args.workers)
            found[method] = probe(data, method=method, workers=args.workers, progress=False)

        runs: dict[str, Any] = {"naive": naive, "tuned": tuned}
        runs |= {method: partial(ours, method) for method in METHODS}
        measured = alternate(runs, rounds=args.rounds)
    timings = {
        name: [Timing(t.wall * scale.get(name, whole), t.cpu * scale.get(name, whole)) for t in runs]
        for name, runs in measured.items()
    }
    print(table(timings, "tuned"))
    print("\ntimes as fast (median of the ratios round by round, min .. max):")
    for name in METHODS:
        told = []
        for base in ("naive", "tuned"):
            for unit in ("wall", "cpu"):
                pairs = zip(timings[base], timings[name], strict=True)
                ratio = sorted(getattr(a, unit) / getattr(b, unit) for a, b in pairs)
                told.append(f"{base} {unit} {statistics.median(ratio):6.1f} ({ratio[0]:.1f} .. {ratio[-1]:.1f})")
        print(f"{name:10s} " + "   ".join(told))
    check(found, x, chosen)


def check(found: dict[str, Any], x: np.ndarray, chosen: list[tuple[int, int]]) -> None:
    """How much the answers differ, from the loops' and from the exact solution."""
    ours = found["logistic"]
    accuracy = ours.accuracy.mean("fold").values
    for name in ("naive", "tuned"):
        gaps = [abs(accuracy[place] - value) for place, value in found[name].items()]
        print(f"accuracy of logistic against {name}: mean difference {np.mean(gaps):.5f}, largest {max(gaps):.5f}")
    print(f"all of ours converged: {bool(ours.converged.all())}; most iterations: {int(ours.iterations.max())}")
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
            mine = found[name].coef.values[0, 0, ALL_PAIRS.index((a, b))].astype(np.float64)
            other = f", the tuned loop {gap(loose, best):.1e}" if name == "logistic" else ""
            print(f"1 - cos of {name} to scikit-learn's exact float64 solution: ours {gap(mine, best):.1e}{other}")


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """1 - cosine."""
    return float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
