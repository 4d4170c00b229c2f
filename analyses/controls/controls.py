"""Baselines that know nothing, and all controls of a probe in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.controls.conditional_test import conditional_test
from stratalens.analyses.controls.intervals import fold_placements
from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.analyses.controls.weighted_probe import weighted_probe
from stratalens.analyses.data.array_types import Data, Floats
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result, probe
from stratalens.analyses.probes.slab import (
    Variables,
    blank_values,
    is_constant,
    noise_like,
    normalize_rows,
    score_quality,
    stack_tokens,
)
from stratalens.analyses.stats import scores as scoring
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest

BASELINES = ("random_direction", "shuffled_label", "shuffled_entity")
CONTROLS = (
    "probe",
    "normalized",
    "statistics",
    "statistics_boosting",
    "matched",
    "matched_nearest",
    "weighted",
    "conditional",
    "residual_linear",
    "residual_spline",
    *BASELINES,
)


def baseline_probe(
    ds: Data,
    target: str = "trained_stage",
    baseline: str = "random_direction",
    site: str = "resid_post",
    pairs: Pairs = "all",
    C: float | str | Sequence[float] = 0.1,
    folds: int = 5,
    groups: str = "entity_id",
    seed: int = 0,
    *,
    directions: int = 20,
    order: Sequence[object] | None = None,
    test: Mapping[str, object] | None = None,
    normalize: bool = False,
    tokens: str = "each",
    resamples: int = 1000,
    skip_missing: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Fit a probe that should be at chance.

    Args:
        ds: Dataset (with `site`) or DataArray with dims among (stage, layer, entity, token, features).
        target: label column whose groups are classified.
        baseline: "random_direction": the mean of `directions` random directions, with sign and threshold set on the
            training rows; "shuffled_label": labels moved between rows; "shuffled_entity": labels moved between whole
            entities, which keep their rows together. Both are at chance whatever the data, because no entity is on
            both sides of a split, so that a probe cannot use what it learned about an entity. They show that nothing
            leaks. A control task that a probe can memorise (Hewitt and Liang, 2019) needs the same entities on both
            sides.
        site: variable to read.
        pairs: as in `probe`, without "ordinal" and "multiclass".
        C: as in `probe`.
        folds: number of folds.
        groups: label column of the units that a split never divides.
        seed: of folds, shuffles, directions and resamples.
        directions: number of random directions.
        order: groups wanted, in order; None = all.
        test: as in `probe`.
        normalize: as in `probe`.
        tokens: as in `probe`.
        resamples: of the cluster bootstrap.
        skip_missing: leave unrecorded rows out instead of refusing them.
        **options: cache, scheduler, workers and progress, see `RunOptions`; for shuffled labels also method,
            standardize and the other arguments of `probe`.

    Returns:
        Dataset, without the dims among (stage, layer, token) that the data does not have. For shuffled labels, the
        variables of `probe`. For random directions:

        - accuracy, auc (stage, layer, token, pair, fold): float64, mean over directions.
        - accuracy_mean (stage, layer, token, pair): float64, over all test rows.
        - accuracy_low, accuracy_high (stage, layer, token, pair): float64, 95 % cluster bootstrap over entities.
        - right (stage, layer, token, pair, entity): float32, share of the directions that classify a row correctly.
        - tested (stage, layer, token, pair, entity): int8, 1 = test row of the pair.
        - placement (stage, layer, token, pair, entity): float32, share of the other class in the fold that a test row
          is on the right side of; its mean is the AUC.
        - constant (stage, layer, token): bool, True where all rows are equal; all numbers are NaN there.
        - chance (pair): float64, share of the larger class.
        - entity_fold (entity): int64, -1 = in no group.

    Raises:
        InputError: as `probe`, or an unknown baseline.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.
    """
    if baseline not in BASELINES:
        raise InputError(f"baseline={baseline!r}: {suggest(str(baseline), BASELINES)}")
    if directions < 1:
        raise InputError(f"directions={directions}; at least one is needed")
    plan = make_plan(ds, target, pairs, folds, groups, test, order, 0, seed, resamples, tokens)
    if plan.contrasts.kind != "binary":
        raise InputError(f"pairs={pairs!r} has no baseline of two classes; use 'all', 'rest' or a list of pairs")
    if baseline != "random_direction":
        units = np.arange(len(plan.units)) if baseline == "shuffled_label" else None
        result = probe(
            ds,
            target,
            site,
            pairs,
            C=C,
            folds=folds,
            groups=groups,
            seed=seed,
            order=order,
            resamples=resamples,
            test=test,
            normalize=normalize,
            skip_missing=skip_missing,
            plan=plan.shuffle_labels(0, units),
            **options,
        )
        return result.assign_attrs(baseline=baseline)
    unknown = set(options) - {"cache", "scheduler", "workers", "progress"}
    if unknown:
        raise InputError(f"{unknown.pop()}= has no meaning for random directions, which are not fitted; leave it out")
    source = SiteData(ds, site)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, source.labels("stage"))
    result = run_slabs(
        source,
        _RandomDirections(plan, directions, normalize),
        rows=rows,
        name=baseline,
        params={"directions": directions, "normalize": normalize, "version": 2} | plan.identity(),
        options=RunOptions(**{"cache": None, **options}),
    )
    attrs = {
        "target": target,
        "method": "random direction",
        "directions": directions,
        "seed": seed,
        "tokens": tokens,
        "baseline": baseline,
    }
    return label_result(result, plan, source).assign_attrs(source.attrs() | attrs)


class _RandomDirections:
    """Function of a slab: accuracy along random directions; a class, so that a cluster can pickle it."""

    def __init__(self, plan: Plan, directions: int, normalize: bool) -> None:
        self.plan, self.directions, self.normalize = plan, directions, normalize

    def __call__(self, slab: Slab) -> xr.Dataset:
        values = slab.values()
        slab.refuse_nonfinite(values)
        if self.normalize:
            values = normalize_rows(values, slab.where)
        plan = self.plan.take(slab.rows)
        rng = np.random.default_rng([self.plan.seed, 1])
        width = values.shape[2] * (values.shape[1] if plan.joint else 1)
        axes = rng.standard_normal((width, self.directions)).astype(values.dtype)
        return stack_tokens([self._token(X, axes, plan) for X in plan.features(values)], slab, self.plan)

    def _token(self, X: Floats, axes: Floats, plan: Plan) -> Variables:
        """Score the rows of one token along every direction, and average the quality."""
        if is_constant(X):
            return blank_values(self._token(noise_like(X), axes, plan))
        scores = [_axis_scores(along, plan) for along in (X @ axes).T]
        by_direction = [score_quality(score, plan, resample=False) for score in scores]
        tests = (plan.test_signs != 0).T.astype(np.float64)
        placed = np.zeros(tests.shape)
        for score in scores:
            rows = zip(score, plan.test_signs.T > 0, tests, strict=True)
            placed += np.stack([fold_placements(s, p, w, plan.fold) for s, p, w in rows]) / len(scores)
        stacked = {
            name: np.stack([np.asarray(variables[name][1], np.float64) for variables in by_direction])
            for name in ("accuracy", "auc", "right")
        }
        right = stacked["right"].mean(axis=0)
        tested = np.asarray(by_direction[0]["tested"][1])
        mean, low, high = scoring.cluster_interval(right, tested, plan.units, plan.bootstrap_weights())
        return {
            "accuracy": (("pair", "fold"), stacked["accuracy"].mean(axis=0)),
            "auc": (("pair", "fold"), stacked["auc"].mean(axis=0)),
            "accuracy_mean": (("pair",), mean),
            "accuracy_low": (("pair",), low),
            "accuracy_high": (("pair",), high),
            "right": (("pair", "entity"), right.astype(np.float32)),
            "tested": (("pair", "entity"), tested),
            "placement": (("pair", "entity"), placed.astype(np.float32)),
            "constant": ((), np.asarray(False)),
        }


def _axis_scores(along: Floats, plan: Plan) -> Floats:
    """Scores (pair, n) of coordinates along one axis; the training rows set the sign and the threshold."""
    score = np.empty((plan.contrasts.signs.shape[1], len(along)), dtype=np.float32)
    for p, sign in enumerate(plan.contrasts.signs.T):
        for k in range(plan.folds):
            train = plan.trainable & (plan.fold != k)
            low, high = (float(along[train & (sign == side)].mean()) for side in (-1, 1))
            own = plan.fold == k
            score[p, own] = (along[own] - (low + high) / 2) * (1 if high >= low else -1)
    return score


def controls(
    ds: Data,
    target: str = "trained_stage",
    statistics: Sequence[str] | None = None,
    site: str = "resid_post",
    pairs: Pairs = "all",
    which: Sequence[str] = CONTROLS,
    *,
    matched_on: Sequence[str] | None = None,
    C: float | str | Sequence[float] = 0.1,
    bins: int = 10,
    permutations: int = 99,
    folds: int = 5,
    groups: str = "entity_id",
    seed: int = 0,
    order: Sequence[object] | None = None,
    test: Mapping[str, object] | None = None,
    tokens: str = "each",
    resamples: int = 1000,
    **options: Any,
) -> dict[str, xr.Dataset]:
    """Run the probe and its controls with the same folds.

    Args:
        ds: Dataset with activations and statistics, or a DataArray of activations.
        target: label column whose groups are classified.
        statistics: for statistics_probe, weighted_probe, conditional_test and residual_probe; None = all available.
        site: variable to read.
        pairs: as in `probe`, without "ordinal" and "multiclass".
        which: names among CONTROLS.
        matched_on: statistics that classes are matched on; None = a few, see `matched_probe`. All of them at once
            leave no joint bin with rows of both classes.
        C: as in `probe`.
        bins: of the matching.
        permutations: of the conditional test.
        folds: number of folds.
        groups: label column of the units that a split never divides.
        seed: of folds, shuffles, directions, matching and resamples.
        order: groups wanted, in order; None = all.
        test: as in `probe`.
        tokens: as in `probe`.
        resamples: of the cluster bootstrap.
        **options: skip_missing, and cache, scheduler, workers and progress, see `RunOptions`.

    Returns:
        dict from the names in `which` to Datasets, as `sl.plots.control_comparison` and `control_table` take it:
        probe, normalized: variables of `probe`.
        statistics, statistics_boosting: variables of `statistics_probe`.
        matched, matched_nearest: variables of `matched_probe`.
        weighted: variables of `weighted_probe`.
        conditional: variables of `conditional_test`.
        residual_linear, residual_spline: variables of `residual_probe`.
        random_direction, shuffled_label, shuffled_entity: variables of `baseline_probe`.

    Raises:
        InputError: an unknown control, or as the functions that are called.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.
    """
    unknown = [name for name in which if name not in CONTROLS]
    if unknown:
        raise InputError(f"no control {unknown[0]!r}: {suggest(str(unknown[0]), CONTROLS)}")
    shared: dict[str, Any] = {
        "site": site,
        "pairs": pairs,
        "groups": groups,
        "seed": seed,
        "order": order,
        "test": test,
        "tokens": tokens,
        "resamples": resamples,
        **options,
    }
    results: dict[str, xr.Dataset] = {}
    for name in which:
        if name in ("probe", "normalized"):
            results[name] = probe(ds, target, C=C, folds=folds, normalize=name == "normalized", **shared)
        elif name.startswith("statistics"):
            model = "boosting" if name.endswith("boosting") else "logistic"
            results[name] = statistics_probe(ds, target, statistics, model, folds=folds, **shared)
        elif name.startswith("matched"):
            method = "nearest" if name.endswith("nearest") else "bins"
            results[name] = matched_probe(ds, target, matched_on, method, bins, C=C, small="nan", **shared)
        elif name == "weighted":
            results[name] = weighted_probe(ds, target, statistics, C=C, folds=folds, **shared)
        elif name == "conditional":
            results[name] = conditional_test(
                ds, target, statistics, C=C, folds=folds, permutations=permutations, **shared
            )
        elif name.startswith("residual"):
            kind = name.removeprefix("residual_")
            results[name] = residual_probe(ds, target, statistics, kind, C=C, folds=folds, **shared)
        else:
            results[name] = baseline_probe(ds, target, name, C=C, folds=folds, **shared)
    return results
