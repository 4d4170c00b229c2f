"""Conditional randomisation test: the accuracy that the statistics alone would give the same probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.controls import propensity
from stratalens.analyses.controls.label_draws import LabelUnits, draw_labels
from stratalens.analyses.controls.statistic_values import Statistics, usable_statistics
from stratalens.analyses.data.array_types import Data, Doubles, Floats, Mask, Signs
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.estimators.backend import thread_count
from stratalens.analyses.estimators.probes import Settings, choose_device, fit_probes
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.slab import (
    Variables,
    blank_values,
    is_constant,
    noise_like,
    probe_token,
    stack_tokens,
)
from stratalens.analyses.stats import scores as scoring
from stratalens.analyses.stats.permutation import p_value
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError

BATCH = 10  # probes of drawn labels that are fitted together, not counting folds


def conditional_test(
    ds: Data,
    target: str = "trained_stage",
    statistics: Sequence[str] | None = None,
    site: str = "resid_post",
    pairs: Pairs = "all",
    method: str = "logistic",
    C: float | str | Sequence[float] = 0.1,
    folds: int = 5,
    groups: str = "entity_id",
    test: Mapping[str, object] | None = None,
    backend: str = "auto",
    permutations: int = 200,
    seed: int = 0,
    *,
    order: Sequence[object] | None = None,
    normalize: bool = False,
    standardize: bool = False,
    tokens: str = "each",
    resamples: int = 1000,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Test whether activations say more about the label than the statistics do.

    Labels are drawn at random from their probability given the statistics, and the same probe is fitted to each draw
    (conditional randomisation test; Candes, Fan, Janson and Lv, 2018). The mean accuracy of these probes is what the
    statistics alone would give this probe. The draws keep the number of labels in each fold (conditional permutation
    test; Berrett, Wang, Barber and Samworth, 2020). Rows of one entity move together; entities with rows of both
    classes exchange labels among their own rows.

    The p-value is as good as the estimated probability: it is exact if that is right. The probability comes from a
    cross-fitted logistic regression on splines and products of the statistics, averaged over the rows of an entity.

    Args:
        ds: Dataset with activations and statistics, or a DataArray of activations.
        target: label column whose groups are classified.
        statistics: names of the statistics to condition on; None = all of the site, and those of the output that
            `statistics_probe` uses.
        site: variable to read.
        pairs: as in `probe`, without "ordinal" and "multiclass".
        method: as in `probe`.
        C: as in `probe`, one number.
        folds: number of folds.
        groups: label column of the units that a split never divides.
        test: as in `probe`; labels then move among training rows and among test rows separately.
        backend: as in `probe`.
        permutations: number of draws; the smallest p is 1 / (permutations + 1).
        seed: of folds, draws and resamples.
        order: groups wanted, in order; None = all.
        normalize: as in `probe`; the statistics are those of the activations as stored.
        standardize: as in `probe`.
        tokens: as in `probe`.
        resamples: no effect, as in `probe`.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.

    Returns:
        Dataset with the variables of `probe` without permutations, and without the dims among (stage, layer, token)
        that the data does not have:

        - null_mean (stage, layer, token, pair): float64, mean accuracy over the draws: what the statistics alone
          would give this probe.
        - null_low, null_high (stage, layer, token, pair): float64, central 95 % of the draws.
        - p (stage, layer, token, pair): float64, one-sided, (1 + draws at least as accurate) / (1 + permutations).
        - accuracy_null, accuracy_p (stage, layer, token, pair): float64, the same as null_mean and p.
        - auc_null, auc_p (stage, layer, token, pair): float64, the same for auc_mean. Classes of unequal size are
          judged by these.
        - support (stage, layer, token, pair): float64, share of the entities whose propensity is in the range of
          both classes.

    Raises:
        InputError: as `probe`; a list of penalties; an unknown statistic; a statistic that is undefined in some rows
            only; no permutations.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> loss = rng.normal(size=(400, 1)) + np.repeat([0.0, 1.0], 200)[:, None]
        >>> x = rng.normal(size=(400, 1, 4)) + loss[..., None]
        >>> ds = xr.Dataset({"resid_post": (("entity", "token", "d_model"), x), "loss": (("entity", "token"), loss)},
        ...     coords={"age": ("entity", np.repeat(["old", "new"], 200).astype(object))})
        >>> result = conditional_test(ds, "age", ("loss",), permutations=19, progress=False)
        >>> bool((abs(result.accuracy_mean - result.null_mean) < 0.05).all()), bool((result.p > 0.05).all())
        (True, True)
    """
    if permutations < 1:
        raise InputError(f"permutations={permutations}; a conditional test needs at least one draw, e.g. 200")
    plan = make_plan(ds, target, pairs, folds, groups, test, order, 0, seed, resamples, tokens)
    if plan.contrasts.kind != "binary":
        raise InputError(f"pairs={pairs!r} has no labels to draw; use 'all', 'rest' or a list of pairs")
    settings = Settings(method, C, standardize, backend=choose_device(backend, method, "binary"))
    settings.check(folds)
    if len(settings.candidates) > 1:
        raise InputError(f"C={C!r}; every draw is fitted with the same penalty, so C must be one number, e.g. 0.1")
    source = SiteData(ds, site)
    values = Statistics(ds, source.site, statistics)
    values.require_places(source)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, source.labels("stage"))
    attrs: dict[str, Any] = {
        "target": target,
        "method": method,
        "null": "labels drawn given the statistics",
        "statistics": list(values.names),
        "C": settings.C_attr,
        "folds": folds,
        "permutations": permutations,
        "seed": seed,
        "normalize": int(normalize),
        "standardize": int(standardize),
        "tokens": tokens,
    }
    result = run_slabs(
        source,
        ConditionalSlab(plan, values, settings, permutations, normalize),
        rows=rows,
        name="conditional_test",
        params=attrs | settings.identity() | plan.identity() | values.identity(),
        options=RunOptions(skip_missing, cache, scheduler, thread_count(settings.backend, workers), progress),
    )
    return label_result(result, plan, source).assign_attrs(source.attrs() | attrs)


@dataclass(frozen=True)
class ConditionalSlab:
    """Function of a slab: a probe and its null given the statistics; a class, so that a cluster can pickle it."""

    plan: Plan
    statistics: Statistics
    settings: Settings
    draws: int
    normalize: bool

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Compute the variables of `conditional_test` for one slab."""
        activations, values = self.statistics.read(slab, self.normalize)
        function = replace(self, plan=self.plan.take(slab.rows))
        names = self.statistics.names * (values.shape[1] if self.plan.joint else 1)
        tokens = []
        for X, columns in zip(self.plan.features(activations), self.plan.features(values), strict=True):
            tokens.append(function.probe_token(X, columns[:, usable_statistics(columns, names, slab.where)]))
        return stack_tokens(tokens, slab, self.plan)

    def probe_token(self, X: Floats, values: Doubles) -> Variables:
        """Fit the probe of one token, and the same probe to drawn labels.

        Args:
            X: array of shape (n, d), activations of the rows of the plan.
            values: float64 array of shape (n, statistic), all finite.
        """
        if is_constant(X):
            return blank_values(replace(self, draws=1).probe_token(noise_like(X), values))
        variables = probe_token(X, self.plan, self.settings)
        drawn, support = self._draw(values)
        accuracy, area = self._null(X, drawn)
        # The AUC of pooled folds, as in the null: the mean of the folds' AUCs would be another statistic.
        observed = {name: np.asarray(variables[f"{name}_mean"][1], dtype=np.float64) for name in ("accuracy", "auc")}
        low, high = np.quantile(accuracy, (0.025, 0.975), axis=0)
        out: Variables = {"support": (("pair",), support), "null_low": (("pair",), low), "null_high": (("pair",), high)}
        for name, null in (("accuracy", accuracy), ("auc", area)):
            out[f"{name}_null"] = (("pair",), null.mean(axis=0))
            out[f"{name}_p"] = (("pair",), p_value(null, observed[name]))
        return variables | out | {"null_mean": out["accuracy_null"], "p": out["accuracy_p"]}

    def _draw(self, values: Doubles) -> tuple[Signs, Doubles]:
        """Draw the labels of all pairs: int8 array of shape (draws, n, pair); and the common support of each pair."""
        plan = self.plan
        n_pairs = plan.contrasts.signs.shape[1]
        signs = np.zeros((self.draws, len(values), n_pairs), dtype=np.int8)
        support = np.full(n_pairs, np.nan)
        block = plan.trainable.astype(np.int64)
        for p, sign in enumerate(plan.contrasts.signs.T):
            units = LabelUnits.of(sign, plan.fold, plan.units, block)
            first = units.first_rows()
            parts: list[Mask] = [block[first] == b for b in np.unique(block)]
            odds = propensity.cross_fitted_log_odds(units.mean(values), units.label, plan.fold[first], parts)
            support[p] = propensity.common_support(odds, units.label, np.ones(len(odds), dtype=bool))
            labels = draw_labels(units, odds, self.draws, [plan.seed, p])
            for i, label in enumerate(labels):
                signs[i, :, p] = units.signs(label)
        return signs, support

    def _null(self, X: Floats, drawn: Signs) -> tuple[Doubles, Doubles]:
        """Accuracy and AUC of probes of the drawn labels, each of shape (draws, pair)."""
        plan, n_pairs = self.plan, drawn.shape[2]
        accuracy, area = np.empty((2, len(drawn), n_pairs))
        size = max(1, BATCH // n_pairs)
        for start in range(0, len(drawn), size):
            batch = drawn[start : start + size]
            signs = np.ascontiguousarray(np.moveaxis(batch, 0, 1).reshape(len(X), -1))
            fit = fit_probes(X, signs, plan.codes, plan.fold, plan.folds, plan.trainable, self.settings, refit=False)
            score = scoring.own_fold_scores(X, fit.coef, fit.intercept, plan.fold)
            test = signs * plan.testable[:, None].astype(np.int8)
            right = scoring.is_right(score, test).sum(axis=1) / (test != 0).sum(axis=0)
            accuracy[start : start + size] = right.reshape(len(batch), n_pairs)
            concordant, pairs = scoring.concordance(score, test.T > 0, test.T < 0, plan.fold, plan.folds)
            areas = scoring.ratio(concordant.sum(axis=1), pairs.sum(axis=1))
            area[start : start + size] = areas.reshape(len(batch), n_pairs)
        return accuracy, area
