"""The verb `matched_probe`: probes trained on classes that agree in norms, losses or confidence.

How rows are matched is in matching.py; the statistics themselves are in statistic_values.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.controls import matching
from stratalens.analyses.controls.statistic_values import Statistics, usable
from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.splits import assert_disjoint, entity_halves
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.estimators.backend import resolve_backend, thread_count
from stratalens.analyses.estimators.logistic import fit_logistic
from stratalens.analyses.estimators.probes import Settings, choose_penalties
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.slab import Variables, constant, no_numbers, stack_tokens, unit_rows
from stratalens.analyses.stats import scores as scoring
from stratalens.analyses.sweep.run import run_slabs
from stratalens.store.errors import InputError, suggest

METHODS = ("bins", "nearest")


INNER_FOLDS = 5  # that a penalty is chosen by


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
    """Does the probe survive when the classes are made to agree in some statistics?

    In each of `repeats` stratified splits three logistic probes are trained: on all training rows, on a matched
    part of them, and on a random part of the same size and balance, which shows what the smaller sample costs by
    itself. All three are scored on the same test rows, which are kept out of the matching and stay unbalanced
    (Krasheninnikov, Turner and Krueger, 2025: 5 stratified 80/20 splits, joint quantile bins).

    Args:
        ds: Dataset with activations and statistics, or a DataArray of activations.
        target, site, pairs ("ordinal" and "multiclass" excepted), C (where there is a choice, inside the
            training rows of each sample), groups, backend, order, test, normalize, standardize: as in `probe`.
        tokens: "each", or "joint": one probe of all tokens' features; "bins" then keeps the rows that are kept at every
            token, "nearest" goes by the log odds given the statistics of all of them; balance is of the worst token.
        statistics: what is matched, e.g. ("resid_post_l2", "loss"); None = the site's L2 norm, the loss and the
            entropy, where the data has them.
        method: "bins" (joint quantile bins, min(n1, n2) rows of each class in every bin) or "nearest" (one to one by
            the log odds given the statistics, within 0.2 standard deviations).
        bins: bins of each statistic.
        repeats: number of splits.
        holdout: share of the entities that is tested on.
        seed: of splits, matching and resamples.
        small: what to do where under 20 rows can be matched: "raise", or "nan".
        resamples, skip_missing, cache, scheduler, workers, progress: as in `probe`.

    Returns:
        Dataset: accuracy, auc (..., pair, repeat, sample) with sample = all, matched, random_subsample; accuracy_mean,
        accuracy_low, accuracy_high (..., pair, sample), 95 % cluster bootstrap over entities; gap, gap_low, gap_high
        (..., pair): matched minus random subsample, on the same resamples; n_matched (..., pair, repeat) training rows
        kept; balance (..., pair, statistic, balance_at = before, after): absolute standardised mean difference between
        the classes' training rows, mean over repeats; right, tested (..., pair, sample, entity) counts; converged.

    Raises:
        InputError: unknown names; more bins than training rows of a class; and where fewer than 20 rows can be
            matched, which statistic separates the classes at which place.
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
    held = entity_halves(plan.codes, plan.units, repeats, holdout, seed)
    for split in held:
        assert_disjoint(plan.units, ~split, split)
    signs = plan.contrasts.signs
    inside = plan.trainable[None] & ~held
    least = min(int(((signs == side) & split[:, None]).sum(axis=0).min()) for split in inside for side in (-1, 1))
    if method == "bins" and not 1 <= bins <= least:
        raise InputError(
            f"bins={bins}, but the smallest class has {least} training rows; use between 1 and {least} bins (fewer "
            f"is better: each bin must hold rows of both classes)"
        )
    source = SiteData(ds, site)
    values = Statistics(ds, source.site, _default(ds, source.site) if statistics is None else statistics)
    values.require_places(source)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    options = MatchOptions(method, bins, settings, small, normalize)
    result = run_slabs(
        source,
        MatchedSlab(plan, held, values, options),
        rows=rows,
        name="matched_probe",
        params={"held": held} | options.identity() | plan.identity() | values.identity(),
        cache=cache,
        scheduler=scheduler,
        workers=thread_count(settings.backend, workers),
        progress=progress,
    )
    result = label_result(result, plan, source, folds=False).assign_coords(
        statistic=np.array(values.names, dtype=object),
        sample=np.array(SAMPLES, dtype=object),
        balance_at=np.array(["before", "after"], dtype=object),
        repeat=np.arange(repeats),
    )
    described = {
        "target": target,
        "method": method,
        "statistics": list(values.names),
        "bins": bins,
        "C": settings.C_attr,
        "repeats": repeats,
        "holdout": holdout,
        "seed": seed,
        "normalize": int(normalize),
        "standardize": int(standardize),
        "tokens": tokens,
    }
    return result.assign_attrs(source.attrs() | described)


def _default(ds: Data, site: str) -> list[str]:
    have = ds.data_vars if isinstance(ds, xr.Dataset) else ()
    return [f"{site}_l2", *(name for name in ("loss", "entropy") if name in have)]


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
        backend=resolve_backend(settings.backend),
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
