"""Probes of activations with the statistics regressed out.

The regression is fitted on the training rows of each fold only (cross-validated confound regression; Snoek, Miletic
and Scholte, 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from sklearn.preprocessing import SplineTransformer

from stratalens.analyses.controls.statistic_values import Statistics, usable_statistics
from stratalens.analyses.data.array_types import Data, Doubles, Floats, Mask
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.estimators.backend import thread_count
from stratalens.analyses.estimators.probes import Settings, choose_device
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.slab import normalize_rows, probe_token, stack_tokens
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest

KINDS = ("linear", "spline")
KNOTS = 5  # of the cubic spline of each statistic, at quantiles of the training rows


def residual_probe(
    ds: Data,
    target: str = "trained_stage",
    statistics: Sequence[str] | None = None,
    kind: str = "linear",
    site: str = "resid_post",
    pairs: Pairs = "all",
    method: str = "logistic",
    C: float | str | Sequence[float] = 0.1,
    folds: int = 5,
    groups: str = "entity_id",
    test: Mapping[str, object] | None = None,
    backend: str = "auto",
    permutations: int = 0,
    seed: int = 0,
    *,
    order: Sequence[object] | None = None,
    normalize: bool = False,
    standardize: bool = False,
    resamples: int = 1000,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
    tokens: str = "each",
) -> xr.Dataset:
    """Fit probes on the activations after the statistics are regressed out.

    For each fold, every feature is regressed on the statistics over the training rows of all groups, without the
    labels. The probes are fitted and scored on the residuals of training and test rows under that regression.

    Args:
        ds: Dataset with activations and statistics, or a DataArray of activations.
        target: label column whose groups are classified.
        statistics: names of the statistics to regress out; None = all of the site, and those of the output that
            `statistics_probe` uses.
        kind: "linear", or "spline" (a cubic spline of each statistic, linear beyond the training range).
        site: variable to read.
        pairs: as in `probe`.
        method: as in `probe`.
        C: as in `probe`. A choice for a fold uses the residuals of its training rows, from regressions that are
            fitted again without the rows that judge the choice.
        folds: number of folds.
        groups: label column of the units that a split never divides.
        test: as in `probe`.
        backend: as in `probe`.
        permutations: as in `probe`.
        seed: of folds, shuffles and resamples.
        order: groups wanted, in order; None = all.
        normalize: as in `probe`; the statistics are those of the activations as stored.
        standardize: as in `probe`.
        resamples: of the cluster bootstrap.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.
        tokens: as in `probe`.

    Returns:
        Dataset, without the dims among (stage, layer, token) that the data does not have:

        - explained (stage, layer, token): float64, share of the variance of the activations over the training rows that
          the statistics explain.
        - accuracy, auc (stage, layer, token, pair, fold): float64, on the test rows of each fold.
        - accuracy_mean (stage, layer, token, pair): float64, over all test rows.
        - accuracy_low, accuracy_high (stage, layer, token, pair): float64, 95 % cluster bootstrap over entities.
        - accuracy_null (stage, layer, token, pair): float64, mean over shuffled labels; only with permutations.
        - accuracy_p (stage, layer, token, pair): float64, one-sided permutation p; only with permutations.
        - score (stage, layer, token, pair, entity): float32, out-of-fold score of every entity in any group.
        - right (stage, layer, token, pair, entity): int8, 1 = test row that is classified correctly.
        - tested (stage, layer, token, pair, entity): int8, 1 = test row of the pair.
        - coef (stage, layer, token, pair, features): float32, from the refit on all rows.
        - intercept (stage, layer, token, pair): float64.
        - converged (stage, layer, token, pair): bool, True if all fits converged.
        - iterations (stage, layer, token, pair): int64, largest number over the fits.
        - penalty (stage, layer, token, pair): float64, C of the refit.
        - constant (stage, layer, token): bool, True where all rows are equal; all numbers are NaN there.
        - chance (pair): float64, share of the larger class.
        - entity_fold (entity): int64, -1 = in no group.

        "ordinal" and "multiclass" change variables and dims as in `probe`.

    Raises:
        InputError: as `probe`; an unknown statistic or kind; a statistic that is undefined in some rows only.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: {suggest(str(kind), KINDS)}")
    plan = make_plan(ds, target, pairs, folds, groups, test, order, permutations, seed, resamples, tokens)
    pairs_kind = plan.contrasts.kind
    device = choose_device(backend, method, pairs_kind)
    settings = Settings(method, C, standardize, backend=device, kind=pairs_kind)
    settings.check(folds)
    source = SiteData(ds, site)
    values = Statistics(ds, source.site, statistics)
    values.require_places(source)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, source.labels("stage"))
    attrs = {
        "target": target,
        "method": method,
        "kind": kind,
        "statistics": list(values.names),
        "C": settings.C_attr,
        "folds": folds,
        "seed": seed,
        "normalize": int(normalize),
        "standardize": int(standardize),
    }
    result = run_slabs(
        source,
        _ResidualSlab(plan, settings, values, kind, normalize),
        rows=rows,
        name="residual_probe",
        params=attrs | settings.identity() | plan.identity() | values.identity(),
        options=RunOptions(skip_missing, cache, scheduler, thread_count(settings.backend, workers), progress),
    )
    return label_result(result, plan, source).assign_attrs(source.attrs() | attrs)


class _ResidualSlab:
    """Function of a slab: probes of residuals; a class, so that a cluster can pickle it."""

    def __init__(self, plan: Plan, settings: Settings, statistics: Statistics, kind: str, normalize: bool) -> None:
        self.plan, self.settings, self.statistics = plan, settings, statistics
        self.kind, self.normalize = kind, normalize

    def __call__(self, slab: Slab) -> xr.Dataset:
        activations = slab.values()
        slab.refuse_nonfinite(activations)
        plan = self.plan.take(slab.rows)
        values = self.statistics.values(slab, activations)
        if self.normalize:
            activations = normalize_rows(activations, slab.where)
        names = self.statistics.names * (values.shape[1] if plan.joint else 1)
        tokens = []
        for X, columns in zip(plan.features(activations), plan.features(values), strict=True):
            used = usable_statistics(columns, names, slab.where)
            regression = Regression(X, columns[:, used], self.kind)
            variables = probe_token(X, plan, self.settings, prepare=regression.residuals)
            share = np.asarray(regression.explained(plan.trainable))
            tokens.append(variables | {"explained": ((), share)})
        return stack_tokens(tokens, slab, self.plan)


class Regression:
    """Regression of the activations of one token on statistics.

    Args:
        X: array of shape (n, d).
        values: float64 array of shape (n, statistic), all finite; may have no column.
        kind: "linear" or "spline".
    """

    def __init__(self, X: Floats, values: Doubles, kind: str) -> None:
        self.X, self.values, self.kind = X, values, kind

    def residuals(self, train: Mask) -> Floats:
        """Compute the residuals (n, d) of all rows, fitted on the training rows."""
        design = regressors(self.values, train, self.kind)
        mean = self.X[train].mean(axis=0, dtype=np.float64)
        # Singular vectors also solve collinear columns, e.g. those of a norm and its square.
        basis, size, rotation = np.linalg.svd(design[train], full_matrices=False)
        nonzero = size > size.max(initial=0) * 1e-10
        inner = basis[:, nonzero].T.astype(self.X.dtype) @ (self.X[train] - mean.astype(self.X.dtype))
        weights = (rotation[nonzero].T / size[nonzero]) @ inner.astype(np.float64)
        return np.asarray(self.X - (design @ weights + mean).astype(self.X.dtype), dtype=self.X.dtype)

    def explained(self, train: Mask) -> float:
        """Compute the explained share of the variance over training rows and features."""
        left = float(self.residuals(train)[train].var(axis=0, dtype=np.float64).sum())
        total = float(self.X[train].var(axis=0, dtype=np.float64).sum())
        return 1 - left / total if total > 0 else 0.0


def regressors(values: Doubles, train: Mask, kind: str) -> Doubles:
    """Build the columns to regress on, centred on the training rows.

    Statistics are standardised on the training rows; those that are constant there are left out.

    Args:
        values: float64 array of shape (n, statistic).
        train: bool array of shape (n,), training rows.
        kind: "linear" or "spline".

    Returns:
        float64 array of shape (n, columns).
    """
    inside = values[train]
    mean, spread = inside.mean(axis=0), inside.std(axis=0)
    varies = spread > 1e-12 * np.maximum(1e-300, np.abs(inside).max(axis=0))
    columns = (values[:, varies] - mean[varies]) / spread[varies]
    if kind == "spline":
        columns = np.concatenate([columns[:, :0], *(_spline(column, train) for column in columns.T)], axis=1)
    return np.asarray(columns - columns[train].mean(axis=0), dtype=np.float64)


def _spline(column: Doubles, train: Mask) -> Doubles:
    knots = np.unique(np.quantile(column[train], np.linspace(0, 1, KNOTS)))
    transformer = SplineTransformer(degree=3, knots=knots[:, None], extrapolation="linear", include_bias=False)
    transformer.fit(column[train][:, None])
    return np.asarray(transformer.transform(column[:, None]), dtype=np.float64)
