"""The verb `residual_probe`: probes of activations with the statistics regressed out.

The regression is fitted on each fold's training rows alone (cross-validated confound regression; Snoek, Miletic and
Scholte, 2019). Which statistics there are is in statistic_values.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from sklearn.preprocessing import SplineTransformer

from stratalens.analyses.controls.statistic_values import Statistics, usable
from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.estimators.backend import thread_count
from stratalens.analyses.estimators.probes import Settings, choose_device
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.slab import probe_token, stack_tokens, unit_rows
from stratalens.analyses.sweep.run import run_slabs
from stratalens.store.errors import InputError, suggest

KINDS = ("linear", "spline")


KNOTS = 5  # of each statistic's cubic spline, at quantiles of the training rows


Floats = npt.NDArray[np.floating]


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
    """Probe what is left of the activations after the statistics are regressed out.

    For each fold, every feature is regressed on the statistics over the training rows of all groups (never with the
    labels), and the residuals of training and test rows under that regression are probed.

    Args:
        ds: Dataset with activations and statistics, or a DataArray of activations.
        statistics: names; None = all of the site, and those of the output that `statistics_probe` takes.
        kind: "linear", or "spline" (a cubic spline of each statistic, linear beyond the training range).
        target, site, pairs, method, C, folds, groups, test, backend, permutations, seed, order: as in `probe`. C is
            chosen for each fold by the residuals of its training rows, regressed anew without the rows that judge.
        normalize, standardize, resamples, skip_missing, cache, scheduler, workers, progress, tokens: as in `probe`.

    Returns:
        As `probe`, and explained (..., token): share of the activations' variance over the training rows that the
        statistics explain.

    Raises:
        InputError: as `probe`; and an unknown statistic or kind, or a statistic undefined in some rows only.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: {suggest(str(kind), KINDS)}")
    plan = make_plan(ds, target, pairs, folds, groups, test, order, permutations, seed, resamples, tokens)
    settings = Settings(
        method, C, standardize, backend=choose_device(backend, method, plan.contrasts.kind), kind=plan.contrasts.kind
    )
    settings.check(folds)
    source = SiteData(ds, site)
    values = Statistics(ds, source.site, statistics)
    values.require_places(source)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, [str(source.label("stage", i)) for i in range(len(rows))])
    described = {
        "target": target, "method": method, "kind": kind, "statistics": list(values.names), "C": settings.C_attr,
        "folds": folds, "seed": seed, "normalize": int(normalize), "standardize": int(standardize),
    }  # fmt: skip
    result = run_slabs(
        source,
        _ResidualSlab(plan, settings, values, kind, normalize),
        rows=rows,
        name="residual_probe",
        params=described | settings.identity() | plan.identity() | values.identity(),
        cache=cache,
        scheduler=scheduler,
        workers=thread_count(settings.backend, workers),
        progress=progress,
    )
    return label_result(result, plan, source).assign_attrs(source.attrs() | described)


class _ResidualSlab:
    """One slab's probes of residuals; a class so that a cluster can pickle it."""

    def __init__(self, plan: Plan, settings: Settings, statistics: Statistics, kind: str, normalize: bool) -> None:
        self.plan, self.settings, self.statistics = plan, settings, statistics
        self.kind, self.normalize = kind, normalize

    def __call__(self, slab: Slab) -> xr.Dataset:
        activations = slab.values()
        slab.refuse_nonfinite(activations)
        plan = self.plan.take(slab.rows)
        values = self.statistics.values(slab, activations)
        tokens = []
        if self.normalize:
            activations = unit_rows(activations, slab.where)
        names = self.statistics.names * (values.shape[1] if plan.joint else 1)
        for X, columns in zip(plan.features(activations), plan.features(values), strict=True):
            used = usable(columns, names, slab.where)
            residuals = Residuals(X, columns[:, used], self.kind)
            variables = probe_token(X, plan, self.settings, prepare=residuals.without)
            share = np.asarray(residuals.explained(plan.trainable))
            tokens.append(variables | {"explained": ((), share)})
        return stack_tokens(tokens, slab, self.plan)


class Residuals:
    """Activations of one token with statistics regressed out.

    Args:
        X: [array-like, shape: (n, d)].
        values: [array-like, shape: (n, statistic)], all finite; may have no column.
        kind: "linear" or "spline".
    """

    def __init__(self, X: Floats, values: npt.NDArray[np.float64], kind: str) -> None:
        self.X, self.values, self.kind = X, values, kind

    def without(self, train: npt.NDArray[np.bool_]) -> Floats:
        """Residuals of all rows under the regression fitted on the training rows, shape (n, d)."""
        design = regressors(self.values, train, self.kind)
        inside = design[train]
        mean = self.X[train].mean(axis=0, dtype=np.float64)
        # Least squares through the design's own basis: columns may be collinear (a norm and its square, say).
        basis, size, turn = np.linalg.svd(inside, full_matrices=False)
        solid = size > size.max(initial=0) * 1e-10
        part = basis[:, solid].T.astype(self.X.dtype) @ (self.X[train] - mean.astype(self.X.dtype))
        weights = (turn[solid].T / size[solid]) @ part.astype(np.float64)
        return np.asarray(self.X - (design @ weights + mean).astype(self.X.dtype), dtype=self.X.dtype)

    def explained(self, train: npt.NDArray[np.bool_]) -> float:
        """Share of the variance over the training rows, all features together."""
        left = float(self.without(train)[train].var(axis=0, dtype=np.float64).sum())
        whole = float(self.X[train].var(axis=0, dtype=np.float64).sum())
        return 1 - left / whole if whole > 0 else 0.0


def regressors(values: npt.NDArray[np.float64], train: npt.NDArray[np.bool_], kind: str) -> npt.NDArray[np.float64]:
    """Columns that the activations are regressed on, centred on the training rows, shape (n, columns).

    Statistics are standardised on the training rows; those constant there are left out.
    """
    inside = values[train]
    mean, spread = inside.mean(axis=0), inside.std(axis=0)
    varied = spread > 1e-12 * np.maximum(1e-300, np.abs(inside).max(axis=0))
    standard = (values[:, varied] - mean[varied]) / spread[varied]
    if kind == "spline":
        standard = np.concatenate(
            [np.zeros((len(values), 0)), *(_spline(column, train) for column in standard.T)], axis=1
        )
    return np.asarray(standard - standard[train].mean(axis=0), dtype=np.float64)


def _spline(column: npt.NDArray[np.float64], train: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    knots = np.unique(np.quantile(column[train], np.linspace(0, 1, KNOTS)))
    transformer = SplineTransformer(degree=3, knots=knots[:, None], extrapolation="linear", include_bias=False)
    transformer.fit(column[train][:, None])
    return np.asarray(transformer.transform(column[:, None]), dtype=np.float64)
