"""Compare stratalens with other libraries for linear probes of all pairs, folds, layers and tokens.

Workload P is that of analyses_probes: 30 layers x 6 groups x 1000 entities x 2 tokens x 576, all 15 pairs, 5 folds and
a fit to all rows, C = 0.1. The script measures a subset (each row states its number of fits) and scales it to the full
workload. The others:

- *scikit-learn*: the usual loop with its defaults; the same loop tuned (float32, tol=1e-6, one BLAS thread, one core);
  and its `newton-cholesky` in float64 on one core, the best of its solvers for few, correlated features.
- *TransformerLens sparse probing*: `fit_sparse_probe` with k = all features and the penalty that equals C, which makes
  it the same problem; float64, with its own stratified splits, so its folds differ.
- *lmprobe*: `Probe.fit_from_activations` for every fold, and `Probe.sweep_layers` with its defaults, from its cache of
  one file for each prompt. The sweep standardises features and has no folds: it is timed with as many fits and without
  scores.
- *dask-ml*: `LogisticRegression` on dask arrays, one fit to the rows of four folds, within a time limit.
- *cuML*: `backend="gpu"`, if there is a GPU.

Agreement, for methods that solve the same problem: accuracies compared with the exact solution (float64, Newton) on the
same folds, and 1 - cosine between the direction and that of the exact solution for the same rows.

    python -m benchmarks.analyses.peers [--data real gaussian] [--rounds 3] [--limit 60]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks.analyses.probes import (
    ALL_PAIRS,
    CORES,
    FOLDS,
    GROUPS,
    LAYERS,
    PER_GROUP,
    TOKENS,
    activations,
    as_data,
    gap,
    on_cores,
)
from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios, versus
from benchmarks.harness.measure import Timing, alternate, is_installed
from benchmarks.peers.probing import (
    Fits,
    dask_fit,
    exact,
    lmprobe_fits,
    lmprobe_sweep,
    newton_fits,
    one_fold,
    sklearn_fits,
    sparse_fits,
)  # fmt: skip
from stratalens.analyses.probes.probe import probe

TITLE, THEME = "Linear probes, compared with other libraries", "Analyses"
OURS = {
    "stratalens, logistic": "logistic",
    "stratalens, ridge": "ridge",
    "stratalens, lda": "lda",
    "stratalens, diffmeans": "diffmeans",
}
#: Methods that solve the same problem on the same folds.
SAME = (
    "scikit-learn, defaults",
    "scikit-learn, tuned",
    "scikit-learn, newton-cholesky",
    "stratalens, logistic",
    "stratalens, logistic by cuML",
    "lmprobe fit_from_activations",
)
PAIR = (1, 4)
WHOLE = LAYERS * TOKENS * len(ALL_PAIRS)


def has_gpu() -> bool:
    """Return whether CuPy finds a GPU (importing cuML succeeds without one)."""
    if not is_installed("cupy"):
        return False
    import cupy

    return bool(cupy.cuda.is_available())


def measure(report: Report, kind: str, x: np.ndarray, options: argparse.Namespace) -> None:
    """Measure all methods on one kind of data, of shape (layers, entities, tokens, d_model)."""
    data = as_data(x)
    fold = probe(data.isel(layer=[0], token=[0]), method="diffmeans", progress=False).entity_fold.values
    rows = np.isin(np.repeat(np.arange(GROUPS), PER_GROUP), PAIR)
    y = (np.repeat(np.arange(GROUPS), PER_GROUP)[rows] == PAIR[1]).astype(int)
    cells = [np.ascontiguousarray(x[n, rows, t]) for n in range(len(x)) for t in range(x.shape[2])]
    with threadpool_limits(1):
        truths = dict.fromkeys(SAME, exact(cells[0], y, fold[rows]))
    results: dict[str, Fits] = {}
    measured_pairs: dict[str, int] = {}

    def others(name: str, fits: Callable[..., Fits], cores: int, threads: int | None) -> None:
        on_cores(cores)
        with threadpool_limits(threads):
            fitted = [fits(cell, y, fold[rows]) for cell in cells]
        results[name], measured_pairs[name] = fitted[0], len(cells)

    def ours(name: str, method: str, backend: str = "cpu") -> None:
        on_cores(len(CORES))
        probes = probe(data, method=method, workers=len(CORES), backend=backend, progress=False)
        here = probes.isel(layer=0, token=0, pair=ALL_PAIRS.index(PAIR))
        results[name] = Fits(here.accuracy.values, here.coef.values)
        measured_pairs[name] = len(x) * x.shape[2] * len(ALL_PAIRS)

    loose, tight = LogisticRegression(C=0.1), LogisticRegression(C=0.1, tol=1e-6, max_iter=5000)
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        candidates: dict[str, Callable[[], None]] = {
            "scikit-learn, defaults": partial(
                others, "scikit-learn, defaults", partial(sklearn_fits, loose), len(CORES), None
            ),
            "scikit-learn, tuned": partial(others, "scikit-learn, tuned", partial(sklearn_fits, tight), 1, 1),
            "scikit-learn, newton-cholesky": partial(others, "scikit-learn, newton-cholesky", newton_fits, 1, 1),
        }
        candidates |= {name: partial(ours, name, method) for name, method in OURS.items()}
        if has_gpu():
            candidates["stratalens, logistic by cuML"] = partial(
                ours, "stratalens, logistic by cuML", "logistic", "gpu"
            )
        else:
            missing["stratalens, logistic by cuML"] = "no GPU on this machine"
        peers: dict[str, tuple[str, Callable[..., Fits]]] = {
            "TransformerLens fit_sparse_probe": ("transformer_lens", sparse_fits),
            "lmprobe fit_from_activations": ("lmprobe", lmprobe_fits),
            "lmprobe sweep_layers": ("lmprobe", partial(lmprobe_sweep, Path(scratch))),
        }
        for name, (module, fits) in peers.items():
            if not is_installed(module):
                missing[name] = f"not installed: pip install {module}"
                continue
            try:
                others(name, fits, len(CORES), 1)
            except (RuntimeError, ValueError, OSError, ImportError, TypeError, AttributeError) as error:
                missing[name] = f"{type(error).__name__}: {error}"
            else:
                candidates[name] = partial(others, name, fits, len(CORES), 1)
        runs = alternate(candidates, rounds=options.rounds, warmup=0 if options.quick else 1)
    on_cores(len(CORES))
    scale = {name: WHOLE / measured_pairs[name] for name in runs}
    dask = dask_ml(cells[0], y, fold[rows], options.limit)
    if isinstance(dask, str):
        missing["dask-ml LogisticRegression"] = dask
    else:  # one fit, once
        runs["dask-ml LogisticRegression"], results["dask-ml LogisticRegression"] = [dask[0]], dask[1]
        truths["dask-ml LogisticRegression"] = one_fold(cells[0], y, fold[rows])
        scale["dask-ml LogisticRegression"] = WHOLE * (FOLDS + 1)
    scaled = {n: [Timing(t.wall * scale[n], t.cpu * scale[n]) for t in turns] for n, turns in runs.items()}
    table(report, kind, x.shape, scaled, results, truths, missing, scale)


def table(
    report: Report, kind: str, shape: tuple[int, ...], runs: dict[str, list[Timing]], results: dict[str, Fits],
    truths: dict[str, Fits], missing: dict[str, str], scale: dict[str, float],
) -> None:  # fmt: skip
    """Add the table of seconds of the full workload and agreement with the exact solution."""
    base = "scikit-learn, tuned"
    peer_table = Table(f"peers-{kind}", f"Workload P, {WHOLE * (FOLDS + 1):,} fits, on {kind} activations", [
        Column("name", ""), Column("wall", "wall", "s"), Column("cpu", "CPU", "s"), Column("ratio", "time, ratio"),
        Column("fits", "fits measured"), Column("accuracy", "accuracy of a pair"),
        Column("gap", "its difference to the exact solution's"), Column("direction", "direction, 1 - cos"),
    ], baseline=base, ours=[n for n in runs if n.startswith("stratalens")],
        note=f"{shape[0]} of {LAYERS} layers and {shape[2]} of {TOKENS} tokens measured, scaled to the full workload",
    )  # fmt: skip
    alternating = {n: turns for n, turns in runs.items() if len(turns) == len(runs[base]) and "dask" not in n}
    peer_table.against = {"wall": versus(alternating, ["stratalens, logistic"])}
    for name, turns in runs.items():
        mine = results[name]
        truth = truths.get(name)
        peer_table.add(
            name=name, wall=[t.wall for t in turns], cpu=[t.cpu for t in turns],
            ratio=ratios(turns, runs[base]) if name in alternating else None,
            fits=round(WHOLE * (FOLDS + 1) / scale[name]),
            accuracy=float(np.mean(mine.accuracy)) if len(mine.accuracy) else None,
            gap=float(np.abs(mine.accuracy - truth.accuracy).max()) if truth else None,
            direction=gap(mine.coef.astype(float), truth.coef) if truth else None,
        )  # fmt: skip
    for name, why in missing.items():
        peer_table.add(name=name, missing=why)
    report.add(peer_table)
    for peer in ("scikit-learn, defaults", "lmprobe fit_from_activations", "TransformerLens fit_sparse_probe"):
        if peer in runs:
            report.target(
                f"speed of our logistic probes relative to {peer}, {kind} activations",
                ratios(runs[peer], runs["stratalens, logistic"]), at_least=1.0,
            )  # fmt: skip


def dask_ml(x: np.ndarray, y: np.ndarray, fold: np.ndarray, limit: float) -> str | tuple[Timing, Fits]:
    """Run one fit of dask-ml in a separate process; return its time and result, or the error."""
    if not is_installed("dask_ml"):
        return "not installed: pip install dask-ml"
    context = multiprocessing.get_context("spawn")
    failures = []
    for solver in ("admm", "lbfgs"):  # the default solver first
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=dask_fit, args=(there, solver, x, y, fold))
        process.start()
        there.close()
        try:
            if here.poll(60):  # imports are complete and the fit starts
                here.recv()
                if here.poll(limit):
                    answer = here.recv()
                    if not isinstance(answer, str):
                        return Timing(answer[0], answer[1]), answer[2]
                    failures.append(f"{solver}: {answer}")
                    continue
            failures.append(f"{solver}: not finished after {limit:.0f} s")
        except EOFError:
            failures.append(f"{solver}: its process died")
        finally:
            process.kill()
            process.join()
    return f"a single fit of {int((fold != fold[0]).sum()):,} rows: " + "; ".join(failures)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", nargs="+", choices=("real", "synthetic", "gaussian"), default=["real", "gaussian"])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60, help="time limit in seconds of a single fit of dask-ml")
    parser.add_argument("--activations", type=Path, help="read activations from this file instead of recording them")
    options = parse(parser, quick={"data": ["gaussian"], "rounds": 1, "limit": 5})
    warnings.simplefilter("ignore", ConvergenceWarning)
    packages = ("scikit-learn", "transformer-lens", "lmprobe", "dask-ml", "cuml-cu12", "cuml-cu13")
    with Report(__file__, options, *packages) as report:
        for kind in options.data:
            start = time.perf_counter()
            x = activations(kind, options)
            if x is None:
                report.skip("real activations: the weights of SmolLM2 are not installed (see the Makefile)")
                continue
            measure(report, kind, x[:, :, :1] if options.quick else x, options)
            report.note(f"{kind} activations took {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
