"""Probes of one slab: fits, scores on unseen entities, intervals and nulls."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.data.array_types import Doubles, Floats
from stratalens.analyses.data.cancellation import raise_if_cancelled
from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.data.targets import MULTICLASS
from stratalens.analyses.estimators.boosting import BOOSTING, boosted_scores
from stratalens.analyses.estimators.probes import Prepare, Probes, Settings, choose_penalties, fit_probes
from stratalens.analyses.probes.plan import Plan
from stratalens.analyses.probes.quality import Variables, measures, quality_values, score_quality
from stratalens.analyses.stats import scores as scoring
from stratalens.analyses.stats.max_t import SHUFFLED, SHUFFLED_ROWS
from stratalens.analyses.stats.permutation import p_value
from stratalens.store.errors import InputError

__all__ = ["ProbeSlab", "Variables", "probe_token", "score_quality", "stack_tokens"]

SHUFFLED_PROBES = 10  # probes of shuffled labels that are fitted together, not counting folds


class ProbeSlab:
    """Function of a slab: probes of every token; a class, so that a cluster can pickle it.

    Args:
        plan: plan of the call.
        settings: of the fits.
        normalize: divide activation vectors by their L2 norm.
        fold_coefs: return the probes of every fold.
    """

    def __init__(self, plan: Plan, settings: Settings, normalize: bool = False, fold_coefs: bool = False) -> None:
        self.plan, self.settings, self.normalize, self.fold_coefs = plan, settings, normalize, fold_coefs

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Compute the variables of `probe` for one slab; `entity` has all rows of the data, NaN where unused."""
        values = slab.values()
        slab.refuse_nonfinite(values)
        if self.normalize:
            values = normalize_rows(values, slab.where)
        plan = self.plan.take(slab.rows)
        tokens = [probe_token(X, plan, self.settings, self.fold_coefs) for X in plan.features(values)]
        return stack_tokens(tokens, slab, self.plan)


def stack_tokens(tokens: Sequence[Variables], slab: Slab, plan: Plan, features: str | None = None) -> xr.Dataset:
    """Combine the results of all tokens in one Dataset.

    Rows that the slab does not use are NaN along `entity` (0 in counts). The dim `feature` becomes `features`, or the
    feature dims of the slab. In a joint plan, `token` is one of the feature dims.

    Args:
        tokens: results of `probe_token`.
        slab: slab of the results.
        plan: plan of all rows of the data.
        features: name of the features; None = those of the slab.
    """
    out: Variables = {}
    n_entities = len(plan.codes)
    for name, (dims, first) in tokens[0].items():
        stacked = np.stack([token[name][1] for token in tokens]) if len(tokens) > 1 else first[None]
        last = dims[-1] if dims else ""
        if last == "entity" and len(slab.rows) < n_entities:
            missing = np.nan if stacked.dtype.kind == "f" else 0
            all_rows = np.full((*stacked.shape[:-1], n_entities), missing, dtype=stacked.dtype)
            all_rows[..., slab.rows] = stacked
            stacked = all_rows
        if last == "feature":
            names, shape = (slab.feature_dims, slab.feature_shape) if features is None else ((features,), (-1,))
            if plan.joint:
                names, shape = ("token", *names), (slab.shape[1], *shape)
            dims = (*dims[:-1], *names)
            stacked = stacked.reshape(*stacked.shape[:-1], *shape)
        out[name] = (dims, stacked[0]) if plan.joint else (("token", *dims), stacked)
    if any("permutation" in dims for dims, _ in out.values()):
        out[SHUFFLED_ROWS] = ((), np.asarray(zlib.crc32(np.ascontiguousarray(slab.rows).tobytes()), dtype=np.int64))
    return xr.Dataset(out)


def probe_token(
    X: Floats, plan: Plan, settings: Settings, fold_coefs: bool = False, prepare: Prepare | None = None
) -> Variables:
    """Fit and score the probes of one token.

    Args:
        X: array of shape (n, d), activations of the rows of the plan.
        plan: plan of exactly these rows.
        settings: of the fits.
        fold_coefs: also return the probes of every fold.
        prepare: from training rows, bool array of shape (n,), to the activations, array of shape (n, d), that probes
            of these rows are fitted and scored on; it may look at these rows only.

    Returns:
        {name: (dims, values)} with dims among pair, group, fold, permutation, entity and feature.
    """
    if is_constant(X):
        short = replace(plan, permutations=min(plan.permutations, 1))
        return _repeat_permutations(blank_values(probe_token(noise_like(X), short, settings, fold_coefs)), plan)
    shift = None
    if prepare is None and settings.method != BOOSTING:
        # Scores of uncentred rows lose digits in float32. Any vector near the mean is enough.
        rows = np.flatnonzero(plan.trainable)
        shift = X[rows[:: max(1, len(rows) // 256)]].mean(axis=0, dtype=np.float64).astype(X.dtype)
        X = X - shift
    fitted, score = _fit_and_score(X, plan, settings, prepare)
    kind = plan.contrasts.kind
    rank = "group" if kind == MULTICLASS else "pair"
    out: Variables = {
        "score": ((rank, "entity"), score),
        **score_quality(score, plan),
        "constant": ((), np.asarray(False)),
    }
    if fitted is not None:
        coef, intercept = fitted.coef, fitted.intercept
        if shift is not None:
            intercept = intercept - np.einsum("pkd,d->pk", coef, shift.astype(np.float64))
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
        for name, null in _null(X, plan, settings, prepare).items():
            known = ~np.isnan(null)  # shuffles in which every class has a test row
            out[f"{name}_null"] = (("pair",), scoring.ratio(np.where(known, null, 0).sum(axis=1), known.sum(axis=1)))
            out[f"{name}_p"] = (("pair",), p_value(null.T, np.asarray(out[f"{name}_mean"][1])))
            out[f"{name}{SHUFFLED}"] = (("pair", "permutation"), null.astype(np.float32))
    return out


def _repeat_permutations(variables: Variables, plan: Plan) -> Variables:
    """Repeat the only shuffle of blank values as often as the plan says."""
    return {
        name: (dims, np.repeat(values, plan.permutations, axis=-1) if dims[-1:] == ("permutation",) else values)
        for name, (dims, values) in variables.items()
    }


def is_constant(X: Floats) -> bool:
    """Whether all rows are equal, as for a token that all prompts share."""
    return bool((X[:1] == X[:2]).all() and (X[:1] == X).all())


def blank_values(variables: Variables) -> Variables:
    """Replace numbers by NaN, and counts by 0, for constant activations."""
    blank: Variables = {}
    for name, (dims, values) in variables.items():
        if name == "constant":
            values = np.asarray(True)
        elif name not in ("converged", "penalty"):
            values = np.full_like(values, np.nan if values.dtype.kind == "f" else 0)
        blank[name] = (dims, values)
    return blank


def noise_like(X: Floats) -> Floats:
    """Draw noise of the shape and dtype of X, to learn the variables of its results."""
    return np.random.default_rng(0).standard_normal(X.shape).astype(X.dtype)


def normalize_rows(X: Floats, where: str = "activations") -> Floats:
    """Divide the vectors of the last axis by their L2 norm.

    Raises:
        InputError: vectors of zeros, which have no direction.
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
    """Fit probes and score every row by those that never saw its fold.

    Args:
        X: array of shape (n, d).
        plan: plan of these rows.
        settings: of the fits.
        prepare: as in `probe_token`.
        refit: also fit probes on all training rows.

    Returns:
        probes: None if they are not linear.
        score: float32 array of shape (pair or group, n).
    """
    targets, fold = plan.contrasts, plan.fold
    if settings.method == BOOSTING:
        return None, boosted_scores(X, targets.signs, fold, plan.folds, plan.trainable, plan.seed)
    arguments = (targets.signs, plan.codes, fold, plan.folds, plan.trainable, settings)
    if prepare is None:
        fitted = fit_probes(X, *arguments, refit=refit)
        coef, intercept = fitted.coef[:, : plan.folds], fitted.intercept[:, : plan.folds]
        return fitted, scoring.own_fold_scores(X, coef, intercept, fold)
    n_scores = len(plan.group_names) if targets.kind == MULTICLASS else targets.signs.shape[1]
    score = np.empty((n_scores, len(X)), dtype=np.float32)
    fits = []
    penalty = choose_penalties(X, *arguments, prepare=prepare)
    for k in range(plan.folds + refit):
        prepared = prepare(plan.trainable & (fold != k))
        fit = fit_probes(prepared, *arguments, only=k, penalty=penalty[:, [k]])
        own = fold == k
        score[:, own] = fit.coef[:, 0] @ prepared[own].T + fit.intercept[:, :1]
        fits.append(fit)
    return Probes.join(fits), score


def _null(X: Floats, plan: Plan, settings: Settings, prepare: Prepare | None) -> dict[str, Doubles]:
    """Measures of every probe after each shuffle of the labels over entities, each of shape (pair, permutation)."""
    shuffles = range(plan.permutations)
    pairs = plan.contrasts.signs.shape[1]
    if plan.contrasts.kind != "binary" or settings.method == BOOSTING:
        values = [_shuffled_quality(X, plan.shuffle_labels(i), settings, prepare) for i in shuffles]
        return {name: np.stack([v[name] for v in values], axis=1) for name in measures(plan.contrasts.kind)}
    # Shuffles keep rows and folds. The probes of several shuffles are therefore solved together: they share every
    # pass over X, its rotation and the preconditioner.
    size = max(1, SHUFFLED_PROBES // pairs)
    values = []
    for start in range(0, plan.permutations, size):
        batch = [plan.shuffle_labels(i).contrasts.signs for i in shuffles[start : start + size]]
        wide = replace(plan, contrasts=replace(plan.contrasts, signs=np.concatenate(batch, axis=1)))
        quality = _shuffled_quality(X, wide, settings, prepare)
        values.append({name: v.reshape(len(batch), pairs).T for name, v in quality.items()})
    return {name: np.concatenate([v[name] for v in values], axis=1) for name in measures(plan.contrasts.kind)}


def _shuffled_quality(X: Floats, shuffled: Plan, settings: Settings, prepare: Prepare | None) -> dict[str, Doubles]:
    raise_if_cancelled()
    _, score = _fit_and_score(X, shuffled, settings, prepare, refit=False)
    return quality_values(score, shuffled)
