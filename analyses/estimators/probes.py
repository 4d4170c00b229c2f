"""From activations of one token to fitted probes: every method behind one call, penalties chosen where asked.

Which rows train which probe comes from probe_plan.py; how each method is solved is in logistic.py, softmax.py
and closed_form.py. Nothing here scores a probe, except to choose a penalty inside its training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data.targets import MULTICLASS, ORDINAL, training_signs
from stratalens.analyses.estimators import closed_form
from stratalens.analyses.estimators.backend import has_cuml, logistic_estimator, resolve_backend, to_numpy
from stratalens.analyses.estimators.boosting import BOOSTING
from stratalens.analyses.estimators.logistic import LinearFit, fit_logistic, fit_softmax
from stratalens.store.errors import InputError, suggest

Floats = npt.NDArray[np.floating]


Doubles = npt.NDArray[np.float64]


# From training rows (n,) bool to the activations (n, d) that go with them, made from these rows alone.
Prepare = Callable[[npt.NDArray[np.bool_]], Floats]


METHODS = ("logistic", *closed_form.METHODS)


SOLVERS = ("batched", "library")


# Tried by C="cv": from a nearly constant probe to a nearly unpenalised one.
CANDIDATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


# Elements of the means of all training sets of several penalties that are fitted together.
GRID_ELEMENTS = 2**23


@dataclass(frozen=True)
class Settings:
    """How probes are fitted; the fields are the arguments of `probe`."""

    method: str = "logistic"
    C: float | str | Sequence[float] = 0.1
    standardize: bool = False
    solver: str = "batched"
    tol: float = 1e-6
    backend: str = "cpu"
    kind: str = "binary"

    @property
    def candidates(self) -> tuple[float, ...]:
        """Inverse penalties to choose from; one where it is given."""
        if isinstance(self.C, str):
            return CANDIDATES
        return tuple(float(c) for c in np.atleast_1d(np.asarray(self.C, dtype=np.float64)))

    @property
    def told(self) -> float | str | list[float]:
        """C, or what it is chosen from, as attributes of a result say it."""
        if isinstance(self.C, str):
            return self.C
        return list(self.candidates) if len(self.candidates) > 1 else self.candidates[0]

    def identity(self) -> dict[str, Any]:
        """Everything about the fits that results depend on, for a cache to know them by."""
        return {f"fit_{k}": v for k, v in vars(self).items() if k != "C"} | {"fit_C": list(self.candidates)}

    def check(self, folds: int) -> None:
        """Refuse what cannot be fitted.

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
    """Where probes are fitted: "auto" takes a GPU for logistic probes alone, as closed forms are quick on the CPU.

    And where a library fits them, only where cuML is there.

    Raises:
        InputError: an unknown backend, or a GPU was asked for and there is none.
    """
    if backend == "gpu" and method == "diffmeans":
        raise InputError("diffmeans runs on the CPU alone; use backend='auto' or 'cpu'")
    closed = method != "logistic" or kind == ORDINAL
    lacking = (kind == MULTICLASS or solver == "library") and not has_cuml()
    return resolve_backend("cpu" if backend == "auto" and (closed or lacking) else backend).name


@dataclass(frozen=True)
class Probes:
    """Fitted probes of one token.

    Attributes:
        coef: [array-like, shape: (pair, folds + 1, d)], or (group, folds + 1, d) for multiclass; the refit last.
        intercept: [array-like, shape: (pair or group, folds + 1)] float64.
        converged: [array-like, shape: (pair, folds + 1)].
        iterations: [array-like, shape: (pair, folds + 1)].
        penalty: [array-like, shape: (pair, folds + 1)] the C of each fit.
    """

    coef: Floats
    intercept: npt.NDArray[np.float64]
    converged: npt.NDArray[np.bool_]
    iterations: npt.NDArray[np.int64]
    penalty: npt.NDArray[np.float64]

    @staticmethod
    def join(parts: Sequence[Probes]) -> Probes:
        """Probes of several training sets side by side."""

        def along(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in parts], axis=1)

        return Probes(along("coef"), along("intercept"), along("converged"), along("iterations"), along("penalty"))


def fit_probes(
    X: Floats,
    signs: npt.NDArray[np.int8],
    codes: npt.NDArray[np.int64],
    fold: npt.NDArray[np.int64],
    folds: int,
    trainable: npt.NDArray[np.bool_],
    settings: Settings,
    only: int | None = None,
    refit: bool = True,
    penalty: Doubles | None = None,
) -> Probes:
    """Fit every probe without each fold, and on all training rows.

    Args:
        X: [array-like, shape: (n, d)] activations of one token.
        signs: [array-like, shape: (n, pair)] targets, as in `Contrasts`.
        codes: [array-like, shape: (n,)] group of each row.
        fold: [array-like, shape: (n,)].
        folds: their number.
        trainable: [array-like, shape: (n,)] rows that may be trained on.
        settings: how.
        only: fit one training set alone: that without this fold, or with all rows where it equals `folds`.
        refit: False leaves out the fit on all training rows.
        penalty: [array-like, shape: (pair, training sets)] the C of each fit; None = chosen here, where there is a
            choice.
    """
    fit = _fitter(X, codes, settings)
    targets = training_signs(signs, fold, folds, trainable)
    wanted = list(range(folds + refit)) if only is None else [only]
    targets = targets[:, :, wanted]
    if penalty is None:
        penalty = choose_penalties(X, signs, codes, fold, folds, trainable, settings)[:, wanted]
    found = fit(targets, penalty)
    shape = targets.shape[1:]
    return Probes(
        found.coef.reshape(-1, shape[1], X.shape[1]),
        found.intercept.reshape(-1, shape[1]),
        found.converged.reshape(shape),
        found.iterations.reshape(shape),
        penalty,
    )


Fitter = Callable[[npt.NDArray[np.int8], npt.NDArray[np.float64]], LinearFit]


def _fitter(X: Floats, codes: npt.NDArray[np.int64], settings: Settings) -> Fitter:
    """Function of (targets (n, P, K), C (P, K)) that fits P * K probes (multiclass: classes * K), K fastest."""
    backend = resolve_backend(settings.backend)

    def fit(targets: npt.NDArray[np.int8], C: npt.NDArray[np.float64]) -> LinearFit:
        flat = targets.reshape(len(X), -1)
        if settings.kind == ORDINAL:
            return closed_form.fit_order(
                X, targets, codes, codes.astype(np.float64), alpha=1 / C.ravel(),
                standardize=settings.standardize, backend=backend,
            )  # fmt: skip
        if settings.kind == MULTICLASS:
            return fit_softmax(
                X, codes, targets[:, 0] != 0, C=C.ravel(), standardize=settings.standardize, tol=settings.tol,
                backend=backend,
            )  # fmt: skip
        if settings.method != "logistic":
            return closed_form.fit_closed_form(
                X, targets, codes, settings.method, alpha=1 / C.ravel(), standardize=settings.standardize,
                backend=backend,
            )  # fmt: skip
        if settings.solver == "library":
            return _fit_library(X, flat, C.ravel(), settings)
        return fit_logistic(
            X, flat, C=C.ravel(), standardize=settings.standardize, blocks=codes, tol=settings.tol, backend=backend
        )

    return fit


def _fit_library(X: Floats, signs: npt.NDArray[np.int8], C: npt.NDArray[np.float64], settings: Settings) -> LinearFit:
    """One scikit-learn or cuML fit after the other; the reference that the batched solver is held to."""
    backend = resolve_backend(settings.backend)
    coef = np.zeros((signs.shape[1], X.shape[1]), dtype=X.dtype)
    intercept = np.zeros(len(coef))
    iterations = np.zeros(len(coef), dtype=np.int64)
    limit = 5000
    for i in range(len(coef)):
        rows = np.flatnonzero(signs[:, i])
        inside = X[rows]
        mean, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if settings.standardize:
            mean, scale = inside.mean(axis=0, dtype=np.float64), inside.std(axis=0, dtype=np.float64)
            scale[scale == 0] = 1
            inside = ((inside - mean) / scale).astype(X.dtype)
        model: Any = logistic_estimator(backend, C=float(C[i]), tol=settings.tol, max_iter=limit)
        model.fit(backend.asarray(inside), backend.asarray((signs[rows, i] > 0).astype(X.dtype)))
        coef[i] = to_numpy(model.coef_).ravel() / scale
        intercept[i] = float(to_numpy(model.intercept_).ravel()[0]) - float(coef[i] @ mean)
        iterations[i] = int(np.max(to_numpy(np.asarray(model.n_iter_))))
    return LinearFit(coef, intercept, iterations < limit, iterations)


def choose_penalties(
    X: Floats, signs: npt.NDArray[np.int8], codes: npt.NDArray[np.int64], fold: npt.NDArray[np.int64], folds: int,
    trainable: npt.NDArray[np.bool_], settings: Settings, prepare: Prepare | None = None,
    only_refit: bool = False,
) -> Doubles:  # fmt: skip
    """The penalty of every fit, by cross-validation inside its own training rows, shape (pair, folds + 1).

    A fit without folds i and j says how well a penalty does on j for the probe that leaves out i, and the other way
    round; a fit without fold i alone says it for the refit. The smallest mean loss wins, the stronger penalty
    where two are equal.

    Args:
        X, signs, codes, fold, folds, trainable, settings: as in `fit_probes`.
        prepare: from training rows [shape: (n,) bool] to the activations that are used with them.
        only_refit: look for that of the refit (the last) alone.
    """
    if len(settings.candidates) == 1:
        return np.full((signs.shape[1], folds + 1), settings.candidates[0])
    left_out = [*(() if only_refit else combinations(range(folds), 2)), *((i,) for i in range(folds))]
    inside = np.stack([trainable & ~np.isin(fold, out) for out in left_out], axis=1)
    targets = signs[:, :, None] * inside.astype(np.int8)[:, None, :]
    candidates = sorted(settings.candidates)
    loss = np.zeros((len(candidates), signs.shape[1], folds + 1))
    # Activations that depend on the training rows are fitted set by set, others all at once.
    for sets in [list(range(len(left_out)))] if prepare is None else [[s] for s in range(len(left_out))]:
        ready = X if prepare is None else prepare(inside[:, sets[0]])
        coefs, intercepts = _fit_grid(ready, codes, targets[:, :, sets], candidates, settings)
        for at, s in enumerate(sets):
            for judge in left_out[s]:
                rows = np.flatnonzero((fold == judge) & trainable)
                owner = folds if len(left_out[s]) == 1 else sum(left_out[s]) - judge
                for c in range(len(candidates)):
                    score = coefs[c, :, at] @ ready[rows].T + intercepts[c, :, at, None]
                    loss[c, :, owner] += _loss(score, signs[rows], codes[rows], settings)
    return np.asarray(np.asarray(candidates)[loss.argmin(axis=0)], dtype=np.float64)


def _fit_grid(
    X: Floats, codes: npt.NDArray[np.int64], targets: npt.NDArray[np.int8], candidates: Sequence[float],
    settings: Settings,
) -> tuple[Floats, Doubles]:  # fmt: skip
    """Every fit of `targets` (n, P, K) with each of A penalties: coefficients (A, P or G, K, d), intercepts.

    Ridge takes them as more training sets over the same rows, so that all penalties share the moments that training
    sets are told from by subtraction. (An eigendecomposition of each training system would serve its penalties too,
    but is as dear as 38 Cholesky factors at d = 576, and one factor is shared by all pairs and folds here.)
    """
    fit, shape = _fitter(X, codes, settings), targets.shape[1:]
    d, closed = X.shape[1], settings.kind == ORDINAL or settings.method == "ridge"
    step = max(1, GRID_ELEMENTS // (shape[0] * shape[1] * d)) if closed else 1
    coefs, intercepts = [], []
    for start in range(0, len(candidates), step):
        some = np.asarray(candidates[start : start + step])
        wide = np.repeat(targets, len(some), axis=2)
        found = fit(wide, np.broadcast_to(np.tile(some, shape[1]), wide.shape[1:]))
        coefs.append(found.coef.reshape(-1, shape[1], len(some), d))
        intercepts.append(found.intercept.reshape(-1, shape[1], len(some)))
    coef, intercept = np.concatenate(coefs, axis=2), np.concatenate(intercepts, axis=2)
    return np.moveaxis(coef, 2, 0), np.moveaxis(intercept, 2, 0)


def _loss(
    score: Floats, signs: npt.NDArray[np.int8], codes: npt.NDArray[np.int64], settings: Settings
) -> npt.NDArray[np.float64]:
    """Mean loss of each probe on its own rows of `signs`, shape (pair,)."""
    member = (signs != 0).T
    score = score.astype(np.float64)
    if settings.kind == MULTICLASS:
        rows = member[0]
        top = score.max(axis=0)
        total = top + np.log(np.exp(score - top).sum(axis=0))
        right = score[np.maximum(codes, 0), np.arange(len(codes))]
        return np.array([(total - right)[rows].mean()])
    if settings.kind == ORDINAL:
        each = (score - codes) ** 2
    elif settings.method == "ridge":
        each = (score - signs.T) ** 2
    else:
        each = np.logaddexp(0, -signs.T * score)
    return np.asarray((each * member).sum(axis=1) / np.maximum(member.sum(axis=1), 1), dtype=np.float64)
