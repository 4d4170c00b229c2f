"""Probes of norms, losses and confidence alone, without the activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.controls.statistic_values import Statistics, usable_statistics
from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import MULTICLASS, ORDINAL, Pairs
from stratalens.analyses.estimators.boosting import BOOSTING
from stratalens.analyses.estimators.probes import Settings
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.slab import Variables, probe_token, stack_tokens
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest
from stratalens.store.format.schema import AXES

BOTH = "both"
MODELS = (BOTH, "logistic", BOOSTING)
# Variables that the boosting does not add to those of the logistic regression.
LEFT_OUT = ("constant", "score", "coef", "intercept", "converged", "iterations", "penalty")


def statistics_probe(
    ds: Data,
    target: str = "trained_stage",
    statistics: Sequence[str] | None = None,
    model: str = BOTH,
    site: str = "resid_post",
    pairs: Pairs = "all",
    C: float | str | Sequence[float] = 1.0,
    folds: int = 5,
    groups: str = "entity_id",
    test: Mapping[str, object] | None = None,
    permutations: int = 0,
    seed: int = 0,
    *,
    order: Sequence[object] | None = None,
    resamples: int = 1000,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
    tokens: str = "each",
) -> xr.Dataset:
    """Fit probes on statistics of the rows instead of activations.

    A probe of activations has to exceed this baseline. The folds are those of `probe` with the same seed. Statistics
    are standardised on the training rows of each fit. A logistic regression finds a shift of a statistic. It is at
    chance where classes differ in the spread of one or in the product of two, so boosted trees are fitted as well.
    The statistics separate the groups if either model does.

    Args:
        ds: Dataset with the statistics, or with activations to compute those of `site` from.
        target: label column whose groups are classified.
        statistics: names, e.g. ("resid_post_l2", "loss", "entropy"); None = all of the site, and the loss, running
            loss, entropy, largest log-probability and logsumexp if the data has them.
        model: "logistic" (L2, one direction), "boosting" (HistGradientBoostingClassifier: any function) or "both".
        site: site of the statistics.
        pairs: as in `probe`; boosting is for two classes, so that "both" leaves it out elsewhere.
        C: inverse penalty of the logistic regression on standardised statistics.
        folds: number of folds.
        groups: label column of the units that a split never divides.
        test: as in `probe`.
        permutations: as in `probe`; with "both", of the logistic regression alone.
        seed: of folds, shuffles and resamples.
        order: groups wanted, in order; None = all.
        resamples: no effect, as in `probe`.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.
        tokens: as in `probe`.

    Returns:
        Dataset, without the dims among (stage, layer, token) that the data does not have, and without the dim `layer`
        if no statistic depends on the layer:

        - used (stage, layer, token, statistic): bool, False where a statistic is NaN in every row (e.g. the loss of the
          first token) and was left out. Where none is left, accuracies are NaN.
        - accuracy, auc (stage, layer, token, pair, fold): float64, on the test rows of each fold.
        - accuracy_mean (stage, layer, token, pair): float64, over all test rows.
        - accuracy_low, accuracy_high (stage, layer, token, pair): float64, 95 % interval as in `probe`.
        - accuracy_null (stage, layer, token, pair): float64, mean over shuffled labels; only with permutations.
        - accuracy_p (stage, layer, token, pair): float64, one-sided permutation p; only with permutations.
        - score (stage, layer, token, pair, entity): float32, out-of-fold score of every entity in any group.
        - right (stage, layer, token, pair, entity): int8, 1 = test row that is classified correctly.
        - tested (stage, layer, token, pair, entity): int8, 1 = test row of the pair.
        - coef (stage, layer, token, pair, statistic): float64, from the refit on all rows.
        - intercept (stage, layer, token, pair): float64.
        - converged (stage, layer, token, pair): bool, True if all fits converged.
        - iterations (stage, layer, token, pair): int64, largest number over the fits.
        - penalty (stage, layer, token, pair): float64, C of the refit.
        - constant (stage, layer, token): bool, True where all rows are equal; all numbers are NaN there.
        - chance (pair): float64, share of the larger class.
        - entity_fold (entity): int64, -1 = in no group.

        With model="both", these are of the logistic regression. Those of the boosting have the prefix `boosting_`, e.g.
        boosting_accuracy_mean, _low and _high, with the same dims and types.

        Boosting has no coef, intercept, converged, iterations and penalty. "ordinal" and "multiclass" change variables
        and dims as in `probe`.

    Raises:
        InputError: as `probe`; an unknown statistic or model; a statistic that is undefined in some rows only.
        NotRecordedError: unrecorded rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(60, 1, 8)) * np.repeat([1.0, 2.0], 30)[:, None, None]
        >>> da = xr.DataArray(x, dims=("entity", "token", "d_model"), name="resid_post",
        ...     coords={"size": ("entity", np.repeat(["small", "large"], 30).astype(object))})
        >>> result = statistics_probe(da, "size", ("resid_post_l2",), progress=False)
        >>> bool((result.accuracy_mean > 0.9).all())
        True
    """
    if model not in MODELS:
        raise InputError(f"model={model!r}: {suggest(str(model), MODELS)}")
    plan = make_plan(ds, target, pairs, folds, groups, test, order, permutations, seed, resamples, tokens)
    kind = plan.contrasts.kind
    if model == BOTH and kind != "binary":
        model = "logistic"
    if model == BOOSTING and kind in (ORDINAL, MULTICLASS):
        raise InputError(f"model='boosting' is for two classes; pairs={kind!r} needs 'logistic'")
    settings = Settings(
        "ridge" if kind == ORDINAL else "logistic" if model == BOTH else model, C, standardize=True, kind=kind
    )
    settings.check(folds)
    source, values = statistics_source(ds, site, statistics)
    values.require_places(source)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, source.labels("stage"))
    result = run_slabs(
        source,
        _StatisticsSlab(plan, settings, values, model == BOTH),
        rows=rows,
        name="statistics_probe",
        params={"model": model} | settings.identity() | plan.identity() | values.identity(),
        options=RunOptions(skip_missing, cache, scheduler, workers, progress),
    )
    result = label_result(result, plan, source).assign_coords(statistic=np.array(values.names, dtype=object))
    attrs: dict[str, object] = {
        "target": target,
        "method": settings.method,
        "statistics": list(values.names),
        "folds": folds,
        "seed": seed,
        "tokens": tokens,
        "site": site,
        "pairs": kind,
    }
    if model != BOOSTING:
        attrs["C"] = settings.C_attr
    return result.assign_attrs(source.attrs() | attrs)


def statistics_source(ds: Data, site: str, wanted: Sequence[str] | None) -> tuple[SiteData, Statistics]:
    """Find the statistics, and the array that has their stages, layers and tokens."""
    values = Statistics(ds, site, wanted)
    if isinstance(ds, xr.DataArray) or values.computed or (values.layered and site in ds.data_vars):
        return SiteData(ds, site, features=False), values
    arrays = [ds[n.split("[")[0]] for n in values.names]
    # The statistic with the most dims has every place.
    widest = max(arrays, key=lambda a: sum(d in a.dims for d in ("stage", "layer", "token")))
    extra = [d for d in widest.dims if d not in AXES]
    if extra:
        ds = ds.assign({str(widest.name): widest.isel(dict.fromkeys(extra, 0), drop=True)})
    return SiteData(ds, str(widest.name), features=False), values


class _StatisticsSlab:
    """Function of a slab: probes of statistics; a class, so that a cluster can pickle it."""

    def __init__(self, plan: Plan, settings: Settings, statistics: Statistics, boost: bool) -> None:
        self.plan, self.settings, self.statistics, self.boost = plan, settings, statistics, boost

    def __call__(self, slab: Slab) -> xr.Dataset:
        plan = self.plan.take(slab.rows)
        values = self.statistics.values(slab)
        names = self.statistics.names * (values.shape[1] if plan.joint else 1)
        tokens: list[Variables] = []
        for columns in plan.features(values):
            used = usable_statistics(columns, names, slab.where)
            # Statistics that are left out become zeros, which add nothing to a probe.
            values_used = np.where(used, columns, 0.0)
            variables = probe_token(values_used, plan, self.settings)
            if self.boost:
                boosting = replace(self.settings, method=BOOSTING)
                boosted = probe_token(values_used, replace(plan, permutations=0), boosting)
                variables |= {f"boosting_{name}": v for name, v in boosted.items() if name not in LEFT_OUT}
            constant = bool(variables["constant"][1]) and used.any()
            tokens.append(variables | {"constant": ((), np.asarray(constant)), "used": (("feature",), used)})
        return stack_tokens(tokens, slab, self.plan, "statistic")
