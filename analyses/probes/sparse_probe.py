"""Probes of a few features: which neurons tell the groups apart, at every stage, layer and token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Codes, Data, Doubles, Floats
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import Pairs, training_signs
from stratalens.analyses.estimators.probes import Probes, Settings, fit_probes
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.quality import Variables, measures, quality_values, score_quality
from stratalens.analyses.probes.slab import blank_values, is_constant, noise_like, stack_tokens
from stratalens.analyses.stats import scores as scoring
from stratalens.analyses.stats.max_t import SHUFFLED
from stratalens.analyses.stats.permutation import p_value
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest

SELECTIONS = ("mean_difference", "f_classif")


def sparse_probe(
    ds: Data,
    target: str = "trained_stage",
    site: str = "resid_post",
    pairs: Pairs = "all",
    k: int | Sequence[int] = (1, 2, 4, 8, 16),
    selection: str = "mean_difference",
    C: float = 1.0,
    folds: int = 5,
    groups: str = "entity_id",
    test: Mapping[str, object] | None = None,
    permutations: int = 0,
    draws: int = 10,
    seed: int = 0,
    *,
    order: Sequence[object] | None = None,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Fit probes of the k features that separate two groups best; score unseen entities.

    The features are selected from the training rows of each fold alone, and again after every shuffle of the labels, so
    that the choice among many features is part of the null. Probes of k features that are drawn at random show what any
    k features say. The default selection is the largest difference of the means (Gurnee et al., "Finding neurons in a
    haystack", arXiv 2305.01610, 2023; SAEBench, arXiv 2503.09532, 2025). It prefers features of large variance.
    "f_classif" divides by the standard deviation within the groups, as scikit-learn's function of this name. The
    probe is an L2 logistic regression on the k features, standardised over the training rows.

    Args:
        ds: Dataset (with `site`) or DataArray with dims among (stage, layer, entity, token, features).
        target: label column whose groups are classified.
        site: variable to read, e.g. mlp_post for neurons.
        pairs: "all", "rest" (each group against the others), or a list of (name, name).
        k: numbers of features, each a probe of its own.
        selection: "mean_difference" or "f_classif".
        C: inverse strength of the L2 penalty on standardised features.
        folds: number of folds over entities, the same as those of `probe` with the same seed.
        groups: label column of the units that a split never divides.
        test: as in `probe`.
        permutations: label shuffles over entities, for nulls and p-values; each selects and fits anew.
        draws: numbers of sets of random features.
        seed: of folds, shuffles and random features.
        order: groups wanted, in order; None = all.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.

    Returns:
        Dataset, without the dims among (stage, layer, token) that the data does not have:

        - accuracy, balanced_accuracy, auc (stage, layer, token, pair, k, fold): float64, on the test rows of each fold.
        - accuracy_mean, _low, _high, and those of the other two measures (stage, layer, token, pair, k): float64, over
          all test rows, with 95 % interval as in `probe`.
        - accuracy_null, accuracy_p, accuracy_p_max, and those of the other two measures (stage, layer, token, pair, k):
          float64, as in `probe`; p_max allows for the choice among all places and all k. Only with permutations.
        - random_accuracy, random_balanced_accuracy, random_auc (stage, layer, token, pair, k, draw): float64, of random
          features.
        - selected (stage, layer, token, pair, rank): int64, features in the order of their selection from all training
          rows; the probe of k features has the first k. With several feature dims it counts along all of them, and
          selected_<dim> is the place along each.
        - stability (stage, layer, token, pair, k): float64, share of these k features that a fold selects too, mean
          over the folds.
        - coef (stage, layer, token, pair, k, rank): float64, of the fit on all training rows, in the units of the
          activations; NaN from rank k on.
        - intercept (stage, layer, token, pair, k): float64.
        - converged (stage, layer, token, pair, k): bool, True if all fits converged.
        - constant (stage, layer, token): bool, True where all rows are equal; all numbers are NaN there.
        - chance (pair): float64, share of the larger class.
        - entity_fold (entity): int64, -1 = in no group.

    Raises:
        InputError: as `probe`; a k that is not among 1 .. number of features; an unknown selection; pairs of more than
            two classes.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(40, 1, 6)); x[20:, :, 4] += 4
        >>> da = xr.DataArray(x, dims=("entity", "token", "d_model"),
        ...     coords={"colour": ("entity", np.repeat(["red", "blue"], 20).astype(object))})
        >>> result = sparse_probe(da, "colour", k=[1, 2], folds=4, progress=False)
        >>> result.selected.values[0, 0, 0].item(), bool((result.accuracy_mean.sel(k=1) > 0.9).all())
        (4, True)
    """
    if selection not in SELECTIONS:
        raise InputError(f"selection={selection!r}: {suggest(str(selection), SELECTIONS)}")
    if draws < 1:
        raise InputError(f"draws={draws}; it is a count of at least 1")
    plan = make_plan(ds, target, pairs, folds, groups, test, order, permutations, seed, 1)
    if plan.contrasts.kind != "binary":
        raise InputError(
            f"pairs={pairs!r}: features are selected for two classes; use 'all', 'rest' or a list of pairs"
        )
    settings = Settings("logistic", C, standardize=True)
    settings.check(folds)
    if len(settings.candidates) > 1:
        raise InputError(f"C={C!r}; give one positive number")
    source = SiteData(ds, site)
    counts = _feature_counts(k, source)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, source.labels("stage"))
    attrs = {
        "target": target,
        "pairs": plan.contrasts.kind,
        "method": "logistic",
        "selection": selection,
        "C": settings.C_attr,
        "folds": folds,
        "groups": groups,
        "test": "" if test is None else repr(dict(test)),
        "permutations": permutations,
        "draws": draws,
        "seed": seed,
    }
    result = run_slabs(
        source,
        SparseProbeSlab(plan, settings, counts, selection, draws),
        rows=rows,
        name="sparse_probe",
        params=attrs | {"k": counts} | settings.identity() | plan.identity(),
        options=RunOptions(skip_missing, cache, scheduler, workers, progress),
    )
    result = label_result(result, plan, source)
    sizes = [source.array.sizes[dim] for dim in source.feature_dims]
    if len(sizes) > 1:
        known = result["selected"].values >= 0
        places = np.unravel_index(np.where(known, result["selected"].values, 0), sizes)
        for dim, place in zip(source.feature_dims, places, strict=True):
            result[f"selected_{dim}"] = (result["selected"].dims, np.where(known, place, -1))
    result = result.drop_vars([str(dim) for dim in source.feature_dims if dim in result.coords])
    result = result.assign_coords(k=counts, rank=np.arange(counts[-1]), draw=np.arange(draws))
    return result.assign_attrs(source.attrs() | attrs)


def _feature_counts(k: int | Sequence[int], source: SiteData) -> list[int]:
    """Check the numbers of features; return them sorted."""
    features = int(np.prod([source.array.sizes[dim] for dim in source.feature_dims]))
    counts = np.atleast_1d(np.asarray(k))
    if counts.ndim > 1 or not counts.size or counts.dtype.kind not in "iu":
        raise InputError(f"k={k!r}; give numbers of features, e.g. k=[1, 4, 16]")
    if counts.min() < 1 or counts.max() > features:
        raise InputError(f"k={k!r}; {source.site!r} has {features} features, so that k is among 1 .. {features}")
    return sorted(set(counts.tolist()))


class SparseProbeSlab:
    """Function of a slab: probes of few features; a class, so that a cluster can pickle it.

    Args:
        plan: plan of the call.
        settings: of the fits.
        counts: numbers of features, in rising order.
        selection: how features are selected.
        draws: number of sets of random features.
    """

    def __init__(self, plan: Plan, settings: Settings, counts: Sequence[int], selection: str, draws: int) -> None:
        self.plan, self.settings, self.counts = plan, settings, counts
        self.selection, self.draws = selection, draws

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Compute the variables of `sparse_probe` for one slab."""
        values = slab.values()
        slab.refuse_nonfinite(values)
        plan = self.plan.take(slab.rows)
        return stack_tokens([self.probe_token(X, plan) for X in plan.features(values)], slab, self.plan)

    def probe_token(self, X: Floats, plan: Plan) -> Variables:
        """Select, fit and score the probes of one token.

        Args:
            X: array of shape (n, d), activations of the rows of the plan.
            plan: plan of exactly these rows.
        """
        if is_constant(X):
            return _blank(self.probe_token(noise_like(X), plan))
        center = X[:: max(1, len(X) // 256)].mean(axis=0, dtype=np.float64)
        X = X - center.astype(X.dtype)
        chosen = rank_features(X, plan, self.counts[-1], self.selection)
        fits = [self._fit(X, plan, chosen, k) for k in self.counts]
        out = _stack([_qualities(score, plan) for _, score in fits])
        picked = chosen[:, -1]
        shape = (len(picked), len(self.counts), self.counts[-1])
        coef, intercept = np.full(shape, np.nan), np.empty(shape[:2])
        stability, converged = np.empty(shape[:2]), np.empty(shape[:2], dtype=bool)
        for i, (k, (probes, _)) in enumerate(zip(self.counts, fits, strict=True)):
            coef[:, i, :k] = probes.coef[:, -1]
            intercept[:, i] = probes.intercept[:, -1] - (coef[:, i, :k] * center[picked[:, :k]]).sum(axis=1)
            converged[:, i] = probes.converged.all(axis=1)
            shared = [[np.isin(pair[-1, :k], fold[:k]).mean() for fold in pair[:-1]] for pair in chosen]
            stability[:, i] = np.mean(shared, axis=1)
        out |= {
            "selected": (("pair", "rank"), picked),
            "stability": (("pair", "k"), stability),
            "coef": (("pair", "k", "rank"), coef),
            "intercept": (("pair", "k"), intercept),
            "converged": (("pair", "k"), converged),
            "constant": ((), np.asarray(False)),
        }
        for name, values in self._random(X, plan).items():
            out[f"random_{name}"] = (("pair", "k", "draw"), values)
        return out | self._null(X, plan, out)

    def _fit(self, X: Floats, plan: Plan, chosen: Codes, k: int, refit: bool = True) -> tuple[Probes, Floats]:
        """Fit the first k features of every pair and training set.

        Args:
            X: array of shape (n, d).
            plan: plan of these rows.
            chosen: features of each pair and training set, int64 array of shape (pair, folds + 1, largest k).
            k: number of features.
            refit: also fit all training rows.

        Returns:
            probes: coef of shape (pair, folds + 1, k), of the features in the order of `chosen`.
            score: float32 array of shape (pair, n), out of fold.
        """
        score = np.zeros((len(chosen), len(X)), dtype=np.float32)
        pairs = []
        for p, features in enumerate(chosen):
            rows = np.flatnonzero(plan.contrasts.signs[:, p])
            signs = plan.contrasts.signs[rows][:, [p]]
            fits = []
            for f in range(plan.folds + refit):
                x = X[:, features[f, :k]].astype(np.float64)
                fit = fit_probes(
                    x[rows], signs, plan.codes[rows], plan.fold[rows], plan.folds, plan.trainable[rows], self.settings,
                    only=f,
                )  # fmt: skip
                own = plan.fold == f
                score[p, own] = x[own] @ fit.coef[0, 0] + fit.intercept[0, 0]
                fits.append(fit)
            pairs.append(Probes.join(fits))
        return Probes(
            *(np.concatenate([getattr(q, name) for q in pairs]) for name in Probes.__dataclass_fields__)
        ), score

    def _random(self, X: Floats, plan: Plan) -> dict[str, Doubles]:
        """Measures of random features, each of shape (pair, k, draw); all pairs and folds have the same features."""
        values: dict[str, list[Doubles]] = {name: [] for name in measures("binary")}
        targets = (plan.contrasts.signs, plan.codes, plan.fold, plan.folds, plan.trainable, self.settings)
        for draw in range(self.draws):
            rng = np.random.default_rng([plan.seed, draw])
            features = rng.choice(X.shape[1], self.counts[-1], replace=False)
            for k in self.counts:
                x = X[:, features[:k]].astype(np.float64)
                fit = fit_probes(x, *targets, refit=False)
                score = scoring.own_fold_scores(x, fit.coef, fit.intercept, plan.fold)
                for name, value in quality_values(score, plan).items():
                    values[name].append(value)
        shape = (self.draws, len(self.counts), -1)
        return {name: np.reshape(v, shape).transpose(2, 1, 0) for name, v in values.items()}

    def _null(self, X: Floats, plan: Plan, out: Variables) -> Variables:
        """Compare with shuffled labels, for which features are selected anew."""
        if not plan.permutations:
            return {}
        values: dict[str, list[Doubles]] = {name: [] for name in measures("binary")}
        for index in range(plan.permutations):
            shuffled = plan.shuffle_labels(index)
            chosen = rank_features(X, shuffled, self.counts[-1], self.selection)
            for k in self.counts:
                _, score = self._fit(X, shuffled, chosen, k, refit=False)
                for name, value in quality_values(score, shuffled).items():
                    values[name].append(value)
        result: Variables = {}
        for name, each in values.items():
            null = np.reshape(each, (plan.permutations, len(self.counts), -1)).transpose(2, 1, 0)
            known = ~np.isnan(null)
            mean = scoring.ratio(np.where(known, null, 0).sum(axis=-1), known.sum(axis=-1))
            result[f"{name}_null"] = (("pair", "k"), mean)
            estimate = np.asarray(out[f"{name}_mean"][1])
            result[f"{name}_p"] = (("pair", "k"), p_value(np.moveaxis(null, -1, 0), estimate))
            result[f"{name}{SHUFFLED}"] = (("pair", "k", "permutation"), null.astype(np.float32))
        return result


def rank_features(X: Floats, plan: Plan, count: int, selection: str) -> Codes:
    """Rank features by how far they separate the two classes of each pair, in the rows of each training set alone.

    Args:
        X: array of shape (n, d), roughly centred.
        plan: plan of these rows.
        count: number of features to return.
        selection: "mean_difference" (absolute) or "f_classif" (divided by the pooled standard deviation).

    Returns:
        int64 array of shape (pair, folds + 1, count), the best feature first; the last training set is all rows.
    """
    targets = training_signs(plan.contrasts.signs, plan.fold, plan.folds, plan.trainable)
    shape = targets.shape[1:]
    flat = targets.reshape(len(X), -1).T
    difference, within = 0.0, 0.0
    squares = X * X if selection == "f_classif" else None
    for side in (1, -1):
        member = (flat == side).astype(X.dtype)
        size = member.sum(axis=1, keepdims=True, dtype=np.float64)
        mean = (member @ X) / size
        difference = difference + side * mean
        if squares is not None:
            within = within + member @ squares - size * mean * mean
    criterion = np.abs(difference)
    if squares is not None:
        criterion = criterion / np.sqrt(np.maximum(within, np.finfo(np.float32).tiny))
    best = np.argpartition(-criterion, count - 1, axis=-1)[:, :count]
    order = np.argsort(-np.take_along_axis(criterion, best, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(best, order, axis=-1).reshape(*shape, count)


def _qualities(score: Floats, plan: Plan) -> Variables:
    """Measures of the scores of one k, without those of single rows."""
    return {name: value for name, value in score_quality(score, plan).items() if "entity" not in value[0]}


def _stack(parts: Sequence[Variables]) -> Variables:
    """Stack the variables of each k behind the dim `pair`."""
    return {
        name: ((dims[0], "k", *dims[1:]), np.stack([part[name][1] for part in parts], axis=1))
        for name, (dims, _) in parts[0].items()
    }


def _blank(variables: Variables) -> Variables:
    """Replace numbers by NaN and features by -1, for constant activations."""
    blank = blank_values(variables)
    dims, selected = blank["selected"]
    return blank | {"selected": (dims, np.full_like(selected, -1))}
