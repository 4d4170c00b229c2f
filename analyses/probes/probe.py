"""The verb `probe`: linear probes for every stage, layer and token, scored on entities they never saw.

Checks what was asked for, lays out folds and targets once, and runs one function per slab. The fits are in
estimators.py, the targets in pairs.py, the splits in folds.py, the scores in scoring.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.data.targets import MULTICLASS, Pairs
from stratalens.analyses.estimators.backend import thread_count
from stratalens.analyses.estimators.probes import Settings, choose_device
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.slab import ProbeSlab
from stratalens.analyses.sweep.run import run_slabs
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
    """Fit linear probes at every stage, layer and token, and score them on entities they never saw.

    Folds are made over entities, stratified by group, once for the whole call, so that stages and layers are
    compared on the same splits. Each probe is fitted without each fold in turn, which gives `score` and
    `accuracy`, and then on all rows, which gives `coef` (Krasheninnikov, Turner and Krueger, 2025: L2
    logistic regression, C=0.1, no standardisation, weights from a refit on all data, later stage positive).

    Args:
        ds: Dataset (with `site`) or DataArray with dims among (stage, layer, entity, token, features).
        target: label column whose groups are told apart.
        site: variable of `ds` to read.
        pairs: "all", "rest" (each group against the others), "ordinal" (ridge regression on the position in the
            order), "multiclass" (softmax; logistic only), or a list of (name, name).
        method: "logistic", "ridge" (least squares on -1 / +1), "lda" (Ledoit-Wolf shrinkage, as scikit-learn's
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")) or "diffmeans".
        C: inverse strength of the L2 penalty (ridge: alpha = 1 / C); a list, or "cv" for a default list, picks
            it for each fold by log loss (ridge: squared error) inside that fold's training rows.
        folds: number of folds.
        groups: label column of what must never be parted by a split.
        test: {column: value or list of values}: rows that are only tested on, never trained on (e.g. one prompt
            template); the other rows are only trained on. Entities are kept apart as always.
        backend: "auto" (a GPU for logistic probes where CuPy finds one), "cpu", or "gpu" (also ridge and lda; not
            diffmeans).
        permutations: label shuffles over entities for `accuracy_null` and `accuracy_p`; each refits everything.
        seed: of folds, shuffles and resamples.
        order: the groups wanted, in order; others are left out.
        normalize: divide every activation vector by its L2 norm first.
        standardize: scale features to unit variance over the training rows of each fit; `coef` stays in the
            units of the activations.
        solver: of the logistic regression: "batched" (ours, exact) or "library" (scikit-learn, cuML on a GPU).
        tol: largest component of the gradient of the mean loss at which a logistic fit counts as converged; it
            shrinks with a gradient that is below 0.001 from the start, as very small activations give.
        fold_coefs: also return `fold_coef` and `fold_intercept`, the probes that made `score`.
        resamples: of the cluster bootstrap.
        skip_missing: leave out rows that were not recorded instead of refusing.
        cache, scheduler, workers, progress: as in `stratalens.analyses.sweep.run_slabs`; by default finished slabs,
            shuffled refits included, are kept beside a store that the data was opened from.
        tokens: "each" (probes of every token by itself) or "joint": one probe of all tokens' features side by side;
            results then have no dim `token`, except coef (..., pair, token, features), where it is one of the features.
        plan: folds and targets laid out already, in place of those that the other arguments describe.

    Returns:
        Dataset with dims stage, layer, token (where the data has them), pair, fold, entity and features:
        accuracy, auc (..., pair, fold); accuracy_mean, accuracy_low, accuracy_high (..., pair) over all test rows,
        95 % cluster bootstrap over entities; coef (..., pair, features), intercept, converged (all fits), iterations
        (most), penalty (C of the refit), constant (...: True where all rows are equal, as with the embedding of a token
        that all prompts share; all numbers are NaN there), chance (pair: share of the larger class); score (..., pair,
        entity):
        out-of-fold score of every entity in any group, also outside the pair, by the probe that never saw its fold;
        entity_fold (entity; -1 = in no group). With permutations: accuracy_null, accuracy_p. For "ordinal" r2 and
        rank_correlation take the place of accuracy and auc; for "multiclass" coef, intercept and score have a dim
        `group` instead of `pair`.

    Raises:
        InputError: unknown names; one class; a group with fewer entities than folds; a continuous or mixed
            target; a test selection that leaves nothing to train or test on; activations that are the same in all rows
            at all places; backend="gpu" without a GPU.
        NotRecordedError: rows of a stage were not recorded.
        NonFiniteError: NaN or infinity in the activations, naming where.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(40, 1, 4)); x[20:] += 2
        >>> da = xr.DataArray(x, dims=("entity", "token", "d_model"),
        ...     coords={"colour": ("entity", np.repeat(["red", "blue"], 20).astype(object))})
        >>> found = probe(da, "colour", folds=4, progress=False)
        >>> found.pair.values.tolist(), bool((found.accuracy_mean > 0.9).all())
        (['red v blue'], True)
    """
    plan = plan or make_plan(ds, target, pairs, folds, groups, test, order, permutations, seed, resamples, tokens)
    settings = Settings(
        method,
        C,
        standardize,
        solver,
        tol,
        choose_device(backend, method, plan.contrasts.kind, solver),
        plan.contrasts.kind,
    )
    settings.check(folds)
    source = SiteData(ds, site)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, [str(source.label("stage", i)) for i in range(len(rows))])
    described = {
        "target": target,
        "pairs": plan.contrasts.kind,
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
        cache=cache,
        name="probe",
        params=described | {"fold_coefs": fold_coefs} | settings.identity() | plan.identity(),
        scheduler=scheduler,
        workers=thread_count(settings.backend, workers),
        progress=progress,
    )
    return label_result(result, plan, source).assign_attrs(source.attrs() | described)


def label_result(result: xr.Dataset, plan: Plan, source: SiteData, folds: bool = True) -> xr.Dataset:
    """Coordinates of pair, group, fold and entity; and what belongs to all slabs alike."""
    if "constant" in result and bool(result["constant"].all()):
        raise InputError(f"{source.site!r} is the same in all rows, at all places asked for; there is nothing to probe")
    found = plan.contrasts
    for variable in {"coef", "fold_coef"} & set(result.data_vars) if plan.joint else ():
        result[variable].attrs["tokens"] = plan.tokens
    result = result.assign_coords(
        pair=_text(found.names),
        pair_first=("pair", _text(found.first)),
        pair_second=("pair", _text(found.second)),
    )
    if folds:
        result = result.assign_coords(fold=np.arange(plan.folds))
        result["entity_fold"] = ("entity", np.where(plan.codes >= 0, plan.fold, -1))
    if "group" in result.dims:
        result = result.assign_coords(group=_text(plan.group_names))
    for name, coord in source.array.coords.items():
        if coord.dims == ("entity",) or (len(coord.dims) == 1 and coord.dims[0] in source.feature_dims):
            result = result.assign_coords({name: coord.variable})
    counts = np.bincount(plan.codes[plan.codes >= 0], minlength=len(plan.group_names))
    if found.kind == MULTICLASS:
        result["chance"] = ("pair", [counts.max() / counts.sum()])
    elif found.kind == "binary":
        positive, negative = (found.signs > 0).sum(axis=0), (found.signs < 0).sum(axis=0)
        result["chance"] = ("pair", np.maximum(positive, negative) / (positive + negative))
    return result.load()


def _text(names: Sequence[str]) -> Any:
    return np.array(list(names), dtype=object)
