"""Other methods of fitting a linear probe in five folds and once to all rows.

Each function takes `x` (float32 array of shape (rows, features)), `y` (0 or 1 for each row) and the fold of each row,
and returns `Fits`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

C = 0.1


@dataclass(frozen=True)
class Fits:
    """Accuracy of every fold, and the direction fitted to all rows (None if it is not comparable)."""

    accuracy: np.ndarray
    coef: np.ndarray | None


def sklearn_fits(model: Any, x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> Fits:
    """Fit in a loop over folds, then refit to all rows."""
    scores = []
    for number in np.unique(fold):
        train = fold != number
        scores.append(clone(model).fit(x[train], y[train]).score(x[~train], y[~train]))
    return Fits(np.array(scores), clone(model).fit(x, y).coef_.ravel())


def newton_fits(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> Fits:
    """Fit scikit-learn's Newton solver in float64; in float32 a residual stream's Hessian is singular for it."""
    newton = LogisticRegression(C=C, tol=1e-6, max_iter=5000, solver="newton-cholesky")
    return sklearn_fits(newton, x.astype(np.float64), y, fold)


def exact(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> Fits:
    """Fit Newton's method in float64 to a tolerance of 1e-10: the exact solution."""
    newton = LogisticRegression(C=C, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    return sklearn_fits(newton, x.astype(np.float64), y, fold)


def one_fold(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> Fits:
    """Fit the exact solution for the fold of the first row only, as `dask_fit` does."""
    test = fold == fold[0]
    newton = LogisticRegression(C=C, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    newton.fit(x[~test].astype(np.float64), y[~test])
    return Fits(np.array([newton.score(x[test].astype(np.float64), y[test])]), newton.coef_.ravel())


def sparse_fits(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> Fits:
    """Fit TransformerLens's k-sparse probe with k = all, on five of its own splits and once more."""
    import torch
    from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe

    features, labels = torch.from_numpy(x), torch.from_numpy(y)
    folds = len(np.unique(fold))
    train = len(x) * (folds - 1) // folds
    results = [
        fit_sparse_probe(
            features, labels, k=x.shape[1], test_fraction=1 / folds, class_weight=None, l2_strength=1 / (C * train),
            seed=seed,
        )
        for seed in range(folds + 1)
    ]  # fmt: skip
    # Its loss is a mean, so the penalty of C is 1 / (C n). It never fits all rows, so no direction is comparable.
    return Fits(np.array([r.metrics.accuracy for r in results[:folds]]), None)


def lmprobe_fits(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> Fits:
    """Fit lmprobe's probe on activations in memory, with the same classifier and no scaling."""
    from lmprobe import Probe

    def new_probe() -> Any:
        return Probe(classifier=LogisticRegression(C=C), normalize_layers=False)

    scores = []
    for number in np.unique(fold):
        train = fold != number
        scores.append(new_probe().fit_from_activations(x[train], y[train]).score_from_activations(x[~train], y[~train]))
    return Fits(np.array(scores), new_probe().fit_from_activations(x, y).classifier_.coef_.ravel())


def lmprobe_sweep(scratch: Path, x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> Fits:
    """Run `Probe.sweep_layers` with its defaults, from activations in its cache, so that no model runs.

    The cache is filled once, outside the timing. The sweep has no folds. It therefore sweeps one layer for each fold
    and one more, all with the same values, which gives as many fits as the others have. It scores no held-out rows.
    """
    from lmprobe import Probe, set_cache_backend
    from lmprobe.cache import save_prompt_activations
    from transformers import LlamaConfig

    model = scratch / "model"
    prompts, layers = [f"row {i}" for i in range(len(x))], list(range(len(np.unique(fold)) + 1))
    if not model.exists():
        import torch

        LlamaConfig(hidden_size=x.shape[1], num_hidden_layers=len(layers), vocab_size=8).save_pretrained(model)
        set_cache_backend(str(scratch / "cache"))
        for prompt, row in zip(prompts, x, strict=True):
            values = torch.from_numpy(row).repeat(len(layers))[None, None]
            save_prompt_activations(str(model), prompt, layers, values, torch.ones(1, 1))
    set_cache_backend(str(scratch / "cache"))
    positive, negative = ([p for p, label in zip(prompts, y, strict=True) if label == wanted] for wanted in (1, 0))
    Probe.sweep_layers(str(model), positive, negative, layers=layers, device="cpu")
    return Fits(np.array([]), None)


def dask_fit(answer: Any, solver: str, x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> None:
    """Fit one fold with dask-ml; send "ready", then (wall, CPU, `Fits` of that fold) or the error as text."""
    import dask.array as da
    from dask_ml.linear_model import LogisticRegression as DaskLogistic

    train = fold != fold[0]
    half = train.sum() // 2
    rows, labels = da.from_array(x[train], chunks=(half, x.shape[1])), da.from_array(y[train], chunks=half)
    answer.send("ready")
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        model = DaskLogistic(C=C, solver=solver).fit(rows, labels)
    except Exception as error:  # any error is the result
        answer.send(f"{type(error).__name__}: {error}")
        return
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    coef = np.asarray(model.coef_).ravel()
    scores = x[~train] @ coef + float(np.ravel(model.intercept_)[0])
    answer.send((wall, cpu, Fits(np.array([((scores > 0) == y[~train]).mean()]), coef)))
