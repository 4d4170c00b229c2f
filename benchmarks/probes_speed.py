"""Workload P: how long all pairs x folds of linear probes take, against the loop a researcher writes today.

Workload P is SmolLM2-sized: 30 layers x 6 groups x 1000 entities x 2 tokens x 576, all 15 pairs x 5 folds and one
refit each at every layer and token (5400 fits). This measures some of its layers (--layers, default 1) and two
tokens, and of the slow loops some of the pairs (--pairs, default 2), and scales up; it prints what it measured.

Compared in alternating runs, in CPU seconds (wall beside them), medians and spread:

    naive    np.load, LogisticRegression with its defaults (C as ours), cross_val_score, BLAS threads as they come
    tuned    the same loop in float32 at tol=1e-6 with one BLAS thread
    ours     sl.probe for logistic, ridge, lda, diffmeans, one worker, scores, intervals and refits included

    python benchmarks/probes_speed.py [--layers 1] [--pairs 2] [--repeats 3] [--activations FILE.npy]

--activations takes a float array (layer, 6000, token, d) of real activations, groups in blocks of 1000; without it
the activations are synthetic: a decaying spectrum, a large mean and two massive features, as residual streams have.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import xarray as xr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from threadpoolctl import threadpool_limits

from stratalens.analyses.probes import probe

GROUPS, PER_GROUP, WIDTH, LAYERS, TOKENS, FOLDS = 6, 1000, 576, 30, 2, 5
ALL_PAIRS = list(combinations(range(GROUPS), 2))


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


def timed(function: Callable[[], object]) -> tuple[float, float, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--activations", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    x = np.load(args.activations, mmap_mode="r")[: args.layers] if args.activations else synthetic(args.layers)
    x = np.array(x, np.float32)
    chosen = [ALL_PAIRS[i] for i in np.linspace(0, len(ALL_PAIRS) - 1, args.pairs).round().astype(int)]
    share = len(ALL_PAIRS) / len(chosen)
    kind = f"real activations from {args.activations.name}" if args.activations else "synthetic activations"
    print(f"workload P: measured {x.shape[0]} of {LAYERS} layers, {x.shape[2]} tokens, {kind}; {os.cpu_count()} cores")
    print(f"the loops: {len(chosen)} of {len(ALL_PAIRS)} pairs, scaled by {share:g}; ours: all pairs, one worker\n")
    data = as_data(x)
    fold = probe(data.isel(layer=[0], token=[0]), method="diffmeans", progress=False).entity_fold.values
    methods = ("logistic", "ridge", "lda", "diffmeans")
    cpu: dict[str, list[float]] = {name: [] for name in ("naive", "tuned", *methods)}
    wall: dict[str, list[float]] = {name: [] for name in cpu}
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activations.npy"
        np.save(file, x)

        def run_loop(tuned: bool) -> object:
            if not tuned:
                return loop(file, fold, chosen, False)
            with threadpool_limits(1):
                return loop(file, fold, chosen, True)

        def run_ours(method: str) -> object:
            with threadpool_limits(1):
                return probe(data, method=method, workers=1, progress=False)

        for _ in range(args.repeats):
            for name in cpu:
                if name in methods:
                    c, w, found[name] = timed(lambda name=name: run_ours(name))
                    times = 1.0
                else:
                    c, w, found[name] = timed(lambda name=name: run_loop(name == "tuned"))
                    times = share
                cpu[name].append(c * times)
                wall[name].append(w * times)

    middle = {name: statistics.median(values) for name, values in cpu.items()}
    print(f"{'':10} {'CPU s':>8} {'(min .. max)':>18} {'wall s':>8} {'naive / it':>11} {'tuned / it':>11}")
    for name, values in cpu.items():
        spread = f"({min(values):.2f} .. {max(values):.2f})"
        print(
            f"{name:10} {middle[name]:8.2f} {spread:>18} {statistics.median(wall[name]):8.2f} "
            f"{middle['naive'] / middle[name]:11.1f} {middle['tuned'] / middle[name]:11.1f}"
        )
    ours = found["logistic"]
    assert isinstance(ours, xr.Dataset)
    accuracy = ours.accuracy.mean("fold").values
    for name in ("naive", "tuned"):
        theirs = found[name]
        assert isinstance(theirs, dict)
        gaps = [abs(accuracy[place] - value) for place, value in theirs.items()]
        print(f"\naccuracy of logistic against {name}: mean difference {np.mean(gaps):.4f}, largest {max(gaps):.4f}")
    print(f"all of ours converged: {bool(ours.converged.all())}; most iterations: {int(ours.iterations.max())}")
    exact = []
    codes = np.repeat(np.arange(GROUPS), PER_GROUP)
    for p in sorted({ALL_PAIRS.index(pair) for pair in chosen}):
        a, b = ALL_PAIRS[p]
        rows = (codes == a) | (codes == b)
        X, y = x[0, rows, 0].astype(np.float64), codes[rows] == b
        best = LogisticRegression(C=0.1, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(X, y).coef_[0]
        mine = ours.coef.values[0, 0, p].astype(np.float64)
        with threadpool_limits(1):
            theirs = LogisticRegression(C=0.1, tol=1e-6, max_iter=5000).fit(X.astype(np.float32), y).coef_[0]
        exact.append(
            [1 - v @ best / np.linalg.norm(v) / np.linalg.norm(best) for v in (mine, theirs.astype(np.float64))]
        )
    worst = np.max(exact, axis=0)
    print(
        f"1 - cos to the exact float64 solution, worst of {len(exact)}: ours {worst[0]:.1e}, tuned loop {worst[1]:.1e}"
    )


if __name__ == "__main__":
    main()
