"""Probes trained on classes that are matched in norms, losses or confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.controls.matched_slab import SAMPLES, SCORED, MatchedSlab
from stratalens.analyses.controls.statistic_values import Statistics, default_names
from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.data.splits import assert_disjoint, entity_halves
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.estimators.backend import resolve_backend, thread_count
from stratalens.analyses.estimators.probes import Settings
from stratalens.analyses.probes.plan import make_plan
from stratalens.analyses.probes.probe import label_result
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest

METHODS = ("bins", "nearest")
VERSION = 2  # of the numbers, for the cache: results of other versions are not read
INNER_FOLDS = 5  # folds that choose a penalty


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
