"""Fitting of probes to the activations of one token: every method behind one call, with a choice of the penalty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np

from stratalens.analyses.data.array_types import Codes, Doubles, Floats, Mask, Signs
from stratalens.analyses.data.targets import MULTICLASS, ORDINAL, training_signs
from stratalens.analyses.estimators import closed_form
from stratalens.analyses.estimators.backend import has_cuml, logistic_estimator, resolve_backend, to_numpy
from stratalens.analyses.estimators.boosting import BOOSTING
from stratalens.analyses.estimators.logistic import LinearFit, fit_logistic, fit_softmax
from stratalens.store.errors import InputError, suggest

# From training rows (n,) bool to activations (n, d) that depend on these rows alone.
Prepare = Callable[[Mask], Floats]
# From targets (n, P, K) and C (P, K) to P * K probes (multiclass: classes * K), K fastest.
Fitter = Callable[[Signs, Doubles], LinearFit]

METHODS = ("logistic", *closed_form.METHODS)
SOLVERS = ("batched", "library")
# Values of C="cv": from a nearly constant probe to a nearly unpenalised one.
CANDIDATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Largest number of elements of the means of all training sets and penalties that are fitted together.
GRID_ELEMENTS = 2**23
LIBRARY_MAX_ITER = 5000


@dataclass(frozen=True)
class Settings:
    """Settings of a fit; the fields are the arguments of `probe`, and the cache identifies results by their names."""

    method: str = "logistic"
    C: float | str | Sequence[float] = 0.1
    standardize: bool = False
    solver: str = "batched"
    tol: float = 1e-6
    backend: str = "cpu"
    kind: str = "binary"

    @property
    def candidates(self) -> tuple[float, ...]:
        """Inverse strengths of the penalty to choose from; one if `C` is a number."""
        if isinstance(self.C, str):
            return CANDIDATES
        return tuple(float(c) for c in np.atleast_1d(np.asarray(self.C, dtype=np.float64)))

    @property
    def C_attr(self) -> float | str | list[float]:  # noqa: N802
        """Value of a result's attribute `C`: the number, the list of candidates, or "cv"."""
        if isinstance(self.C, str):
            return self.C
        return list(self.candidates) if len(self.candidates) > 1 else self.candidates[0]

    def identity(self) -> dict[str, Any]:
        """Everything about the fits that results depend on, by which a cache identifies them."""
        return {f"fit_{k}": v for k, v in vars(self).items() if k != "C"} | {"fit_C": list(self.candidates)}

    def check(self, folds: int) -> None:
        """Refuse settings that cannot be fitted.

        Raises:
            InputError: an unknown method, solver or penalty, or a combination that has no meaning.
        """
        if self.method not in (*METHODS, BOOSTING):
            raise InputError(f"method={self.method!r}: {suggest(str(self.method), METHODS)}")
        if self.solver not in SOLVERS:
            raise InputError(f"solver={self.solver!r}: {suggest(str(self.solver), SOLVERS)}")
        if self.solver == "library" and (self.method != "logistic" or self.kind != "binary"):
            raise InputError("solver='library' is for logistic probes of two classes; leave solver= out")
        if self.kind == MULTICLASS and self.method != "logistic":
            raise InputError(f"pairs='multiclass' needs method='logistic', not {self.method!r}")
        if self.kind == ORDINAL and self.method not in ("ridge", "logistic"):
            raise InputError(f"pairs='ordinal' is a ridge regression; method={self.method!r} has no meaning there")
        if isinstance(self.C, str) and self.C != "cv":
            raise InputError(f"C={self.C!r}; give a positive number, a list of them, or 'cv'")
        candidates = self.candidates
        if not candidates or not all(np.isfinite(c) and c > 0 for c in candidates):
            raise InputError(f"C={self.C!r}; inverse penalties must be positive and finite, e.g. 0.1")
        if not self.tol > 0:
            raise InputError(f"tol={self.tol}; it must be positive, e.g. 1e-6")
        if len(candidates) > 1:
            if self.method in ("lda", "diffmeans"):
                raise InputError(f"method={self.method!r} has no penalty to choose; leave C= out")
            if folds < 3:
                raise InputError(f"choosing C inside the training folds needs at least 3 folds, not {folds}")


def choose_device(backend: str, method: str, kind: str, solver: str = "batched") -> str:
    """Choose the device of a fit: "cpu" or "gpu".

    "auto" chooses a GPU for logistic probes alone, because closed forms are fast on the CPU. If a library fits them,
    it must be cuML.

    Raises:
        InputError: an unknown backend, or "gpu" without a usable GPU.
    """
    if backend == "gpu" and method == "diffmeans":
        raise InputError("diffmeans runs on the CPU alone; use backend='auto' or 'cpu'")
    closed = method != "logistic" or kind == ORDINAL
    missing_library = (kind == MULTICLASS or solver == "library") and not has_cuml()
    return resolve_backend("cpu" if backend == "auto" and (closed or missing_library) else backend).name


@dataclass(frozen=True)
class Probes:
    """Fitted probes of one token.

    Attributes:
        coef: array of shape (pair, folds + 1, d), or (group, folds + 1, d) for multiclass; the refit last.
        intercept: float64 array of shape (pair, folds + 1), or (group, folds + 1).
        converged: bool array of shape (pair, folds + 1).
        n_iter: int64 array of shape (pair, folds + 1), iterations.
        penalty: float64 array of shape (pair, folds + 1), C of each fit.
    """

    coef: Floats
    intercept: Doubles
    converged: Mask
    n_iter: Codes
    penalty: Doubles

    @staticmethod
    def join(probes: Sequence[Probes]) -> Probes:
        """Join the probes of several training sets."""
        arrays = {f.name: np.concatenate([getattr(p, f.name) for p in probes], axis=1) for f in fields(Probes)}
        return Probes(**arrays)


def fit_probes(
    X: Floats,
    signs: Signs,
    codes: Codes,
    fold: Codes,
    folds: int,
    trainable: Mask,
    settings: Settings,
    only: int | None = None,
    refit: bool = True,
    penalty: Doubles | None = None,
) -> Probes:
    """Fit every probe without each fold, and on all training rows.

    Args:
        X: array of shape (n, d), activations of one token.
        signs: int8 array of shape (n, pair), targets as in `Contrasts`.
        codes: int64 array of shape (n,), group of each row.
        fold: int64 array of shape (n,).
        folds: number of folds.
        trainable: bool array of shape (n,), rows that may be trained on.
        settings: settings of the fits.
        only: fit one training set alone: all rows outside this fold, or all rows if it equals `folds`.
        refit: False leaves out the fit on all training rows.
        penalty: float64 array of shape (pair, training sets), C of each fit; None = from the settings, by
            cross-validation if there are several candidates.
    """
    targets = training_signs(signs, fold, folds, trainable)
    sets = list(range(folds + refit)) if only is None else [only]
    targets = targets[:, :, sets]
    if penalty is None:
        penalty = choose_penalties(X, signs, codes, fold, folds, trainable, settings)[:, sets]
    fit = _fitter(X, codes, settings)(targets, penalty)
    shape = targets.shape[1:]
    return Probes(
        fit.coef.reshape(-1, shape[1], X.shape[1]),
        fit.intercept.reshape(-1, shape[1]),
        fit.converged.reshape(shape),
        fit.n_iter.reshape(shape),
        penalty,
    )


def _fitter(X: Floats, codes: Codes, settings: Settings) -> Fitter:
    """Function that fits probes by the method of the settings."""
    backend = resolve_backend(settings.backend)
    standardize, tol = settings.standardize, settings.tol

    def fit(targets: Signs, C: Doubles) -> LinearFit:
        C = C.ravel()
        if settings.kind == MULTICLASS:
            inside = targets[:, 0] != 0
            return fit_softmax(X, codes, inside, C=C, standardize=standardize, tol=tol, backend=backend)
        if settings.kind == ORDINAL or settings.method != "logistic":
            method, value = ("ridge", codes.astype(np.float64)) if settings.kind == ORDINAL else (settings.method, None)
            return closed_form.fit_closed_form(
                X, targets, codes, method, value=value, alpha=1 / C, standardize=standardize, backend=backend
            )
        flat = targets.reshape(len(X), -1)
        if settings.solver == "library":
            return _fit_library(X, flat, C, settings)
        return fit_logistic(X, flat, C=C, standardize=standardize, blocks=codes, tol=tol, backend=backend)

    return fit


def _fit_library(X: Floats, signs: Signs, C: Doubles, settings: Settings) -> LinearFit:
    """Fit scikit-learn's or cuML's estimator to each problem; the reference for the batched solver."""
    backend = resolve_backend(settings.backend)
    coef = np.zeros((signs.shape[1], X.shape[1]), dtype=X.dtype)
    intercept = np.zeros(len(coef))
    n_iter = np.zeros(len(coef), dtype=np.int64)
    for i in range(len(coef)):
        rows = np.flatnonzero(signs[:, i])
        inside = X[rows]
        mean, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if settings.standardize:
            mean, scale = inside.mean(axis=0, dtype=np.float64), inside.std(axis=0, dtype=np.float64)
            scale[scale == 0] = 1
            inside = ((inside - mean) / scale).astype(X.dtype)
        model = logistic_estimator(backend, C=float(C[i]), tol=settings.tol, max_iter=LIBRARY_MAX_ITER)
        model.fit(backend.asarray(inside), backend.asarray((signs[rows, i] > 0).astype(X.dtype)))
        coef[i] = to_numpy(model.coef_).ravel() / scale
        intercept[i] = float(to_numpy(model.intercept_).ravel()[0]) - float(coef[i] @ mean)
        n_iter[i] = int(np.max(to_numpy(np.asarray(model.n_iter_))))
    return LinearFit(coef, intercept, n_iter < LIBRARY_MAX_ITER, n_iter)


def choose_penalties(
    X: Floats,
    signs: Signs,
    codes: Codes,
    fold: Codes,
    folds: int,
    trainable: Mask,
    settings: Settings,
    prepare: Prepare | None = None,
    only_refit: bool = False,
) -> Doubles:
    """Choose the penalty of every fit by cross-validation inside its own training rows.

    A fit without folds i and j shows how well a penalty does on j for the probe that leaves out i, and on i for the
    probe that leaves out j. A fit without fold i alone shows it for the refit. The smallest mean loss wins, the
    stronger penalty if two are equal.

    Args:
        X: as in `fit_probes`.
        signs: as in `fit_probes`.
        codes: as in `fit_probes`.
        fold: as in `fit_probes`.
        folds: as in `fit_probes`.
        trainable: as in `fit_probes`.
        settings: as in `fit_probes`.
        prepare: from training rows, bool array of shape (n,), to the activations to use with them.
        only_refit: choose the penalty of the refit (the last) alone.

    Returns:
        float64 array of shape (pair, folds + 1).
    """
    if len(settings.candidates) == 1:
        return np.full((signs.shape[1], folds + 1), settings.candidates[0])
    left_out = [*(() if only_refit else combinations(range(folds), 2)), *((i,) for i in range(folds))]
    inside = np.stack([trainable & ~np.isin(fold, out) for out in left_out], axis=1)
    targets = signs[:, :, None] * inside.astype(np.int8)[:, None, :]
    candidates = sorted(settings.candidates)
    loss = np.zeros((len(candidates), signs.shape[1], folds + 1))
    # Activations that depend on the training rows need one fit a set; others are fitted together.
    for sets in [list(range(len(left_out)))] if prepare is None else [[s] for s in range(len(left_out))]:
        x = X if prepare is None else prepare(inside[:, sets[0]])
        coefs, intercepts = _fit_grid(x, codes, targets[:, :, sets], candidates, settings)
        for k, s in enumerate(sets):
            for validation in left_out[s]:
                rows = np.flatnonzero((fold == validation) & trainable)
                owner = folds if len(left_out[s]) == 1 else sum(left_out[s]) - validation
                for c in range(len(candidates)):
                    score = coefs[c, :, k] @ x[rows].T + intercepts[c, :, k, None]
                    loss[c, :, owner] += _loss(score, signs[rows], codes[rows], settings)
    return np.asarray(np.asarray(candidates)[loss.argmin(axis=0)], dtype=np.float64)


def _fit_grid(
    X: Floats, codes: Codes, targets: Signs, candidates: Sequence[float], settings: Settings
) -> tuple[Floats, Doubles]:
    """Fit `targets` (n, P, K) with each of A penalties: coefficients (A, P or G, K, d), intercepts (A, P or G, K)."""
    # Ridge takes penalties as more training sets over the same rows, so that all penalties share the moments. An
    # eigendecomposition of each training system would serve all of its penalties too, but costs as much as 38 Cholesky
    # factors at d = 576, and all pairs and folds share one factor here.
    fit, shape = _fitter(X, codes, settings), targets.shape[1:]
    d, closed = X.shape[1], settings.kind == ORDINAL or settings.method == "ridge"
    step = max(1, GRID_ELEMENTS // (shape[0] * shape[1] * d)) if closed else 1
    coefs, intercepts = [], []
    for start in range(0, len(candidates), step):
        values = np.asarray(candidates[start : start + step])
        repeated = np.repeat(targets, len(values), axis=2)
        probes = fit(repeated, np.broadcast_to(np.tile(values, shape[1]), repeated.shape[1:]))
        coefs.append(probes.coef.reshape(-1, shape[1], len(values), d))
        intercepts.append(probes.intercept.reshape(-1, shape[1], len(values)))
    coef, intercept = np.concatenate(coefs, axis=2), np.concatenate(intercepts, axis=2)
    return np.moveaxis(coef, 2, 0), np.moveaxis(intercept, 2, 0)


def _loss(score: Floats, signs: Signs, codes: Codes, settings: Settings) -> Doubles:
    """Mean loss of each probe on its own rows of `signs`, shape (pair,)."""
    member = (signs != 0).T
    score = score.astype(np.float64)
    if settings.kind == MULTICLASS:
        rows = member[0]
        largest = score.max(axis=0)
        total = largest + np.log(np.exp(score - largest).sum(axis=0))
        right = score[np.maximum(codes, 0), np.arange(len(codes))]
        return np.array([(total - right)[rows].mean()])
    if settings.kind == ORDINAL:
        each = (score - codes) ** 2
    elif settings.method == "ridge":
        each = (score - signs.T) ** 2
    else:
        each = np.logaddexp(0, -signs.T * score)
    return np.asarray((each * member).sum(axis=1) / np.maximum(member.sum(axis=1), 1), dtype=np.float64)
