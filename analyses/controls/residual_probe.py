"""Probes of activations with the statistics regressed out.

The regression is fitted on the training rows of each fold only (cross-validated confound regression; Snoek, Miletic
and Scholte, 2019).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.controls.spline_basis import SplineBasis
from stratalens.analyses.controls.statistic_values import Statistics, usable_statistics
from stratalens.analyses.data.array_types import Codes, Data, Doubles, Floats, Mask
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.estimators.backend import thread_count
from stratalens.analyses.estimators.probes import Settings, choose_device
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.slab import probe_token, stack_tokens
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest

KINDS = ("linear", "spline")
COLUMNS_SHARE = 0.1  # largest number of columns as a share of the training entities
# Penalties of the spline regression, in units of the number of rows: a column of unit variance is shrunk by 1 + a.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e6)
INNER_FOLDS = 3  # folds of training entities that choose the penalty of each feature
VERSION = 2  # of the numbers, for the cache: results of other versions are not read


def residual_probe(
    ds: Data,
    target: str = "trained_stage",
    statistics: Sequence[str] | None = None,
    kind: str = "spline",
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
        kind: "spline" (cubic splines of each statistic and products of pairs, by ridge regression; the penalty of each
            feature is chosen by cross-validation inside the training entities, and is at least so strong that the
            regression has no more effective columns than a tenth of them), or "linear" (least squares on the
            statistics themselves, which leaves differences in spread and products).
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
        resamples: no effect, as in `probe`.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.
        tokens: as in `probe`.

    Returns:
        Dataset, without the dims among (stage, layer, token) that the data does not have:

        - explained (stage, layer, token): float64, share of the variance of the activations that the statistics
          explain on rows that the regression never saw; below 0 where it only adds noise.
        - columns (stage, layer, token): float64, effective columns of the regression on all training rows (trace of
          the hat matrix; mean over features).
        - accuracy, auc (stage, layer, token, pair, fold): float64, on the test rows of each fold.
        - accuracy_mean (stage, layer, token, pair): float64, over all test rows.
        - accuracy_low, accuracy_high (stage, layer, token, pair): float64, 95 % interval as in `probe`.
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

    Warns:
        UserWarning: kind="linear" with more columns than a tenth of the training entities, which removes real effects.
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
        params=attrs | {"version": VERSION} | settings.identity() | plan.identity() | values.identity(),
        options=RunOptions(skip_missing, cache, scheduler, thread_count(settings.backend, workers), progress),
    )
    result = label_result(result, plan, source).assign_attrs(source.attrs() | attrs)
    result.attrs["residual"] = 1
    _warn_of_columns(result, plan)
    return result


def _warn_of_columns(result: xr.Dataset, plan: Plan) -> None:
    """Warn where least squares has too many columns for the number of training entities."""
    entities = len(np.unique(plan.units[(plan.codes >= 0) & plan.trainable])) * (1 - 1 / plan.folds)
    columns = float(result["columns"].max())
    if result.attrs["kind"] == "linear" and columns > COLUMNS_SHARE * entities:
        warnings.warn(
            f"residual_probe regresses out {columns:.0f} columns with {entities:.0f} training entities; more than a "
            f"tenth removes real effects. Name fewer statistics=(...), or use kind='spline', which is penalised",
            stacklevel=3,
        )


class _ResidualSlab:
    """Function of a slab: probes of residuals; a class, so that a cluster can pickle it."""

    def __init__(self, plan: Plan, settings: Settings, statistics: Statistics, kind: str, normalize: bool) -> None:
        self.plan, self.settings, self.statistics = plan, settings, statistics
        self.kind, self.normalize = kind, normalize

    def __call__(self, slab: Slab) -> xr.Dataset:
        plan = self.plan.take(slab.rows)
        activations, values = self.statistics.read(slab, self.normalize)
        names = self.statistics.names * (values.shape[1] if plan.joint else 1)
        tokens = []
        for X, columns in zip(plan.features(activations), plan.features(values), strict=True):
            used = usable_statistics(columns, names, slab.where)
            regression = Regression(X, columns[:, used], self.kind, plan.units)
            variables = probe_token(X, plan, self.settings, prepare=regression.residuals)
            tokens.append(
                variables
                | {
                    "explained": ((), np.asarray(regression.explained(plan.trainable, plan.fold))),
                    "columns": ((), np.asarray(regression.fit(plan.trainable).columns)),
                }
            )
        return stack_tokens(tokens, slab, self.plan)


@dataclass(frozen=True)
class Fit:
    """Regression on some training rows.

    Attributes:
        design: float64 array of shape (n, columns), of all rows.
        weights: float64 array of shape (columns, d).
        mean: float64 array of shape (d,), of the training rows.
        columns: effective number of columns, mean over the features.
    """

    design: Doubles
    weights: Doubles
    mean: Doubles
    columns: float


class Regression:
    """Regression of the activations of one token on statistics.

    Args:
        X: array of shape (n, d).
        values: float64 array of shape (n, statistic), all finite; may have no column.
        kind: "linear" or "spline".
        units: int64 array of shape (n,), entity of each row; None = every row is one.
    """

    def __init__(self, X: Floats, values: Doubles, kind: str, units: Codes | None = None) -> None:
        self.X, self.values, self.kind = X, values, kind
        self.units = np.arange(len(X)) if units is None else units
        self._fits: dict[bytes, Fit] = {}  # probes, shuffles and `explained` use the same training rows

    def residuals(self, train: Mask) -> Floats:
        """Compute the residuals (n, d) of all rows, fitted on the training rows."""
        fit = self.fit(train)
        return np.asarray(self.X - (fit.design @ fit.weights + fit.mean).astype(self.X.dtype), dtype=self.X.dtype)

    def explained(self, trainable: Mask, fold: Codes) -> float:
        """Compute the explained share of the variance, of rows whose fold the regression never saw."""
        left = total = 0.0
        for k in np.unique(fold):
            own = fold == k
            fit = self.fit(trainable & ~own)
            deviation = self.X[own] - fit.mean
            total += float((deviation**2).sum())
            left += float(((deviation - fit.design[own] @ fit.weights) ** 2).sum())
        return 1 - left / total if total > 0 else 0.0

    def fit(self, train: Mask) -> Fit:
        """Fit the regression on the training rows."""
        key = train.tobytes()
        if key not in self._fits:
            self._fits[key] = self._fit(train)
        return self._fits[key]

    def _fit(self, train: Mask) -> Fit:
        mean = self.X[train].mean(axis=0, dtype=np.float64)
        if self.kind == "linear":
            design = linear_columns(self.values, train)
            # Singular vectors also solve collinear columns, e.g. those of a norm and its square.
            basis, size, rotation = np.linalg.svd(design[train], full_matrices=False)
            nonzero = size > size.max(initial=0) * 1e-10
            inner = self._project(basis[:, nonzero], train, mean)
            return Fit(design, (rotation[nonzero].T / size[nonzero]) @ inner, mean, float(nonzero.sum()))
        design = SplineBasis(self.values[train]).transform(self.values)
        basis, size, rotation = np.linalg.svd(design[train], full_matrices=False)
        inner = self._project(basis, train, mean)
        penalty = np.asarray(PENALTIES) * train.sum()
        shrinkage = size / (size**2 + penalty[:, None])  # (penalty, columns)
        columns = (size * shrinkage).sum(axis=1)
        most = COLUMNS_SHARE * len(np.unique(self.units[train]))
        allowed = np.flatnonzero(columns <= most)
        loss = self._validation_loss(train)
        chosen = allowed[loss[allowed].argmin(axis=0)]
        weights = rotation.T @ (shrinkage[chosen].T * inner)
        return Fit(design, weights, mean, float(columns[chosen].mean()))

    def _project(self, basis: Doubles, train: Mask, mean: Doubles) -> Doubles:
        """Coordinates of the centred training rows in an orthonormal basis, in the precision of the data."""
        X = self.X[train]
        return np.asarray(basis.T.astype(X.dtype) @ (X - mean.astype(X.dtype)), dtype=np.float64)

    def _validation_loss(self, train: Mask) -> Doubles:
        """Squared error of every penalty and feature on left-out training entities, shape (penalty, d)."""
        entities = np.unique(self.units[train])
        fold_of = np.random.default_rng(len(entities)).permutation(len(entities)) % INNER_FOLDS
        fold = fold_of[np.searchsorted(entities, np.where(train, self.units, entities[0]))]
        loss = np.zeros((len(PENALTIES), self.X.shape[1]))
        for k in range(INNER_FOLDS):
            inside, judge = train & (fold != k), train & (fold == k)
            mean = self.X[inside].mean(axis=0, dtype=np.float64)
            spline = SplineBasis(self.values[inside])
            basis, size, rotation = np.linalg.svd(spline.transform(self.values[inside]), full_matrices=False)
            inner = self._project(basis, inside, mean).astype(self.X.dtype)
            along = spline.transform(self.values[judge]) @ rotation.T
            deviation = self.X[judge] - mean.astype(self.X.dtype)
            for i, penalty in enumerate(np.asarray(PENALTIES) * inside.sum()):
                scaled = (along * (size / (size**2 + penalty))).astype(self.X.dtype)
                loss[i] += ((deviation - scaled @ inner) ** 2).sum(axis=0)
        return loss


def linear_columns(values: Doubles, train: Mask) -> Doubles:
    """Standardise the statistics on the training rows; those that are constant there are left out.

    Args:
        values: float64 array of shape (n, statistic).
        train: bool array of shape (n,), training rows.

    Returns:
        float64 array of shape (n, columns), with zero mean over the training rows.
    """
    inside = values[train]
    mean, spread = inside.mean(axis=0), inside.std(axis=0)
    varies = spread > 1e-12 * np.maximum(1e-300, np.abs(inside).max(axis=0))
    columns = (values[:, varies] - mean[varies]) / spread[varies]
    return np.asarray(columns - columns[train].mean(axis=0), dtype=np.float64)
