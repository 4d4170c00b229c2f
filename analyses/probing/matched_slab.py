"""Matched probes of one slab: rows matched on the training part of each split, three probes, one test part.

The verb is in matched.py, the matching itself in matching.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.backend import resolve
from stratalens.analyses.engine.slabs import Slab
from stratalens.analyses.fitting.estimators import Settings, choose_penalties
from stratalens.analyses.fitting.logistic import fit_logistic
from stratalens.analyses.probing import matching, scoring
from stratalens.analyses.probing.probe_plan import Plan
from stratalens.analyses.probing.probe_slab import Variables, constant, no_numbers, stack_tokens, unit_rows
from stratalens.analyses.probing.statistic_values import Statistics, usable
from stratalens.store.errors import InputError

SAMPLES = ("all", "matched", "random_subsample")
LEAST = 20  # a probe trained on fewer matched rows says nothing


@dataclass(frozen=True)
class MatchOptions:
    """How rows are matched and probes fitted; the fields are arguments of `matched_probe`."""

    method: str
    bins: int
    settings: Settings
    small: str
    normalize: bool

    def identity(self) -> dict[str, Any]:
        """Everything that results depend on, for a cache to know them by."""
        own = {k: v for k, v in vars(self).items() if k != "settings"}
        return own | self.settings.identity()


class MatchedSlab:
    """One slab's matched probes; a class so that a cluster can pickle it.

    Args:
        plan: what all slabs share.
        held: [array-like, shape: (repeat, entity)] test rows of each split.
        statistics: what is matched.
        options: how.
    """

    def __init__(self, plan: Plan, held: npt.NDArray[np.bool_], statistics: Statistics, options: MatchOptions) -> None:
        self.plan, self.held, self.statistics, self.options = plan, held, statistics, options

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Dataset with the variables of `matched_probe`."""
        activations = slab.values()
        slab.refuse_nonfinite(activations)
        plan, held = self.plan.take(slab.rows), self.held[:, slab.rows]
        values = self.statistics.values(slab, activations)
        if self.options.normalize:
            activations = unit_rows(activations, slab.where)
        every = list(range(activations.shape[1]))
        tokens = []
        for X, own in zip(plan.features(activations), [every] if plan.joint else [[t] for t in every], strict=True):
            where = f"{slab.where}, token {', '.join(_token(slab, t) for t in own)}"
            tokens.append(_one_probe(X, values[:, own], self.statistics.names, plan, held, self.options, where))
        return stack_tokens(tokens, slab, self.plan)


def _one_probe(
    X: npt.NDArray[np.floating],
    values: npt.NDArray[np.float64],
    names: Sequence[str],
    plan: Plan,
    held: npt.NDArray[np.bool_],
    options: MatchOptions,
    where: str,
) -> Variables:
    """Matched probes of X (n, d), matched on values (n, token, statistic): rows are kept that are at every token."""
    if constant(X):
        noise = np.random.default_rng(0).standard_normal(X.shape).astype(X.dtype)
        other = np.random.default_rng(1).standard_normal(values.shape)
        return no_numbers(_one_probe(noise, other, names, plan, held, replace(options, small="nan"), where))
    n_tokens = values.shape[1]
    used = np.stack([usable(values[:, t], names, where) for t in range(n_tokens)])
    if not used.any():
        raise InputError(f"{where}: none of the statistics ({', '.join(names)}) is defined here; narrow the tokens")
    n_repeats, n_pairs = len(held), plan.contrasts.signs.shape[1]
    signs = np.zeros((len(X), n_pairs, n_repeats, len(SAMPLES)), dtype=np.int8)
    balance = np.full((n_pairs, n_repeats, n_tokens, values.shape[2], 2), np.nan)
    kept = np.zeros((n_pairs, n_repeats), dtype=np.int64)
    for p in range(n_pairs):
        for r in range(n_repeats):
            rng = np.random.default_rng([plan.seed, p, r])
            rows = np.flatnonzero((plan.contrasts.signs[:, p] != 0) & ~held[r] & plan.trainable)
            sign = plan.contrasts.signs[rows, p]
            parts = [values[rows, t][:, used[t]] for t in range(n_tokens)]
            if options.method == "bins":
                each = [matching.match_bins(part, sign > 0, options.bins, rng) for part in parts]
                keep = matching.even_out(np.logical_and.reduce(each), sign > 0, rng) if n_tokens > 1 else each[0]
            else:
                keep = matching.match_nearest(np.concatenate(parts, axis=1), sign > 0, rng)
            kept[p, r] = keep.sum()
            for t, part in enumerate(parts):
                balance[p, r, t, used[t], 0] = matching.standardised_difference(part, sign > 0)
            signs[rows, p, r, 0] = sign
            if kept[p, r] < LEAST:
                if options.small == "raise":
                    told = np.tile(np.asarray(names, dtype=object), n_tokens)[used.ravel()]
                    joined = np.concatenate(parts, axis=1)
                    raise InputError(_too_small(where, plan, p, kept[p, r], joined, sign, told, options))
                continue
            for t, part in enumerate(parts):
                balance[p, r, t, used[t], 1] = matching.standardised_difference(part[keep], sign[keep] > 0)
            signs[rows[keep], p, r, 1] = sign[keep]
            for side in (-1, 1):
                drawn = rng.choice(rows[sign == side], kept[p, r] // 2, replace=False)
                signs[drawn, p, r, 2] = side
    return _scores(X, signs, plan, held, kept, options) | {
        "constant": ((), np.asarray(False)),
        "balance": (("pair", "statistic", "balance_at"), _mean_over_repeats(_worst_token(balance))),
        "n_matched": (("pair", "repeat"), kept),
    }


def _scores(
    X: npt.NDArray[np.floating],
    signs: npt.NDArray[np.int8],
    plan: Plan,
    held: npt.NDArray[np.bool_],
    kept: npt.NDArray[np.int64],
    options: MatchOptions,
) -> Variables:
    """Fit all probes of one token, score each on the test rows of its own split."""
    _, n_pairs, n_repeats, n_samples = signs.shape
    flat = signs.reshape(len(X), -1)
    fitted = np.flatnonzero((flat != 0).any(axis=0))
    settings = options.settings
    C = choose_penalties(
        X, flat[:, fitted], plan.codes, plan.fold, plan.folds, plan.trainable, settings, only_refit=True
    )[:, -1]
    fit = fit_logistic(
        X, flat[:, fitted], C=C, standardize=settings.standardize, blocks=plan.codes, tol=settings.tol,
        backend=resolve(settings.backend),
    )  # fmt: skip
    coef = np.full((flat.shape[1], X.shape[1]), np.nan, dtype=X.dtype)
    intercept = np.full(flat.shape[1], np.nan)
    coef[fitted], intercept[fitted] = fit.coef, fit.intercept
    weights = coef.reshape(n_pairs, n_repeats, n_samples, -1)
    offsets = intercept.reshape(n_pairs, n_repeats, n_samples)
    truth = plan.contrasts.signs
    accuracy = np.full((n_pairs, n_repeats, n_samples), np.nan)
    area = np.full_like(accuracy, np.nan)
    right = np.zeros((n_pairs, n_samples, len(X)), dtype=np.int16)
    tested = np.zeros_like(right)
    for r in range(n_repeats):
        rows = np.flatnonzero(held[r] & plan.testable)
        for p in range(n_pairs):
            mine = rows[truth[rows, p] != 0]
            score = weights[p, r] @ X[mine].T + offsets[p, r, :, None]
            positive = truth[mine, p] > 0
            known = np.isfinite(score).all(axis=1)
            hit = (score > 0) == positive
            accuracy[p, r, known] = hit[known].mean(axis=1)
            area[p, r, known] = [scoring.auc(s, positive) for s in score[known]]
            right[p][np.ix_(known, mine)] += hit[known].astype(np.int16)
            tested[p][np.ix_(known, mine)] += 1
    draws = plan.draws()
    shape = (n_pairs, n_samples)
    mean, low, high = (
        v.reshape(shape)
        for v in scoring.cluster_interval(right.reshape(-1, len(X)), tested.reshape(-1, len(X)), plan.units, draws)
    )
    # Where some repeat has no matched set, the two samples are compared on the others.
    gap, gap_low, gap_high = scoring.cluster_interval(right[:, 1] - right[:, 2], tested[:, 1], plan.units, draws)
    converged = np.ones(flat.shape[1], dtype=bool)
    converged[fitted] = fit.converged
    return {
        "accuracy": (("pair", "repeat", "sample"), accuracy),
        "auc": (("pair", "repeat", "sample"), area),
        "accuracy_mean": (("pair", "sample"), mean),
        "accuracy_low": (("pair", "sample"), low),
        "accuracy_high": (("pair", "sample"), high),
        "gap": (("pair",), gap),
        "gap_low": (("pair",), gap_low),
        "gap_high": (("pair",), gap_high),
        "converged": (("pair",), np.asarray(converged.reshape(n_pairs, -1).all(axis=1))),
        "right": (("pair", "sample", "entity"), right),
        "tested": (("pair", "sample", "entity"), tested),
    }


def _too_small(
    where: str,
    plan: Plan,
    pair: int,
    kept: int,
    values: npt.NDArray[np.float64],
    sign: npt.NDArray[np.int8],
    names: npt.NDArray[np.object_],
    options: MatchOptions,
) -> str:
    best, area = matching.most_separating(values, sign > 0)
    name = names[best]
    how = f"{options.bins} bins" if options.method == "bins" else "nearest neighbours"
    told = "separates the classes perfectly" if area == 1 else f"separates the classes most (AUC {area:.3f})"
    return (
        f"{where}, pair {plan.contrasts.names[pair]!r}: only {kept} of {len(sign)} training rows can be matched on "
        f"{len(names)} statistics ({how}), at least {LEAST} are needed; {name!r} {told}. Match on fewer "
        f"statistics=(...) or with fewer bins=, or mark such places NaN with small='nan'"
    )


def _worst_token(balance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The largest difference over the tokens (axis 2) that have one."""
    known = np.isfinite(balance) | np.isinf(balance)
    return np.where(known.any(axis=2), np.where(known, balance, -np.inf).max(axis=2), np.nan)


def _mean_over_repeats(balance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    known = np.isfinite(balance)
    total = np.where(known, balance, 0).sum(axis=1)
    out = np.full(total.shape, np.nan)
    np.divide(total, known.sum(axis=1), out=out, where=known.any(axis=1))
    return out


def _token(slab: Slab, index: int) -> str:
    return str(slab.array.coords["token"].values[index]) if "token" in slab.array.coords else str(index)
