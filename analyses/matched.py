"""The verb `matched_probe`: probes trained on classes that agree in norms, losses or confidence.

How rows are matched is in matching.py; the statistics themselves are in statistic_values.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.backend import resolve, threads
from stratalens.analyses.engine.slabs import SiteData
from stratalens.analyses.fitting.estimators import Settings
from stratalens.analyses.labels import Data
from stratalens.analyses.probes import labelled
from stratalens.analyses.probing.folds import assert_disjoint, entity_halves
from stratalens.analyses.probing.matched_slab import SAMPLES, MatchedSlab, MatchOptions
from stratalens.analyses.probing.pairs import Pairs
from stratalens.analyses.probing.probe_plan import make_plan
from stratalens.analyses.probing.statistic_values import Statistics
from stratalens.analyses.sweep import run_slabs
from stratalens.store.errors import InputError, near

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
        raise InputError(f"method={method!r}: {near(str(method), METHODS)}")
    if small not in ("raise", "nan"):
        raise InputError(f"small={small!r}: valid are 'raise' and 'nan'")
    settings = Settings("logistic", C, standardize, backend=resolve(backend).name)
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
        workers=threads(settings.backend, workers),
        progress=progress,
    )
    result = labelled(result, plan, source, folds=False).assign_coords(
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
        "C": settings.told,
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
