"""The verb `statistics_probe`: how far norms, losses and confidence get alone, without the activations.

Which statistics there are is in statistic_values.py; probes of activations are in probes.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.controls.statistic_values import Statistics, usable
from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import MULTICLASS, ORDINAL, Pairs
from stratalens.analyses.estimators.boosting import BOOSTING
from stratalens.analyses.estimators.probes import Settings
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.probes.slab import Variables, probe_token, stack_tokens
from stratalens.analyses.sweep.run import run_slabs
from stratalens.store.errors import InputError, suggest

MODELS = ("logistic", BOOSTING)


def statistics_probe(
    ds: Data,
    target: str = "trained_stage",
    statistics: Sequence[str] | None = None,
    model: str = "logistic",
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
    """Probe per-row statistics instead of activations: the baseline that a probe has to beat.

    The same folds as `probe` with the same seed. Statistics are standardised on the training rows of each fit.

    Args:
        ds: Dataset with the statistics, or with activations to compute those of `site` from.
        target, pairs, folds, groups, test, permutations, seed, order, resamples, skip_missing, tokens: as in `probe`.
        statistics: names, e.g. ("resid_post_l2", "loss", "entropy"); None = all of the site, and the loss,
            running loss, entropy, largest log-probability and logsumexp where the data has them.
        model: "logistic" (L2, one direction) or "boosting" (HistGradientBoostingClassifier: any function).
        site: whose statistics are meant.
        C: inverse penalty of the logistic regression on standardised statistics.
        cache, scheduler, workers, progress: as in `run_slabs`.

    Returns:
        As `probe`; coef has the dim `statistic` in place of the features (boosting has no coef). used (...,
        token, statistic): False where a statistic is NaN in every row at that place (e.g. the loss of the first
        token) and was left out; where none is left, accuracies are NaN. Where no statistic depends on the layer,
        the result has no dim `layer`.

    Raises:
        InputError: as `probe`; and an unknown statistic or model, or a statistic undefined in some rows only.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(60, 1, 8)) * np.repeat([1.0, 2.0], 30)[:, None, None]
        >>> da = xr.DataArray(x, dims=("entity", "token", "d_model"), name="resid_post",
        ...     coords={"size": ("entity", np.repeat(["small", "large"], 30).astype(object))})
        >>> found = statistics_probe(da, "size", ("resid_post_l2",), progress=False)
        >>> bool((found.accuracy_mean > 0.9).all())
        True
    """
    if model not in MODELS:
        raise InputError(f"model={model!r}: {suggest(str(model), MODELS)}")
    plan = make_plan(ds, target, pairs, folds, groups, test, order, permutations, seed, resamples, tokens)
    if model == BOOSTING and plan.contrasts.kind in (ORDINAL, MULTICLASS):
        raise InputError(f"model='boosting' tells two classes apart; pairs={plan.contrasts.kind!r} needs 'logistic'")
    method = "ridge" if plan.contrasts.kind == ORDINAL else model
    settings = Settings(method, C, standardize=True, kind=plan.contrasts.kind)
    settings.check(folds)
    source, values = statistics_source(ds, site, statistics)
    values.require_places(source)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, [str(source.label("stage", i)) for i in range(len(rows))])
    result = run_slabs(
        source,
        _StatisticsSlab(plan, settings, values),
        rows=rows,
        name="statistics_probe",
        params={"model": model} | settings.identity() | plan.identity() | values.identity(),
        cache=cache,
        scheduler=scheduler,
        workers=workers,
        progress=progress,
    )
    result = label_result(result, plan, source).assign_coords(statistic=np.array(values.names, dtype=object))
    described: dict[str, object] = {"target": target, "method": model, "statistics": list(values.names), "folds": folds}
    described |= {"seed": seed, "tokens": tokens} | ({} if model == BOOSTING else {"C": settings.C_attr})
    return result.assign_attrs(source.attrs() | described | {"site": site, "pairs": plan.contrasts.kind})


def statistics_source(ds: Data, site: str, wanted: Sequence[str] | None) -> tuple[SiteData, Statistics]:
    """The statistics, and the array whose places (stage, layer, token) they are asked at."""
    values = Statistics(ds, site, wanted)
    if isinstance(ds, xr.DataArray) or values.computed:
        carrier: Data = ds
        name = site
    else:
        arrays = [ds[n.split("[")[0]] for n in values.names]
        # The one with the most dims knows every place; features do not matter here.
        widest = max(arrays, key=lambda a: sum(d in a.dims for d in ("stage", "layer", "token")))
        name = str(widest.name)
        carrier = ds
        extra = [d for d in widest.dims if d not in ("stage", "layer", "entity", "token")]
        if extra:
            carrier = ds.assign({name: widest.isel(dict.fromkeys(extra, 0), drop=True)})
        if site in ds.data_vars and values.layered:
            name, carrier = site, ds
    source = SiteData(carrier, name, features=False)
    return source, values


class _StatisticsSlab:
    """One slab's probes of statistics; a class so that a cluster can pickle it."""

    def __init__(self, plan: Plan, settings: Settings, statistics: Statistics) -> None:
        self.plan, self.settings, self.statistics = plan, settings, statistics

    def __call__(self, slab: Slab) -> xr.Dataset:
        plan = self.plan.take(slab.rows)
        values = self.statistics.values(slab)
        found: list[tuple[Variables, Any]] = []
        names = self.statistics.names * (values.shape[1] if plan.joint else 1)
        for columns in plan.features(values):
            used = usable(columns, names, slab.where)
            # Statistics that are left out become zeros: standardised, they carry nothing.
            X = np.where(used, columns, 0.0)
            variables = probe_token(X, plan, self.settings)
            variables["constant"] = ((), np.asarray(bool(variables["constant"][1]) and used.any()))
            found.append((variables, used))
        tokens: list[Variables] = [v | {"used": (("feature",), used)} for v, used in found]
        return stack_tokens(tokens, slab, self.plan, "statistic")
