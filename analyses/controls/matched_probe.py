"""Probes trained on classes that are matched in norms, losses or confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.controls import matching, propensity
from stratalens.analyses.controls.intervals import Resampler, placements, split_factor
from stratalens.analyses.controls.statistic_values import Statistics, default_names, usable_statistics
from stratalens.analyses.controls.weighted_probe import pair_log_odds
from stratalens.analyses.data.array_types import Array, Data, Doubles, Floats, Mask, Signs
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.splits import assert_disjoint, entity_halves
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.estimators.backend import resolve_backend, thread_count
from stratalens.analyses.estimators.logistic import fit_logistic
from stratalens.analyses.estimators.probes import Settings, choose_penalties
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.slab import (
    Variables,
    blank_values,
    is_constant,
    noise_like,
    normalize_rows,
    stack_tokens,
)
from stratalens.analyses.stats import scores as scoring
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest

METHODS = ("bins", "nearest")
SAMPLES = ("all", "matched", "random_subsample")
SCORED = ("matched", "unmatched")
VERSION = 2  # of the numbers, for the cache: results of other versions are not read
INNER_FOLDS = 5  # folds that choose a penalty
MIN_MATCHED = 20  # least number of matched training rows of a probe


def matched_probe(
    ds: Data,
    target: str = "trained_stage",
    statistics: Sequence[str] | None = None,
    method: str = "bins",
    bins: int = 10,
    repeats: int = 5,
    site: str = "resid_post",
    pairs: Pairs = "all",
    C: float | str | Sequence[float] = 0.1,
    groups: str = "entity_id",
    holdout: float = 0.2,
    backend: str = "auto",
    seed: int = 0,
    *,
    order: Sequence[object] | None = None,
    test: Mapping[str, object] | None = None,
    normalize: bool = False,
    standardize: bool = False,
    tokens: str = "each",
    small: str = "raise",
    resamples: int = 1000,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Fit probes on classes that are matched in some statistics.

    In each of `repeats` stratified splits three logistic probes are trained: on all training rows, on a matched
    subset, and on a random subset of the same size and balance, which shows the cost of the smaller sample
    (Krasheninnikov, Turner and Krueger, 2025: 5 stratified 80/20 splits, joint quantile bins). All three are scored
    on test rows that are matched among themselves, and on all test rows. Judge by the matched ones, scored="matched":
    a probe that learns the smallest rest of a difference in the training rows finds the whole difference in unmatched
    test rows. The paper scores on unmatched rows.

    Only the named statistics are matched, because joint bins of many statistics hold no rows of both classes.
    `balance` shows the difference that remains in all statistics; `weighted_probe` balances all of them.

    Args:
        ds: Dataset with activations and statistics, or a DataArray of activations.
        target: label column whose groups are classified.
        statistics: names of the statistics to match, e.g. ("resid_post_l2", "loss"); None = the L2 norm of the site,
            and the loss and the entropy if the data has them. The attribute `statistics` names them.
        method: "bins" (joint quantile bins, min(n1, n2) rows of each class in every bin) or "nearest" (one to one by
            the log odds given the statistics, within 0.2 standard deviations).
        bins: bins of each statistic.
        repeats: number of splits.
        site: variable to read.
        pairs: as in `probe`, without "ordinal" and "multiclass".
        C: as in `probe`; a choice is made inside the training rows of each sample.
        groups: label column of the units that a split never divides.
        holdout: share of the entities to test on.
        backend: as in `probe`.
        seed: of splits, matching and resamples.
        order: groups wanted, in order; None = all.
        test: as in `probe`.
        normalize: as in `probe`.
        standardize: as in `probe`.
        tokens: "each", or "joint": one probe of the features of all tokens. "bins" then keeps the rows that are kept
            at every token, "nearest" uses the log odds given the statistics of all tokens, and balance is that of the
            worst token.
        small: action where fewer than 20 rows can be matched: "raise", or "nan".
        resamples: of the cluster bootstrap.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.

    Returns:
        Dataset, without the dims among (stage, layer, token) that the data does not have; sample = all, matched,
        random_subsample; scored = matched, unmatched (the test rows); balance_at = before, after; the coordinate
        `matched` (statistic) is True for the statistics that were matched:

        - accuracy, auc (stage, layer, token, pair, repeat, sample, scored): float64, on the test rows of each split.
        - accuracy_mean, auc_mean (stage, layer, token, pair, sample, scored): float64, over all splits.
        - accuracy_low, accuracy_high, auc_low, auc_high (stage, layer, token, pair, sample, scored): float64, 95 %
          cluster bootstrap over entities, widened for overlapping training sets (Nadeau and Bengio, 2003).
        - gap (stage, layer, token, pair, scored): float64, accuracy of matched minus random_subsample.
        - gap_low, gap_high (stage, layer, token, pair, scored): float64, 95 % interval of the gap, on the same
          resamples.
        - n_matched, n_matched_test (stage, layer, token, pair, repeat): int64, matched training and test rows.
        - balance (stage, layer, token, pair, statistic, balance_at): float64, absolute standardised mean difference
          between the training rows of the classes, of every recorded statistic, mean over the splits.
        - support (stage, layer, token, pair): float64, share of the rows whose propensity given all statistics is
          in the range of both classes (Crump, Hotz, Imbens and Mitnik, 2009). The other rows have no match.
        - right (stage, layer, token, pair, sample, scored, entity): int16, times that a row is classified correctly.
        - tested (stage, layer, token, pair, sample, scored, entity): int16, times that a row is tested.
        - placement (stage, layer, token, pair, sample, scored, entity): float32, sum over the tests of the share of
          the other class that the row is on the right side of; its mean is the AUC.
        - converged (stage, layer, token, pair): bool, True if all fits converged.
        - constant (stage, layer, token): bool, True where all rows are equal; all numbers are NaN or 0 there.
        - chance (pair, scored): float64, share of the larger class; 1/2 among matched rows.

        Numbers of matched test rows are NaN where all splits together have fewer than 20 of them.

    Raises:
        InputError: unknown names; more bins than training rows of a class; fewer than 20 rows that can be matched
            (the message names the statistic that separates the classes, and the place).
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r}: {suggest(str(method), METHODS)}")
    if small not in ("raise", "nan"):
        raise InputError(f"small={small!r}: valid are 'raise' and 'nan'")
    settings = Settings("logistic", C, standardize, backend=resolve_backend(backend).name)
    settings.check(INNER_FOLDS)
    inner = INNER_FOLDS if len(settings.candidates) > 1 else 2
    plan = make_plan(ds, target, pairs, inner, groups, test, order, 0, seed, resamples, tokens)
    if plan.contrasts.kind != "binary":
        raise InputError(f"pairs={pairs!r} cannot be matched; use 'all', 'rest' or a list of pairs")
    held_out = entity_halves(plan.codes, plan.units, repeats, holdout, seed)
    for split in held_out:
        assert_disjoint(plan.units, ~split, split)
    signs = plan.contrasts.signs
    train = plan.trainable & ~held_out
    least = min(int(((signs == side) & split[:, None]).sum(axis=0).min()) for split in train for side in (-1, 1))
    if method == "bins" and not 1 <= bins <= least:
        raise InputError(
            f"bins={bins}, but the smallest class has {least} training rows; use between 1 and {least} bins (fewer "
            f"is better: each bin must hold rows of both classes)"
        )
    source = SiteData(ds, site)
    chosen = Statistics(ds, source.site, _default_statistics(ds, source.site) if statistics is None else statistics)
    chosen.require_places(source)
    values = Statistics(ds, source.site, [*chosen.wanted, *default_names(ds, source.site)])
    values.require_places(source)
    matched = np.isin(values.names, chosen.names)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    matching_options: dict[str, Any] = {"method": method, "bins": bins, "small": small, "normalize": normalize}
    result = run_slabs(
        source,
        MatchedSlab(plan, held_out, values, matched, settings, **matching_options),
        rows=rows,
        name="matched_probe",
        params={"held": held_out, "matched": matched, "version": VERSION}
        | matching_options
        | settings.identity()
        | plan.identity()
        | values.identity(),
        options=RunOptions(skip_missing, cache, scheduler, thread_count(settings.backend, workers), progress),
    )
    result = label_result(result, plan, source, folds=False).assign_coords(
        statistic=np.array(values.names, dtype=object),
        matched=("statistic", matched),
        sample=np.array(SAMPLES, dtype=object),
        scored=np.array(SCORED, dtype=object),
        balance_at=np.array(["before", "after"], dtype=object),
        repeat=np.arange(repeats),
    )
    larger = result["chance"].values
    result["chance"] = (("pair", "scored"), np.stack([np.full_like(larger, 0.5), larger], axis=1))
    attrs = {
        "target": target,
        "method": method,
        "statistics": list(chosen.names),
        "bins": bins,
        "C": settings.C_attr,
        "repeats": repeats,
        "holdout": holdout,
        "seed": seed,
        "normalize": int(normalize),
        "standardize": int(standardize),
        "tokens": tokens,
    }
    return result.assign_attrs(source.attrs() | attrs)


def _default_statistics(ds: Data, site: str) -> list[str]:
    available = ds.data_vars if isinstance(ds, xr.Dataset) else ()
    return [f"{site}_l2", *(name for name in ("loss", "entropy") if name in available)]


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
        activations = slab.values()
        slab.refuse_nonfinite(activations)
        values = self.statistics.values(slab, activations)
        if self.normalize:
            activations = normalize_rows(activations, slab.where)
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
            used[t, self.matched] = usable_statistics(values[:, t, self.matched], names[self.matched], where)
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
