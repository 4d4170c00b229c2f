"""Linear probes at every stage, layer and token, scored on unseen entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.data.targets import MULTICLASS, Pairs
from stratalens.analyses.estimators.backend import thread_count
from stratalens.analyses.estimators.probes import Settings, choose_device
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.slab import ProbeSlab
from stratalens.analyses.stats.intervals import DESCRIPTION
from stratalens.analyses.stats.max_t import add_p_max
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError


def probe(
    ds: Data,
    target: str = "trained_stage",
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
    solver: str = "batched",
    tol: float = 1e-6,
    fold_coefs: bool = False,
    resamples: int = 1000,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
    tokens: str = "each",
    plan: Plan | None = None,
) -> xr.Dataset:
    """Fit linear probes at every stage, layer and token; score unseen entities.

    Folds are made over entities, stratified by group, once for the whole call. Stages and layers are therefore
    compared on the same splits. Each probe is fitted once without each fold, which gives `score` and `accuracy`, and
    then on all rows, which gives `coef` (Krasheninnikov, Turner and Krueger, 2025: L2 logistic regression, C=0.1, no
    standardisation, weights from a refit on all data, later stage positive).

    Args:
        ds: Dataset (with `site`) or DataArray with dims among (stage, layer, entity, token, features).
        target: label column whose groups are classified.
        site: variable to read.
        pairs: "all", "rest" (each group against the others), "ordinal" (ridge regression on the position in the
            order), "multiclass" (softmax; logistic only), or a list of (name, name).
        method: "logistic", "ridge" (least squares on -1 / +1), "lda" (Ledoit-Wolf shrinkage, as scikit-learn's
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")) or "diffmeans".
        C: inverse strength of the L2 penalty (ridge: alpha = 1 / C). A list, or "cv" for a default list, chooses
            it for each fold by log loss (ridge: squared error) inside the training rows of that fold.
        folds: number of folds.
        groups: label column of the units that a split never divides.
        test: {column: value or list of values}, rows to test on and never train on (e.g. one prompt template).
            The other rows are only trained on. Folds still separate entities.
        backend: "auto" (a GPU for logistic probes if CuPy has one), "cpu", or "gpu" (also ridge and lda; not
            diffmeans).
        permutations: label shuffles over entities, for the nulls and p-values; each refits everything. The smallest p
            is 1 / (permutations + 1).
        seed: of folds, shuffles and resamples.
        order: groups wanted, in order; None = all.
        normalize: divide every activation vector by its L2 norm first.
        standardize: scale features to unit variance over the training rows of each fit; `coef` stays in the
            units of the activations.
        solver: of the logistic regression: "batched" (built in, exact) or "library" (scikit-learn, cuML on a GPU).
        tol: a logistic fit has converged when no component of the gradient of the mean loss exceeds `tol`. The
            limit shrinks with a gradient that starts below 0.001, as very small activations give.
        fold_coefs: also return `fold_coef` and `fold_intercept`, the probes that give `score`.
        resamples: no effect on these results, whose intervals need no resamples.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible. Shuffled refits are cached too.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.
        tokens: "each" (separate probes for every token) or "joint" (one probe of the features of all tokens).
            Joint results have no dim `token`, except coef (..., pair, token, features).
        plan: folds and targets to use instead of those that the other arguments describe.

    Returns:
        Dataset, without the dims among (stage, layer, token) that the data does not have:

        - accuracy, balanced_accuracy, auc (stage, layer, token, pair, fold): float64, on the test rows of each fold.
          Balanced accuracy is the mean over the classes of the share of rows that are classified correctly.
        - accuracy_mean, balanced_accuracy_mean, auc_mean (stage, layer, token, pair): float64, over all test rows.
          The AUC compares rows of the same fold alone, because other folds have other probes.
        - accuracy_low, accuracy_high, and those of the other two measures (stage, layer, token, pair): float64, 95 %
          interval of the expected measure with this number of training entities, over new training and new test
          entities (see `stratalens.analyses.stats.intervals`). Where all rows of all entities are right, it is
          Wilson's interval for the number of entities.
        - accuracy_null, and those of the other two measures (stage, layer, token, pair): float64, mean over shuffled
          labels; only with permutations.
        - accuracy_p, and those of the other two measures (stage, layer, token, pair): float64, one-sided permutation
          p; only with permutations.
        - accuracy_p_max, and those of the other two measures (stage, layer, token, pair): float64, p of the largest
          studentised measure over all stages, layers, tokens and pairs (Westfall and Young, 1993), which allows for
          the choice of the best place. Stages with different rows are families of their own, see `p_max`. Only with
          permutations.
        - score (stage, layer, token, pair, entity): float32, out-of-fold score of every entity in any group, also
          outside the pair, by the probe that never saw its fold.
        - right (stage, layer, token, pair, entity): int8, 1 = test row that is classified correctly.
        - tested (stage, layer, token, pair, entity): int8, 1 = test row of the pair.
        - coef (stage, layer, token, pair, features): float32, from the refit on all rows.
        - intercept (stage, layer, token, pair): float64.
        - converged (stage, layer, token, pair): bool, True if all fits converged.
        - iterations (stage, layer, token, pair): int64, largest number over the fits.
        - penalty (stage, layer, token, pair): float64, C of the refit.
        - fold_coef (stage, layer, token, pair, fold, features): float32; only with fold_coefs.
        - fold_intercept (stage, layer, token, pair, fold): float64; only with fold_coefs.
        - constant (stage, layer, token): bool, True where all rows are equal, e.g. the embedding of a token that all
          prompts share. All numbers are NaN there.
        - chance (pair): float64, share of the larger class.
        - entity_fold (entity): int64, -1 = in no group.

        For "ordinal", r2 replaces the three measures, with rank_correlation (Spearman) of each fold; right, tested and
        chance are left out. For "multiclass", score, coef, intercept, fold_coef and fold_intercept have the dim `group`
        instead of `pair`, and the AUC is the mean over each class against the rest. The attribute `ordered` is 1 if
        the groups have a known order.

    Raises:
        InputError: unknown names; one class; a group with fewer entities than folds; a continuous or mixed
            target; a test selection that leaves nothing to train or test on; activations that are the same in all
            rows everywhere; backend="gpu" without a GPU.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations; the message names the place.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(40, 1, 4)); x[20:] += 2
        >>> da = xr.DataArray(x, dims=("entity", "token", "d_model"),
        ...     coords={"colour": ("entity", np.repeat(["red", "blue"], 20).astype(object))})
        >>> result = probe(da, "colour", folds=4, progress=False)
        >>> result.pair.values.tolist(), bool((result.accuracy_mean > 0.9).all())
        (['red v blue'], True)
    """
    plan = plan or make_plan(ds, target, pairs, folds, groups, test, order, permutations, seed, resamples, tokens)
    kind = plan.contrasts.kind
    settings = Settings(method, C, standardize, solver, tol, choose_device(backend, method, kind, solver), kind)
    settings.check(folds)
    source = SiteData(ds, site)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, source.labels("stage"))
    attrs = {
        "target": target,
        "pairs": kind,
        "method": method,
        "C": settings.C_attr,
        "folds": folds,
        "groups": groups,
        "test": "" if test is None else repr(dict(test)),
        "permutations": permutations,
        "seed": seed,
        "normalize": int(normalize),
        "standardize": int(standardize),
        "solver": solver,
        "tol": tol,
        "resamples": resamples,
        "backend": settings.backend,
        "tokens": plan.tokens,
    }
    result = run_slabs(
        source,
        ProbeSlab(plan, settings, normalize, fold_coefs),
        rows=rows,
        name="probe",
        params=attrs | {"fold_coefs": fold_coefs} | settings.identity() | plan.identity(),
        options=RunOptions(skip_missing, cache, scheduler, thread_count(settings.backend, workers), progress),
    )
    return label_result(result, plan, source).assign_attrs(source.attrs() | attrs)


def label_result(result: xr.Dataset, plan: Plan, source: SiteData, folds: bool = True) -> xr.Dataset:
    """Add coordinates of pairs, groups, folds and entities, and the chance level.

    Raises:
        InputError: the activations are the same in all rows everywhere.
    """
    if "constant" in result and bool(result["constant"].all()):
        raise InputError(
            f"{source.site!r} is the same in all rows at every stage, layer and token; there is nothing to probe"
        )
    targets = plan.contrasts
    result = add_p_max(result).assign_attrs(ordered=int(plan.ordered))
    if {"balanced_accuracy_low", "r2_low"} & set(result.data_vars):
        result = result.assign_attrs(interval=DESCRIPTION)
    for variable in {"coef", "fold_coef"} & set(result.data_vars) if plan.joint else ():
        result[variable].attrs["tokens"] = plan.tokens
    result = result.assign_coords(
        pair=_as_objects(targets.names),
        pair_first=("pair", _as_objects(targets.first)),
        pair_second=("pair", _as_objects(targets.second)),
    )
    if folds:
        result = result.assign_coords(fold=np.arange(plan.folds))
        result["entity_fold"] = ("entity", np.where(plan.codes >= 0, plan.fold, -1))
    if "group" in result.dims:
        result = result.assign_coords(group=_as_objects(plan.group_names))
    for name, coord in source.array.coords.items():
        if coord.dims == ("entity",) or (len(coord.dims) == 1 and coord.dims[0] in source.feature_dims):
            result = result.assign_coords({name: coord.variable})
    if targets.kind == MULTICLASS:
        counts = np.bincount(plan.codes[plan.codes >= 0], minlength=len(plan.group_names))
        result["chance"] = ("pair", [counts.max() / counts.sum()])
    elif targets.kind == "binary":
        positive, negative = (targets.signs > 0).sum(axis=0), (targets.signs < 0).sum(axis=0)
        result["chance"] = ("pair", np.maximum(positive, negative) / (positive + negative))
    return result.load()


def _as_objects(names: Sequence[str]) -> Array:
    return np.array(list(names), dtype=object)
