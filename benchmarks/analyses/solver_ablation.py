"""Measure which choices make the probe solvers fast: undo one choice at a time and compare time and solution.

Each run fits all 15 pairs x 5 folds and a refit of one slab. *Wide* has six groups of 1000 rows of 576 features, either
independent Gaussian features or the spectrum of a residual stream. *Narrow* has 50 rows of each group, in total fewer
than features. One BLAS thread. Iterations are those of the slowest fit. Every row also shows how much the directions
differ from those of the unchanged solver. Undoing a choice may change the time but not the solution.

- *without the shared curvature*: the preconditioner is the diagonal of the Gram matrix alone.
- *each pair*, *each fit by itself*: no batch, the same solver.
- *every row in every product*: pairs do not say which blocks of rows they use.
- *in float64* throughout.
- *folds from the refit's solution*: the fits of the folds start from the solution for all rows.
- *without the rotation* (narrow): all features instead of the row space.
- Ridge and LDA, *a factor for each fit*: pairs and folds share no factor; *products with the rows*: no Gram matrices by
  subtraction.

    python -m benchmarks.analyses.solver_ablation [--rounds 3]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.analyses.probes import ALL_PAIRS, FOLDS, GROUPS, PER_GROUP, gaussian, synthetic
from benchmarks.harness.document import Report, arguments, parse
from benchmarks.harness.measure import alternate
from stratalens.analyses.data.splits import entity_folds
from stratalens.analyses.data.targets import training_signs
from stratalens.analyses.estimators import gram as label_rows
from stratalens.analyses.estimators import linear_systems as probe_systems
from stratalens.analyses.estimators import logistic
from stratalens.analyses.estimators.backend import resolve_backend
from stratalens.analyses.estimators.closed_form import fit_closed_form
from stratalens.analyses.estimators.lbfgs import minimise
from stratalens.analyses.estimators.logistic import ProblemBatch, fit_logistic

TITLE, THEME = "Ablation of the probe solvers", "Analyses"
C = 0.1
AS_IT_IS = "as it is"


class Slab:
    """Rows of six groups and the targets of all fits."""

    def __init__(self, x: np.ndarray, per_group: int) -> None:
        selected = (np.arange(GROUPS * PER_GROUP) % PER_GROUP) < per_group
        self.x = np.ascontiguousarray(x[selected])
        self.codes = np.repeat(np.arange(GROUPS), per_group)
        fold = entity_folds(self.codes, np.arange(len(self.codes)), FOLDS)
        signs = np.stack([(self.codes == b) * 1 - (self.codes == a) * 1 for a, b in ALL_PAIRS], axis=1)
        self.targets = training_signs(signs.astype(np.int8), fold, FOLDS)  # (n, pair, folds + refit)
        self.flat = self.targets.reshape(len(self.x), -1)
        self.solutions: dict[str, tuple[np.ndarray, int]] = {}

    def keep(self, name: str, coef: np.ndarray, iterations: int = 0) -> None:
        """Store the solution of a candidate, in the order of the fits."""
        self.solutions[name] = np.asarray(coef, dtype=np.float64), iterations

    def logistic(self, name: str, x: np.ndarray | None = None, blocks: bool = True) -> None:
        """Run all fits in one call."""
        fit = fit_logistic(self.x if x is None else x, self.flat, C=C, blocks=self.codes if blocks else None)
        self.keep(name, fit.coef, int(fit.n_iter.max()))

    def in_parts(self, name: str, parts: list[slice]) -> None:
        """Run groups of fits, each on the rows that it uses."""
        coefs, most = [], 0
        for part in parts:
            signs = self.flat[:, part]
            rows = signs.any(axis=1)
            fit = fit_logistic(self.x[rows], signs[rows], C=C, blocks=self.codes[rows])
            coefs.append(fit.coef)
            most = max(most, int(fit.n_iter.max()))
        self.keep(name, np.concatenate(coefs), most)

    def batch(self, columns: slice | np.ndarray) -> Any:
        """Return the solver's batch of some fits, with all features."""
        signs = self.flat[:, columns]
        centred = self.x - self.x.mean(axis=0)
        return ProblemBatch.of(resolve_backend("cpu"), centred, signs, np.full(signs.shape[1], C), self.codes)

    def unrotated(self, name: str) -> None:
        """Fit without the rotation to the row space."""
        solutions = self.batch(slice(None)).fit(1e-6, 1000)
        self.keep(name, solutions.points[:, :-1], int(solutions.n_iter.max()))

    def warm(self, name: str) -> None:
        """Fit the refits first, then start the folds from their solutions."""
        which = np.arange(self.flat.shape[1]).reshape(len(ALL_PAIRS), FOLDS + 1)
        refits, folds = which[:, -1], which[:, :-1].ravel()
        first = self.batch(refits).fit(1e-6, 1000)
        objective = self.batch(folds).objective(np.dtype(np.float32))
        objective.points = np.repeat(first.points, FOLDS, axis=0)
        objective.predictors = [
            np.asfortranarray(x @ objective.points[some, :-1].T + objective.points[some, -1])
            for x, some, _ in objective.blocks
        ]
        objective.residuals = objective._residuals(objective.predictors)
        rest = minimise(objective, tol=1e-6)
        coef = np.empty((self.flat.shape[1], self.x.shape[1]))
        coef[refits], coef[folds] = first.points[:, :-1], rest.points[:, :-1]
        self.keep(name, coef, int(max(first.n_iter.max(), rest.n_iter.max())))

    def closed(self, name: str, method: str) -> None:
        """Fit ridge or LDA."""
        self.keep(name, fit_closed_form(self.x, self.targets, self.codes, method, alpha=1 / C).coef)


def diagonal_alone(xp: Any, X: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return a preconditioner with the scale of each feature but no correlations."""
    return np.diag(1 / np.sqrt(0.2 * (X * X).mean(axis=0, dtype=np.float64) + penalty))


def instead(place: Any, name: str, value: Any, work: Callable[[], None]) -> None:
    """Run `work` with one choice of the solver replaced."""
    with mock.patch.object(place, name, value):
        work()


def measure(
    report: Report, title: str, key: str, slab: Slab, candidates: dict[str, Callable[[], None]], rounds: int
) -> None:
    """Add one table; the first candidate is the unchanged solver."""
    with threadpool_limits(1):
        runs = alternate(candidates, rounds)
    best, _ = slab.solutions[AS_IT_IS]
    gaps, steps = {}, {}
    for name in candidates:
        coef, iterations = slab.solutions[name]
        cosine = (coef * best).sum(axis=1) / np.linalg.norm(coef, axis=1) / np.linalg.norm(best, axis=1)
        gaps[name], steps[name] = float(max(0.0, 1 - cosine.min())), iterations or None
    extra = {"iterations": steps, "1 - cos, largest": gaps}
    report.timings(key, title, runs, AS_IT_IS, ours=[AS_IT_IS], extra=extra)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parse(parser, quick={"rounds": 1})
    every = [slice(i, i + 1) for i in range(len(ALL_PAIRS) * (FOLDS + 1))]
    pairs = [slice(i, i + FOLDS + 1) for i in range(0, len(every), FOLDS + 1)]
    data = {"Gaussian": gaussian(1)[0, :, 0], "residual stream": synthetic(1, tokens=1)[0, :, 0]}
    with Report(__file__, options, "scipy") as report:
        for kind, x in data.items():
            key = kind.split()[0].lower()
            slab = Slab(x, PER_GROUP)
            measure(report, f"Logistic, wide, {kind}", f"logistic-wide-{key}", slab, {
                AS_IT_IS: partial(slab.logistic, AS_IT_IS),
                "without the shared curvature": partial(
                    instead, logistic, "curvature_factor", diagonal_alone,
                    partial(slab.logistic, "without the shared curvature")),
                "each pair by itself": partial(slab.in_parts, "each pair by itself", pairs),
                "each fit by itself": partial(slab.in_parts, "each fit by itself", every),
                "every row in every product": partial(slab.logistic, "every row in every product", blocks=False),
                "in float64": partial(slab.logistic, "in float64", slab.x.astype(np.float64)),
                "folds from the refit's solution": partial(slab.warm, "folds from the refit's solution"),
            }, options.rounds)  # fmt: skip
            for method in ("ridge", "lda"):
                measure(report, f"{method}, wide, {kind}", f"{method}-wide-{key}", slab, {
                    AS_IT_IS: partial(slab.closed, AS_IT_IS, method),
                    "a factor for each fit": partial(
                        instead, probe_systems, "MAX_CONDITION", 0.0,
                        partial(slab.closed, "a factor for each fit", method)),
                    "products with the rows": partial(
                        instead, label_rows, "CELL_BYTES", 0, partial(slab.closed, "products with the rows", method)),
                }, options.rounds)  # fmt: skip
            few = Slab(x, 50)
            measure(report, f"Logistic, narrow, {kind}", f"logistic-narrow-{key}", few, {
                AS_IT_IS: partial(few.logistic, AS_IT_IS),
                "without the rotation": partial(few.unrotated, "without the rotation"),
                "each pair by itself": partial(few.in_parts, "each pair by itself", pairs),
            }, options.rounds)  # fmt: skip


if __name__ == "__main__":
    main()
