"""Probes of classes that are weighted so that their statistics are equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from sklearn.linear_model import LogisticRegression

from stratalens.analyses.controls import propensity
from stratalens.analyses.controls.intervals import Resampler, fold_factor, fold_placements
from stratalens.analyses.controls.statistic_values import Statistics, usable_statistics
from stratalens.analyses.data.array_types import Codes, Data, Doubles, Floats, Mask, Signs
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.estimators.probes import Settings, choose_penalties
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.slab import (
    Variables,
    blank_values,
    is_constant,
    noise_like,
    stack_tokens,
)
from stratalens.analyses.stats.scores import ratio
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError

MAX_ITER = 1000
LEAST_EFFECTIVE = 10.0  # effective training rows of a class below which a probe is not fitted
LEAST_SUPPORT = 0.1  # share of rows with common support below which classes count as separate
LARGEST_DIFFERENCE = 0.25  # weighted standardised difference up to which a control is credible (Stuart, 2010)


def weighted_probe(
    ds: Data,
    target: str = "trained_stage",
    statistics: Sequence[str] | None = None,
    site: str = "resid_post",
    pairs: Pairs = "all",
    C: float | str | Sequence[float] = 0.1,
    folds: int = 5,
    groups: str = "entity_id",
    test: Mapping[str, object] | None = None,
    seed: int = 0,
    *,
    order: Sequence[object] | None = None,
    normalize: bool = False,
    tokens: str = "each",
    resamples: int = 1000,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Fit probes on classes that are weighted to have equal statistics.

    Every row is weighted by the probability of the other class given its statistics (overlap weights; Li, Morgan and
    Zaslavsky, 2018), in training and in scoring. The probability comes from a logistic regression on splines and
    products of the statistics that never saw the row's fold (cross-fitting). Unlike matching, this balances all
    statistics at once and leaves out no row. An effect that the statistics explain goes to chance, 1/2.

    Args:
        ds: Dataset with activations and statistics, or a DataArray of activations.
        target: label column whose groups are classified.
        statistics: names of the statistics to balance; None = all of the site, and those of the output that
            `statistics_probe` uses.
        site: variable to read.
        pairs: as in `probe`, without "ordinal" and "multiclass".
        C: as in `probe`, of a logistic regression; a choice is made inside the training rows, without weights.
        folds: number of folds.
        groups: label column of the units that a split never divides.
        test: as in `probe`; the weights of training and of test rows are then estimated separately.
        seed: of folds and resamples.
        order: groups wanted, in order; None = all.
        normalize: as in `probe`; the statistics are those of the activations as stored.
        tokens: as in `probe`.
        resamples: of the cluster bootstrap.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.

    Returns:
        Dataset, without the dims among (stage, layer, token) that the data does not have; balance_at = before, after:

        - accuracy, auc (stage, layer, token, pair, fold): float64, weighted, on the test rows of each fold.
        - accuracy_mean, auc_mean (stage, layer, token, pair): float64, weighted, over all test rows.
        - accuracy_low, accuracy_high, auc_low, auc_high (stage, layer, token, pair): float64, 95 % cluster bootstrap
          over entities, widened for overlapping training sets (Nadeau and Bengio, 2003).
        - balance (stage, layer, token, pair, statistic, balance_at): float64, absolute standardised mean difference of
          the classes among the test rows, without and with the weights.
        - support (stage, layer, token, pair): float64, share of the rows whose propensity is in the range of both
          classes, without 2.5 % of each class at its end.
        - effective_rows (stage, layer, token, pair): float64, equally weighted test rows of the same variance (Kish).
        - propensity (stage, layer, token, pair, entity): float32, probability of the positive class given the
          statistics, at equal class sizes; NaN outside the pair.
        - score (stage, layer, token, pair, entity): float32, out-of-fold score of every entity in any group.
        - right (stage, layer, token, pair, entity): float32, weight of a test row that is classified correctly, else 0.
        - tested (stage, layer, token, pair, entity): float32, weight of a test row; each class sums to half of the
          test rows.
        - coef (stage, layer, token, pair, features): float32, from the refit on all rows.
        - intercept (stage, layer, token, pair): float64.
        - converged (stage, layer, token, pair): bool, True if all fits converged.
        - penalty (stage, layer, token, pair): float64, C of the refit.
        - constant (stage, layer, token): bool, True where all rows are equal; all numbers are NaN there.
        - chance (pair): float64, 1/2, because weighted classes are equally large.
        - entity_fold (entity): int64, -1 = in no group.

        Accuracies and AUCs are NaN where the statistics separate the classes, because nothing can be said about rows
        with equal statistics: less than a tenth of the rows have common support, a class keeps fewer than ten
        effective training rows, or a weighted difference of more than 0.25 (and more than chance) remains.

    Raises:
        InputError: as `probe`; an unknown statistic; a statistic that is undefined in some rows only.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> loss = rng.normal(size=(400, 1)) + np.repeat([0.0, 1.0], 200)[:, None]
        >>> x = rng.normal(size=(400, 1, 4)) + loss[..., None]
        >>> ds = xr.Dataset({"resid_post": (("entity", "token", "d_model"), x), "loss": (("entity", "token"), loss)},
        ...     coords={"age": ("entity", np.repeat(["old", "new"], 200).astype(object))})
        >>> result = weighted_probe(ds, "age", ("loss",), progress=False)
        >>> bool((result.accuracy_low < 0.5).all()), bool((result.balance.sel(balance_at="after") < 0.1).all())
        (True, True)
    """
    plan = make_plan(ds, target, pairs, folds, groups, test, order, 0, seed, resamples, tokens)
    if plan.contrasts.kind != "binary":
        raise InputError(f"pairs={pairs!r} cannot be weighted; use 'all', 'rest' or a list of pairs")
    settings = Settings("logistic", C)
    settings.check(folds)
    source = SiteData(ds, site)
    values = Statistics(ds, source.site, statistics)
    values.require_places(source)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, source.labels("stage"))
    attrs: dict[str, Any] = {
        "target": target,
        "method": "logistic",
        "weights": "overlap",
        "statistics": list(values.names),
        "C": settings.C_attr,
        "folds": folds,
        "seed": seed,
        "normalize": int(normalize),
        "tokens": tokens,
    }
    result = run_slabs(
        source,
        WeightedSlab(plan, values, settings, normalize),
        rows=rows,
        name="weighted_probe",
        params=attrs | settings.identity() | plan.identity() | values.identity(),
        options=RunOptions(skip_missing, cache, scheduler, workers, progress),
    )
    result = label_result(result, plan, source).assign_coords(
        statistic=np.array(values.names, dtype=object), balance_at=np.array(["before", "after"], dtype=object)
    )
    result["chance"] = ("pair", np.full(result.sizes["pair"], 0.5))
    return result.assign_attrs(source.attrs() | attrs)


@dataclass(frozen=True)
class WeightedSlab:
    """Function of a slab: weighted probes of every token; a class, so that a cluster can pickle it."""

    plan: Plan
    statistics: Statistics
    settings: Settings
    normalize: bool

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Compute the variables of `weighted_probe` for one slab."""
        activations, values = self.statistics.read(slab, self.normalize)
        function = replace(self, plan=self.plan.take(slab.rows))
        names = self.statistics.names * (values.shape[1] if self.plan.joint else 1)
        tokens = []
        for X, columns in zip(self.plan.features(activations), self.plan.features(values), strict=True):
            used = usable_statistics(columns, names, slab.where)
            tokens.append(function.probe_token(X, np.where(used, columns, np.nan)))
        return stack_tokens(tokens, slab, self.plan)

    def probe_token(self, X: Floats, values: Doubles) -> Variables:
        """Fit and score the probes of one token.

        Args:
            X: array of shape (n, d), activations of the rows of the plan.
            values: float64 array of shape (n, statistic); NaN in all rows of a statistic that is left out. In a joint
                plan, the statistics of all tokens.
        """
        if is_constant(X):
            noise = np.random.default_rng(1).standard_normal(values.shape)
            return blank_values(self.probe_token(noise_like(X), noise))
        plan, settings = self.plan, self.settings
        n_pairs, count = plan.contrasts.signs.shape[1], len(self.statistics.names)
        used: Mask = np.asarray(np.isfinite(values).all(axis=0))
        odds = pair_log_odds(values[:, used], plan)
        penalty = choose_penalties(X, plan.contrasts.signs, plan.codes, plan.fold, plan.folds, plan.trainable, settings)
        fits = [[self._fit(X, odds[p], p, k, penalty[p, k]) for k in range(plan.folds + 1)] for p in range(n_pairs)]
        coef = np.stack([[fit[0] for fit in row] for row in fits])
        intercept = np.array([[fit[1] for fit in row] for row in fits])
        score = np.empty((n_pairs, len(X)), dtype=np.float32)
        for k in range(plan.folds):
            own = plan.fold == k
            score[:, own] = coef[:, k].astype(X.dtype) @ X[own].T + intercept[:, k, None]
        balance = np.full((n_pairs, len(used), 2), np.nan)
        tested, support, effective = np.zeros((n_pairs, len(X))), np.full(n_pairs, np.nan), np.full(n_pairs, np.nan)
        for p, sign in enumerate(plan.contrasts.signs.T):
            known = np.isfinite(score[p])
            tested[p] = propensity.overlap_weights(odds[p], sign, plan.testable & known)
            rows = np.flatnonzero((sign != 0) & plan.testable)
            support[p] = propensity.common_support(odds[p], sign, plan.testable)
            effective[p] = propensity.effective_rows(tested[p])
            for at, weights in enumerate((np.ones(len(X)), tested[p])):
                balance[p, used, at] = propensity.weighted_difference(values[rows][:, used], sign[rows], weights[rows])
            if _is_separate(support[p], balance[p, used, 1], effective[p]):
                tested[p] = 0.0
        by_token = balance.reshape(n_pairs, -1, count, 2)
        return self._measure(score, tested) | {
            "score": (("pair", "entity"), score),
            "tested": (("pair", "entity"), tested.astype(np.float32)),
            "propensity": (("pair", "entity"), (1 / (1 + np.exp(-odds))).astype(np.float32)),
            "balance": (("pair", "statistic", "balance_at"), _largest(by_token)),
            "support": (("pair",), support),
            "effective_rows": (("pair",), effective),
            "coef": (("pair", "feature"), coef[:, -1].astype(np.float32)),
            "intercept": (("pair",), intercept[:, -1]),
            "converged": (("pair",), np.array([all(fit[2] for fit in row) for row in fits])),
            "penalty": (("pair",), penalty[:, -1]),
            "constant": ((), np.asarray(False)),
        }

    def _fit(self, X: Floats, odds: Doubles, pair: int, fold: int, C: float) -> tuple[Doubles, float, bool]:
        """Fit one weighted logistic regression without a fold; the number of folds means on all rows."""
        plan, sign = self.plan, self.plan.contrasts.signs[:, pair]
        inside = plan.trainable & (plan.fold != fold) & (sign != 0)
        weights = propensity.overlap_weights(odds, sign, inside)
        sides = [weights * (sign == side) for side in (-1, 1)]
        if min(propensity.effective_rows(own) for own in sides) < LEAST_EFFECTIVE:
            return np.full(X.shape[1], np.nan), np.nan, True
        return fit_weighted(X[inside], sign[inside], weights[inside], C)

    def _measure(self, score: Floats, tested: Doubles) -> Variables:
        """Weighted accuracy and AUC in each fold and over all test rows, with intervals."""
        plan = self.plan
        positive = plan.contrasts.signs.T > 0
        right = tested * ((score > 0) == positive)
        place = np.stack([fold_placements(s, p, w, plan.fold) for s, p, w in zip(score, positive, tested, strict=True)])
        member = np.equal.outer(plan.fold, np.arange(plan.folds)).astype(np.float64)
        balanced = [np.zeros((len(score), plan.folds)) for _ in range(2)]
        for side in (positive, ~positive):
            for total, top in zip(balanced, (right, tested * place), strict=True):
                total += ratio((top * side) @ member, (tested * side) @ member) / 2
        resampler = Resampler(plan.units, plan.bootstrap_weights(), fold_factor(plan.folds))
        out: Variables = {"right": (("pair", "entity"), right.astype(np.float32))}
        numbers = {"accuracy": resampler.mean(right, tested), "auc": resampler.auc(tested * place, tested, positive)}
        for (name, (mean, low, high)), by_fold in zip(numbers.items(), balanced, strict=True):
            out[name] = (("pair", "fold"), by_fold)
            out |= {f"{name}_{k}": (("pair",), v) for k, v in (("mean", mean), ("low", low), ("high", high))}
        return out


def _is_separate(support: float, balance: Doubles, effective: float) -> bool:
    """Whether weights cannot make the classes comparable."""
    by_chance = 3 * np.sqrt(4 / max(effective, 1.0))  # three standard errors of a standardised difference
    limit = max(LARGEST_DIFFERENCE, float(by_chance))
    return support < LEAST_SUPPORT or bool((balance > limit).any())


def fit_weighted(X: Floats, sign: Signs, weights: Doubles, C: float) -> tuple[Doubles, float, bool]:
    """Fit an L2 logistic regression with weighted rows by scikit-learn.

    Args:
        X: array of shape (n, d).
        sign: int8 array of shape (n,), +1 or -1.
        weights: float64 array of shape (n,).
        C: inverse strength of the penalty.

    Returns:
        (coefficients, intercept, whether the fit converged).
    """
    mean = X.mean(axis=0, dtype=np.float64)
    centred = X.astype(np.float64) - mean
    rotation = None
    if len(X) < X.shape[1]:  # the coefficients are in the span of the rows
        rotation, triangle = np.linalg.qr(centred.T)
        centred = np.ascontiguousarray(triangle.T)
    model = LogisticRegression(C=C, max_iter=MAX_ITER, tol=1e-5).fit(centred, sign, sample_weight=weights)
    coef = model.coef_[0] if rotation is None else rotation @ model.coef_[0]
    return coef, float(model.intercept_[0]) - float(coef @ mean), bool(model.n_iter_[0] < MAX_ITER)


def pair_log_odds(values: Doubles, plan: Plan) -> Doubles:
    """Cross-fitted log odds of each pair given the statistics, array of shape (pair, n); see `propensity`."""
    parts: list[Mask] = [plan.trainable] if plan.trainable.all() else [plan.trainable, plan.testable & ~plan.trainable]
    signs: Signs = plan.contrasts.signs
    fold: Codes = plan.fold
    return np.stack([propensity.cross_fitted_log_odds(values, sign, fold, parts) for sign in signs.T])


def _largest(balance: Doubles) -> Doubles:
    """The largest difference over tokens (axis 1), NaN where a statistic is defined at none."""
    known = ~np.isnan(balance)
    return np.where(known.any(axis=1), np.where(known, balance, -np.inf).max(axis=1), np.nan)
