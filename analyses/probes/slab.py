"""Probes of one slab: fitted, scored on entities they never saw, with intervals and nulls, as a small Dataset.

What all slabs share is in probe_plan.py; the verb in probes.py runs this on every stage and layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.stats import rankdata

from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.data.targets import MULTICLASS, ORDINAL
from stratalens.analyses.estimators.boosting import BOOSTING, boosted_scores
from stratalens.analyses.estimators.probes import Prepare, Probes, Settings, choose_penalties, fit_probes
from stratalens.analyses.probes.plan import Plan
from stratalens.analyses.stats import scores as scoring
from stratalens.analyses.stats.bootstrap import p_value
from stratalens.store.errors import InputError

Floats = npt.NDArray[np.floating]


# What `accuracy` is called for each kind of probe.
QUALITY = {"binary": "accuracy", MULTICLASS: "accuracy", ORDINAL: "r2"}


# Probes of shuffled labels that are fitted together, before folds.
SHUFFLED_PROBES = 10


Variables = dict[str, tuple[tuple[str, ...], npt.NDArray[np.generic]]]


class ProbeSlab:
    """The function of one slab; a class so that a cluster can pickle it.

    Args:
        plan: what all slabs share.
        settings: how probes are fitted.
        normalize: divide activation vectors by their L2 norm.
        fold_coefs: return the probes of every fold.
    """

    def __init__(self, plan: Plan, settings: Settings, normalize: bool = False, fold_coefs: bool = False) -> None:
        self.plan, self.settings, self.normalize, self.fold_coefs = plan, settings, normalize, fold_coefs

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Dataset with dims token, pair, fold, entity (all rows of the data; NaN where unused) and features."""
        values = slab.values()
        slab.refuse_nonfinite(values)
        plan = self.plan.take(slab.rows)
        if self.normalize:
            values = unit_rows(values, slab.where)
        tokens = [probe_token(X, plan, self.settings, self.fold_coefs) for X in plan.features(values)]
        return stack_tokens(tokens, slab, self.plan)


def stack_tokens(tokens: Sequence[Variables], slab: Slab, plan: Plan, features: str | None = None) -> xr.Dataset:
    """One Dataset from the results of every token; where `plan` (of all rows) joins them, `token` is a feature dim.

    Rows that the slab does not use are NaN (0 in counts) along `entity`; the dim `feature` becomes `features`, or
    the slab's own feature dims.
    """
    out: Variables = {}
    n_entities = len(plan.codes)
    for name, (dims, first) in tokens[0].items():
        stacked = np.stack([token[name][1] for token in tokens]) if len(tokens) > 1 else first[None]
        last = dims[-1] if dims else ""
        if last == "entity" and len(slab.rows) < n_entities:
            missing = np.nan if stacked.dtype.kind == "f" else 0
            whole = np.full((*stacked.shape[:-1], n_entities), missing, dtype=stacked.dtype)
            whole[..., slab.rows] = stacked
            stacked = whole
        if last == "feature":
            width, own = ((features,), (-1,)) if features is not None else (slab.feature_dims, slab.feature_shape)
            joined, parts = (("token",), (slab.shape[1],)) if plan.joint else ((), ())
            dims = (*dims[:-1], *joined, *width)
            stacked = stacked.reshape(*stacked.shape[:-1], *parts, *own)
        out[name] = (dims, stacked[0]) if plan.joint else (("token", *dims), stacked)
    return xr.Dataset(out)


def probe_token(
    X: Floats, plan: Plan, settings: Settings, fold_coefs: bool = False, prepare: Prepare | None = None
) -> Variables:
    """Everything about the probes of one token.

    Args:
        X: [array-like, shape: (n, d)] activations of the plan's rows.
        plan: of exactly these rows.
        settings: how.
        fold_coefs: also return the probes of every fold.
        prepare: from training rows [shape: (n,) bool] to the activations [shape: (n, d)] that probes of these rows
            are fitted and scored on, made from these rows alone.

    Returns:
        {name: (dims, values)} with dims among pair, group, fold, entity, feature.
    """
    if constant(X):
        once = replace(plan, permutations=min(plan.permutations, 1))
        return no_numbers(probe_token(_noise(X), once, settings, fold_coefs))
    fitted, score = _fit_and_score(X, plan, settings, prepare)
    kind = plan.contrasts.kind
    rank = "group" if kind == MULTICLASS else "pair"
    out: Variables = {"score": ((rank, "entity"), score), **quality(score, plan), "constant": ((), np.asarray(False))}
    if fitted is not None:
        coef, intercept = fitted.coef, fitted.intercept
        out |= {
            "coef": ((rank, "feature"), coef[:, -1]),
            "intercept": ((rank,), intercept[:, -1]),
            "converged": (("pair",), np.asarray(fitted.converged.all(axis=1))),
            "iterations": (("pair",), fitted.n_iter.max(axis=1)),
            "penalty": (("pair",), fitted.penalty[:, -1]),
        }
        if fold_coefs:
            out["fold_coef"] = ((rank, "fold", "feature"), coef[:, :-1])
            out["fold_intercept"] = ((rank, "fold"), intercept[:, :-1])
    if plan.permutations:
        name = QUALITY[kind]
        null = _null(X, plan, settings, prepare)
        out[f"{name}_null"] = (("pair",), null.mean(axis=0))
        out[f"{name}_p"] = (("pair",), p_value(null, np.asarray(out[f"{name}_mean"][1])))
    return out


def constant(X: Floats) -> bool:
    """Whether all rows are equal, e.g. the embedding of a token that all prompts share: there is nothing to probe."""
    return bool((X[:1] == X[:2]).all() and (X[:1] == X).all())


def no_numbers(variables: Variables) -> Variables:
    """What stands at a place where there is nothing to probe, from what would stand there for noise."""
    blank: Variables = {}
    for name, (dims, values) in variables.items():
        if name == "constant":
            values = np.asarray(True)
        elif name not in ("converged", "penalty"):
            values = np.full_like(values, np.nan if values.dtype.kind == "f" else 0)
        blank[name] = (dims, values)
    return blank


def _noise(X: Floats) -> Floats:
    return np.random.default_rng(0).standard_normal(X.shape).astype(X.dtype)


def unit_rows(X: Floats, where: str = "activations") -> Floats:
    """Vectors of the last axis divided by their L2 norm.

    Raises:
        InputError: a row of zeros, which has no direction.
    """
    length = np.linalg.norm(X, axis=-1, keepdims=True)
    if not (length > 0).all():
        raise InputError(
            f"{where}: {int((length == 0).sum())} activation vectors are zero and have no direction; "
            f"leave normalize= out, or these rows"
        )
    return np.asarray(X / length, dtype=X.dtype)


def _fit_and_score(
    X: Floats, plan: Plan, settings: Settings, prepare: Prepare | None, refit: bool = True
) -> tuple[Probes | None, npt.NDArray[np.float32]]:
    """Probes (None where they are no linear functions) and out-of-fold scores, shape (pair or group, n).

    Without `refit` the probes of all training rows, which score nothing, are left out.
    """
    signs = plan.contrasts.signs
    if settings.method == BOOSTING:
        return None, boosted_scores(X, signs, plan.fold, plan.folds, plan.trainable, plan.seed)
    parts = (signs, plan.codes, plan.fold, plan.folds, plan.trainable, settings)
    if prepare is None:
        fitted = fit_probes(X, *parts, refit=refit)
        coef, intercept = fitted.coef[:, : plan.folds], fitted.intercept[:, : plan.folds]
        return fitted, scoring.own_fold_scores(X, coef, intercept, plan.fold)
    score: npt.NDArray[np.float32] | None = None
    found = []
    penalty = choose_penalties(X, *parts, prepare=prepare)
    for k in range(plan.folds + refit):
        ready = prepare(plan.trainable & (plan.fold != k))
        found.append(fit_probes(ready, *parts, only=k, penalty=penalty[:, [k]]))
        own = plan.fold == k
        if score is None:
            score = np.empty((len(found[0].coef), len(X)), dtype=np.float32)
        score[:, own] = found[k].coef[:, 0] @ ready[own].T + found[k].intercept[:, :1]
    assert score is not None  # there are at least two folds
    return Probes.join(found), score


def _right(score: Floats, plan: Plan, test: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Test rows that are classified rightly, shape (pair, n)."""
    if plan.contrasts.kind == MULTICLASS:
        right: npt.NDArray[np.bool_] = ((score.argmax(axis=0) == plan.codes) & (test[:, 0] != 0))[None]
        return right
    return scoring.is_right(score, test)


def _auc(score: Floats, plan: Plan, test: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """AUC of each fold; for several classes the mean over each class against the rest."""
    if plan.contrasts.kind != MULTICLASS:
        return scoring.fold_auc(score, test, plan.fold, plan.folds)
    own = np.where(plan.codes[:, None] == np.arange(len(score)), 1, -1).astype(np.int8)
    each = scoring.fold_auc(score, own * test, plan.fold, plan.folds)
    return np.asarray(each.mean(axis=0, keepdims=True), dtype=np.float64)


def quality(score: Floats, plan: Plan, resample: bool = True) -> Variables:
    """How right the scores are: in each fold, and over all test rows with an interval (unless resample=False).

    Args:
        score: [array-like, shape: (pair or group, n)] out of fold.
        plan: of exactly these rows.
        resample: also give the means and intervals.
    """
    test = plan.test_signs
    if plan.contrasts.kind == ORDINAL:
        each, top, bottom = _order_quality(score[0], plan)
        unexplained, worse, better = scoring.cluster_interval(top, bottom, plan.units, plan.draws())
        return each | {
            "r2_mean": (("pair",), 1 - unexplained),
            "r2_low": (("pair",), 1 - better),
            "r2_high": (("pair",), 1 - worse),
        }
    right, counted = _right(score, plan, test), (test != 0).T
    out: Variables = {
        "accuracy": (("pair", "fold"), scoring.fold_means(right, counted, plan.fold, plan.folds)),
        "auc": (("pair", "fold"), _auc(score, plan, test)),
        "right": (("pair", "entity"), right.astype(np.int8)),
        "tested": (("pair", "entity"), counted.astype(np.int8)),
    }
    if resample:
        mean, low, high = scoring.cluster_interval(right, counted, plan.units, plan.draws())
        out["accuracy_mean"] = (("pair",), mean)
        out["accuracy_low"] = (("pair",), low)
        out["accuracy_high"] = (("pair",), high)
    return out


def _null(X: Floats, plan: Plan, settings: Settings, prepare: Prepare | None) -> npt.NDArray[np.float64]:
    """Quality of every probe after each shuffle of the labels over entities, shape (permutation, pair)."""
    if plan.contrasts.kind != "binary" or settings.method == BOOSTING:
        return np.stack([_shuffled_quality(X, plan.shuffled(i), settings, prepare) for i in range(plan.permutations)])
    # Shuffles keep rows and folds, so those of many shuffles are just more probes over the same rows: solved
    # together they share every pass over X, its rotation and the preconditioner.
    pairs = plan.contrasts.signs.shape[1]
    size = max(1, SHUFFLED_PROBES // pairs)
    found = []
    for start in range(0, plan.permutations, size):
        several = [plan.shuffled(i).contrasts.signs for i in range(start, min(start + size, plan.permutations))]
        signs = np.concatenate(several, axis=1)
        wide = replace(plan, contrasts=replace(plan.contrasts, signs=signs))
        found.append(_shuffled_quality(X, wide, settings, prepare).reshape(len(several), pairs))
    return np.concatenate(found)


def _shuffled_quality(
    X: Floats, shuffled: Plan, settings: Settings, prepare: Prepare | None
) -> npt.NDArray[np.float64]:
    _, score = _fit_and_score(X, shuffled, settings, prepare, refit=False)
    if shuffled.contrasts.kind == ORDINAL:
        _, top, bottom = _order_quality(score[0], shuffled)
        return np.asarray(1 - top.sum(axis=1) / bottom.sum(axis=1), dtype=np.float64)
    test = shuffled.test_signs
    return np.asarray(_right(score, shuffled, test).sum(axis=1) / (test != 0).sum(axis=0), dtype=np.float64)


def _order_quality(score: Floats, plan: Plan) -> tuple[Variables, Floats, Floats]:
    """R2 and Spearman's correlation with the order in each fold; squared errors and deviations of every row (1, n)."""
    counted = plan.test_signs[:, 0] != 0
    r2, rho = np.full(plan.folds, np.nan), np.full(plan.folds, np.nan)
    truth = plan.codes.astype(np.float64)
    error = np.where(counted, (score - truth) ** 2, 0.0)
    deviation = np.where(counted, (truth - truth[counted].mean()) ** 2, 0.0)
    for k in range(plan.folds):
        rows = np.flatnonzero((plan.fold == k) & counted)
        if len(rows) > 1 and np.ptp(truth[rows]) > 0:
            r2[k] = 1 - error[rows].sum() / deviation[rows].sum()
            if np.ptp(score[rows]) > 0:
                rho[k] = np.corrcoef(rankdata(score[rows]), rankdata(truth[rows]))[0, 1]
    each: Variables = {"r2": (("pair", "fold"), r2[None]), "rank_correlation": (("pair", "fold"), rho[None])}
    return each, error[None], deviation[None]
