"""Matched probes of one slab: matching, fits, and scores on matched and on all test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from stratalens.analyses.controls import matching, propensity
from stratalens.analyses.controls.intervals import Resampler, placements, split_factor
from stratalens.analyses.controls.statistic_values import Statistics, usable_statistics
from stratalens.analyses.controls.weighted_probe import pair_log_odds
from stratalens.analyses.data.array_types import Array, Doubles, Floats, Mask, Signs
from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.estimators.backend import resolve_backend
from stratalens.analyses.estimators.logistic import fit_logistic
from stratalens.analyses.estimators.probes import Settings, choose_penalties
from stratalens.analyses.probes.plan import Plan
from stratalens.analyses.probes.slab import (
    Variables,
    blank_values,
    is_constant,
    noise_like,
    stack_tokens,
)
from stratalens.analyses.stats import scores as scoring
from stratalens.store.errors import InputError

SAMPLES = ("all", "matched", "random_subsample")
SCORED = ("matched", "unmatched")
MIN_MATCHED = 20  # least number of matched training rows of a probe, and of matched test rows of all splits


@dataclass(frozen=True)
class MatchedSlab:
    """Function of a slab: matched probes of every token; a class, so that a cluster can pickle it.

    Attributes:
        plan: plan of the call.
        held_out: bool array of shape (repeat, entity), test rows of each split.
        statistics: all recorded statistics.
        matched: bool array of shape (statistic,), those to match.
        settings: of the fits.
        method: "bins" or "nearest".
        bins: bins of each statistic.
        small: "raise" or "nan".
        normalize: divide activation vectors by their L2 norm.
    """

    plan: Plan
    held_out: Mask
    statistics: Statistics
    matched: Mask
    settings: Settings
    method: str
    bins: int
    small: str
    normalize: bool

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Compute the variables of `matched_probe` for one slab."""
        activations, values = self.statistics.read(slab, self.normalize)
        function = replace(self, plan=self.plan.take(slab.rows), held_out=self.held_out[:, slab.rows])
        n_tokens = activations.shape[1]
        labels = slab.array.coords["token"].values if "token" in slab.array.coords else range(n_tokens)
        groups = [list(range(n_tokens))] if self.plan.joint else [[t] for t in range(n_tokens)]
        tokens = []
        for X, own in zip(self.plan.features(activations), groups, strict=True):
            where = f"{slab.where}, token {', '.join(str(labels[t]) for t in own)}"
            tokens.append(function.probe_token(X, values[:, own], where))
        return stack_tokens(tokens, slab, self.plan)

    def probe_token(self, X: Floats, values: Doubles, where: str) -> Variables:
        """Fit and score the probes of one token, or of all tokens if they are joint.

        Args:
            X: array of shape (n, d), activations of the rows of the plan.
            values: array of shape (n, token, statistic) of the same rows.
            where: place, for error messages.

        Raises:
            InputError: no defined statistic, or too few rows that can be matched.
        """
        if is_constant(X):
            noise = np.random.default_rng(1).standard_normal(values.shape)
            return blank_values(replace(self, small="nan").probe_token(noise_like(X), noise, where))
        plan, names = self.plan, np.array(self.statistics.names, dtype=object)
        n_tokens = values.shape[1]
        used = np.isfinite(values).all(axis=0) & ~self.matched
        for t in range(n_tokens):  # statistics that are only compared may have rows without a value
            used[t, self.matched] = usable_statistics(values[:, t, self.matched], names[self.matched].tolist(), where)
        to_match = used & self.matched
        if not to_match.any():
            raise InputError(
                f"{where}: none of the statistics ({', '.join(names[self.matched])}) is defined here; narrow the tokens"
            )
        used_names = [name for mask in to_match for name in names[mask]]
        n_repeats, n_pairs = len(self.held_out), plan.contrasts.signs.shape[1]
        signs = np.zeros((len(X), n_pairs, n_repeats, len(SAMPLES)), dtype=np.int8)
        balance = np.full((n_pairs, n_repeats, n_tokens, values.shape[2], 2), np.nan)
        n_matched = np.zeros((n_pairs, n_repeats), dtype=np.int64)
        matched_test = np.zeros((n_pairs, n_repeats, len(X)), dtype=bool)
        for p, r in np.ndindex(n_pairs, n_repeats):
            rng = np.random.default_rng([plan.seed, p, r])
            rows = np.flatnonzero((plan.contrasts.signs[:, p] != 0) & ~self.held_out[r] & plan.trainable)
            sign = plan.contrasts.signs[rows, p]
            by_token = [values[rows, t][:, to_match[t]] for t in range(n_tokens)]
            keep = self._match(by_token, sign > 0, rng)
            n_matched[p, r] = keep.sum()
            signs[rows, p, r, 0] = sign
            for t in range(n_tokens):
                columns = values[rows, t][:, used[t]]
                balance[p, r, t, used[t], 0] = matching.standardised_difference(columns, sign > 0)
            if n_matched[p, r] < MIN_MATCHED:
                if self.small == "raise":
                    place = f"{where}, pair {plan.contrasts.names[p]!r}"
                    joined = np.concatenate(by_token, axis=1)
                    raise InputError(self._too_few(place, int(n_matched[p, r]), joined, sign > 0, used_names))
                continue
            for t in range(n_tokens):
                columns = values[rows[keep], t][:, used[t]]
                balance[p, r, t, used[t], 1] = matching.standardised_difference(columns, sign[keep] > 0)
            signs[rows[keep], p, r, 1] = sign[keep]
            for side in (-1, 1):
                drawn = rng.choice(rows[sign == side], n_matched[p, r] // 2, replace=False)
                signs[drawn, p, r, 2] = side
            matched_test[p, r] = self._match_test_rows(values, to_match, p, r)
        odds = pair_log_odds(values.reshape(len(X), -1)[:, used.ravel()], plan)
        support = [
            propensity.common_support(row, sign, sign != 0)
            for row, sign in zip(odds, plan.contrasts.signs.T, strict=True)
        ]
        return self._fit_and_score(X, signs, matched_test) | {
            "constant": ((), np.asarray(False)),
            "balance": (("pair", "statistic", "balance_at"), _mean_over_repeats(_worst_token(balance))),
            "n_matched": (("pair", "repeat"), n_matched),
            "n_matched_test": (("pair", "repeat"), matched_test.sum(axis=2)),
            "support": (("pair",), np.array(support)),
        }

    def _match_test_rows(self, values: Doubles, to_match: Mask, pair: int, repeat: int) -> Mask:
        """Choose test rows of one split, matched among themselves: bool array of shape (n,)."""
        plan = self.plan
        sign = plan.contrasts.signs[:, pair]
        rows = np.flatnonzero((sign != 0) & self.held_out[repeat] & plan.testable)
        out = np.zeros(len(sign), dtype=bool)
        positive = sign[rows] > 0
        if positive.any() and not positive.all():
            by_token = [values[rows, t][:, mask] for t, mask in enumerate(to_match)]
            rng = np.random.default_rng([plan.seed, pair, repeat, 1])
            out[rows[self._match(by_token, positive, rng)]] = True
        return out

    def _match(self, by_token: list[Doubles], positive: Mask, rng: np.random.Generator) -> Mask:
        """Choose training rows by the statistics (n, statistic) of each token."""
        if self.method == "nearest":
            return matching.match_nearest(np.concatenate(by_token, axis=1), positive, rng)
        keep = [matching.match_bins(columns, positive, self.bins, rng) for columns in by_token]
        if len(keep) == 1:
            return keep[0]
        return matching.balance_classes(np.logical_and.reduce(keep), positive, rng)

    def _too_few(self, place: str, n_matched: int, values: Doubles, positive: Mask, names: Sequence[str]) -> str:
        best, area = matching.find_most_separating(values, positive)
        how = f"{self.bins} bins" if self.method == "bins" else "nearest neighbours"
        separates = "separates the classes perfectly" if area == 1 else f"separates the classes most (AUC {area:.3f})"
        return (
            f"{place}: only {n_matched} of {len(positive)} training rows can be matched on {len(names)} statistics "
            f"({how}), at least {MIN_MATCHED} are needed; {names[best]!r} {separates}. Match on fewer "
            f"statistics=(...) or with fewer bins=, or mark such places NaN with small='nan'"
        )

    def _fit_and_score(self, X: Floats, signs: Signs, matched_test: Mask) -> Variables:
        """Fit all probes of one token, and score each on the test rows of its own split.

        Args:
            X: array of shape (n, d).
            signs: int8 array of shape (n, pair, repeat, sample), targets of each probe; 0 = not trained on.
            matched_test: bool array of shape (pair, repeat, n), matched test rows.
        """
        plan = self.plan
        _, n_pairs, n_repeats, n_samples = signs.shape
        coef, intercept, converged = self._fit(X, signs.reshape(len(X), -1))
        weights = coef.reshape(n_pairs, n_repeats, n_samples, -1)
        offsets = intercept.reshape(n_pairs, n_repeats, n_samples)
        truth = plan.contrasts.signs
        accuracy = np.full((n_pairs, n_repeats, n_samples, len(SCORED)), np.nan)
        area = np.full_like(accuracy, np.nan)
        right = np.zeros((n_pairs, n_samples, len(SCORED), len(X)), dtype=np.int16)
        tested, place = np.zeros_like(right), np.zeros(right.shape, dtype=np.float32)
        for r in range(n_repeats):
            rows = np.flatnonzero(self.held_out[r] & plan.testable)
            for p in range(n_pairs):
                own = rows[truth[rows, p] != 0]
                score = weights[p, r] @ X[own].T + offsets[p, r, :, None]
                for q, use in enumerate((matched_test[p, r, own], np.ones(len(own), dtype=bool))):
                    if not use.any():
                        continue
                    index, positive = own[use], truth[own[use], p] > 0
                    fitted = np.flatnonzero(np.isfinite(score[:, use]).all(axis=1))
                    correct = ((score[:, use] > 0) == positive)[fitted]
                    accuracy[p, r, fitted, q] = correct.mean(axis=1)
                    ones = np.ones(len(index))
                    placed = np.stack([placements(score[s, use], positive, ones) for s in fitted])
                    area[p, r, fitted, q] = [scoring.auc(score[s, use], positive) for s in fitted]
                    right[p, :, q][np.ix_(fitted, index)] += correct.astype(np.int16)
                    tested[p, :, q][np.ix_(fitted, index)] += 1
                    place[p, :, q][np.ix_(fitted, index)] += np.nan_to_num(placed, nan=0.5).astype(np.float32)
        few = tested[:, 1, 0].sum(axis=1) < MIN_MATCHED
        accuracy[few, ..., 0], area[few, ..., 0] = np.nan, np.nan
        for counts in (right, tested, place):
            counts[few, :, 0] = 0
        return self._summarise(right, tested, place) | {
            "accuracy": (("pair", "repeat", "sample", "scored"), accuracy),
            "auc": (("pair", "repeat", "sample", "scored"), area),
            "converged": (("pair",), np.asarray(converged.reshape(n_pairs, -1).all(axis=1))),
        }

    def _summarise(self, right: Array, tested: Array, place: Array) -> Variables:
        """Accuracy, AUC and gap over all splits with intervals, from arrays (pair, sample, scored, n)."""
        plan, shape, n = self.plan, right.shape[:3], right.shape[3]
        factor = split_factor(float(self.held_out.mean()), len(self.held_out))
        resampler = Resampler(plan.units, plan.bootstrap_weights(), factor)
        positive = np.broadcast_to((plan.contrasts.signs.T > 0)[:, None, None], right.shape).reshape(-1, n)
        counts, tests, placed = (array.reshape(-1, n) for array in (right, tested, place))
        dims = ("pair", "sample", "scored")
        out: Variables = {
            "right": ((*dims, "entity"), right),
            "tested": ((*dims, "entity"), tested),
            "placement": ((*dims, "entity"), place),
        }
        numbers = {"accuracy": resampler.mean(counts, tests), "auc": resampler.auc(placed, tests, positive)}
        for name, parts in numbers.items():
            for part, values in zip(("mean", "low", "high"), parts, strict=True):
                out[f"{name}_{part}"] = (dims, values.reshape(shape))
        # A split without a matched sample counts in neither of the two samples that are compared.
        gap = (right[:, 1] - right[:, 2]).reshape(-1, n), tested[:, 1].reshape(-1, n)
        for name, values in zip(("gap", "gap_low", "gap_high"), resampler.mean(*gap, limits=(-1.0, 1.0)), strict=True):
            out[name] = (("pair", "scored"), values.reshape(shape[0], -1))
        return out

    def _fit(self, X: Floats, signs: Signs) -> tuple[Floats, Doubles, Mask]:
        """Coefficients, intercepts and convergence of probes with targets (n, probe); NaN without training rows."""
        plan, settings = self.plan, self.settings
        fitted = np.flatnonzero((signs != 0).any(axis=0))
        penalties = choose_penalties(
            X, signs[:, fitted], plan.codes, plan.fold, plan.folds, plan.trainable, settings, only_refit=True
        )
        fit = fit_logistic(
            X,
            signs[:, fitted],
            C=penalties[:, -1],
            standardize=settings.standardize,
            blocks=plan.codes,
            tol=settings.tol,
            backend=resolve_backend(settings.backend),
        )
        coef = np.full((signs.shape[1], X.shape[1]), np.nan, dtype=X.dtype)
        intercept = np.full(signs.shape[1], np.nan)
        converged = np.ones(signs.shape[1], dtype=bool)
        coef[fitted], intercept[fitted], converged[fitted] = fit.coef, fit.intercept, fit.converged
        return coef, intercept, converged


def _worst_token(balance: Doubles) -> Doubles:
    """The largest difference over the tokens (axis 2) that have one."""
    known = ~np.isnan(balance)
    return np.where(known.any(axis=2), np.where(known, balance, -np.inf).max(axis=2), np.nan)


def _mean_over_repeats(balance: Doubles) -> Doubles:
    """Mean over the repeats (axis 1) with a finite difference; NaN if there is none."""
    known = np.isfinite(balance)
    total = np.where(known, balance, 0).sum(axis=1)
    out = np.full(total.shape, np.nan)
    np.divide(total, known.sum(axis=1), out=out, where=known.any(axis=1))
    return out
