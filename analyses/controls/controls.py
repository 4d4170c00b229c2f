"""The project's conscience: baselines, all controls in one call, and one table of what is left of the effect.

Each control is a verb of its own (statistics_alone.py, matched.py, residuals.py); here are the
baselines that need no statistics, and what puts everything side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.data.targets import Pairs
from stratalens.analyses.probes.plan import Plan, make_plan
from stratalens.analyses.probes.probe import label_result, probe
from stratalens.analyses.probes.slab import Variables, constant, no_numbers, quality, stack_tokens, unit_rows
from stratalens.analyses.stats import scores as scoring
from stratalens.analyses.sweep.run import run_slabs
from stratalens.store.errors import InputError, suggest

__all__ = [
    "BASELINES",
    "CONTROLS",
    "baseline_probe",
    "control_table",
    "controls",
    "matched_probe",
    "residual_probe",
    "statistics_probe",
]


CONTROLS = (
    "probe",
    "normalized",
    "statistics",
    "statistics_boosting",
    "matched",
    "matched_nearest",
    "residual_linear",
    "residual_spline",
    "random_direction",
    "shuffled_label",
    "shuffled_entity",
)


BASELINES = ("random_direction", "shuffled_label", "shuffled_entity")


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
    """A probe that should know nothing.

    Args:
        ds, target, site, pairs, C, folds, groups, seed, order, test, normalize, tokens, resamples, skip_missing: as in
            `probe`.
        baseline: "random_direction": the mean of `directions` random directions, with sign and threshold set on
            the training rows; "shuffled_label": labels moved between rows; "shuffled_entity": labels moved between
            whole entities, which keep their rows together. The last two differ where entities have several rows: if
            only the second is at chance, the probe recognises entities, not their group.
        directions: number of random directions.
        options: of `run_slabs` (cache, scheduler, workers, progress); for shuffled labels also method, standardize and
            whatever else `probe` takes.

    Returns:
        As `probe`; for random directions accuracy and its interval alone.

    Raises:
        InputError: as `probe`; and an unknown baseline.
    """
    if baseline not in BASELINES:
        raise InputError(f"baseline={baseline!r}: {suggest(str(baseline), BASELINES)}")
    if directions < 1:
        raise InputError(f"directions={directions}; at least one is needed")
    plan = make_plan(ds, target, pairs, folds, groups, test, order, 0, seed, resamples, tokens)
    if plan.contrasts.kind != "binary":
        raise InputError(f"pairs={pairs!r} has no baseline of two classes; use 'all', 'rest' or a list of pairs")
    if baseline != "random_direction":
        moved = plan.shuffled(0, np.arange(len(plan.units)) if baseline == "shuffled_label" else None)
        found = probe(
            ds, target, site, pairs, C=C, folds=folds, groups=groups, seed=seed, order=order, resamples=resamples,
            test=test, normalize=normalize, skip_missing=skip_missing, plan=moved, **options,
        )  # fmt: skip
        return found.assign_attrs(baseline=baseline)
    strange = set(options) - {"cache", "scheduler", "workers", "progress"}
    if strange:
        raise InputError(f"{strange.pop()}= has no meaning for random directions, which are not fitted; leave it out")
    source = SiteData(ds, site)
    rows = source.rows(skip_missing, wanted=plan.codes >= 0)
    plan.check(rows, [str(source.label("stage", i)) for i in range(len(rows))])
    result = run_slabs(
        source,
        _RandomDirections(plan, directions, normalize),
        rows=rows,
        name=baseline,
        params={"directions": directions, "normalize": normalize} | plan.identity(),
        **{"cache": None, **options},
    )
    described = {
        "target": target,
        "method": "random direction",
        "directions": directions,
        "seed": seed,
        "tokens": tokens,
    }
    return label_result(result, plan, source).assign_attrs(source.attrs() | described | {"baseline": baseline})


class _RandomDirections:
    """Accuracy along random directions; a class so that a cluster can pickle it."""

    def __init__(self, plan: Plan, directions: int, normalize: bool) -> None:
        self.plan, self.directions, self.normalize = plan, directions, normalize

    def __call__(self, slab: Slab) -> xr.Dataset:
        values = slab.values()
        slab.refuse_nonfinite(values)
        if self.normalize:
            values = unit_rows(values, slab.where)
        plan = self.plan.take(slab.rows)
        rng = np.random.default_rng([self.plan.seed, 1])
        width = values.shape[2] * (values.shape[1] if plan.joint else 1)
        axes = rng.standard_normal((width, self.directions)).astype(values.dtype)
        return stack_tokens([self._token(X, axes, plan) for X in plan.features(values)], slab, self.plan)

    def _token(self, X: npt.NDArray[np.floating], axes: npt.NDArray[np.floating], plan: Plan) -> Variables:
        if constant(X):
            noise = np.random.default_rng(0).standard_normal(X.shape)
            return no_numbers(self._token(noise, axes, plan))
        along = X @ axes
        parts: list[Variables] = []
        for a in range(self.directions):
            score = np.empty((plan.contrasts.signs.shape[1], len(along)), dtype=np.float32)
            for p, sign in enumerate(plan.contrasts.signs.T):
                for k in range(plan.folds):
                    train = plan.trainable & (plan.fold != k)
                    low, high = (float(along[train & (sign == side), a].mean()) for side in (-1, 1))
                    own = plan.fold == k
                    score[p, own] = (along[own, a] - (low + high) / 2) * (1 if high >= low else -1)
            parts.append(quality(score, plan, resample=False))
        right = np.sum([part["right"][1] for part in parts], axis=0, dtype=np.int64)
        tested = np.asarray(parts[0]["tested"][1])
        draws = plan.draws()
        share = np.asarray(right / self.directions)
        mean, low_, high_ = scoring.cluster_interval(share, tested, plan.units, draws)

        def average(name: str) -> npt.NDArray[np.float64]:
            return np.asarray(np.stack([np.asarray(part[name][1], np.float64) for part in parts]).mean(axis=0))

        return {
            "accuracy": (("pair", "fold"), average("accuracy")),
            "auc": (("pair", "fold"), average("auc")),
            "accuracy_mean": (("pair",), mean),
            "accuracy_low": (("pair",), low_),
            "accuracy_high": (("pair",), high_),
            "right": (("pair", "entity"), share.astype(np.float32)),
            "tested": (("pair", "entity"), tested),
            "constant": ((), np.asarray(False)),
        }


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
        ds, target, site, pairs, C, folds, groups, seed, order, test, tokens, resamples: as in `probe`.
        statistics: for statistics_probe and residual_probe; None = all there are.
        which: names among CONTROLS.
        matched_on: statistics that classes are matched on; None = a few, see `matched_probe`. (All of them at once
            leave no joint bin with rows of both classes.)
        bins: of the matching.
        options: skip_missing, cache, scheduler, workers, progress.

    Returns:
        {name: result of the verb}, as `sl.plots.control_comparison` and `control_table` take it.

    Raises:
        InputError: an unknown control; else as the verbs.
    """
    unknown = [name for name in which if name not in CONTROLS]
    if unknown:
        raise InputError(f"no control {unknown[0]!r}: {suggest(str(unknown[0]), CONTROLS)}")
    shared: dict[str, Any] = {
        "site": site, "pairs": pairs, "groups": groups, "seed": seed, "order": order, "test": test, "tokens": tokens,
        "resamples": resamples, **options,
    }  # fmt: skip
    made: dict[str, xr.Dataset] = {}
    for name in which:
        if name in ("probe", "normalized"):
            made[name] = probe(ds, target, C=C, folds=folds, normalize=name == "normalized", **shared)
        elif name.startswith("statistics"):
            model = "boosting" if name.endswith("boosting") else "logistic"
            made[name] = statistics_probe(ds, target, statistics, model, folds=folds, **shared)
        elif name.startswith("matched"):
            method = "nearest" if name.endswith("nearest") else "bins"
            made[name] = matched_probe(ds, target, matched_on, method, bins, C=C, small="nan", **shared)
        elif name.startswith("residual"):
            kind = name.removeprefix("residual_")
            made[name] = residual_probe(ds, target, statistics, kind, C=C, folds=folds, **shared)
        else:
            made[name] = baseline_probe(ds, target, name, C=C, folds=folds, **shared)
    return made


def control_table(results: Mapping[str, xr.Dataset], reference: str = "probe", resamples: int = 1000) -> xr.Dataset:
    """What is left of the effect after each control.

    The effect is accuracy above one half (what a coin gets; where classes are unequal, above the larger class's
    share). Intervals of the differences come from the same resamples of entities for both sides, so that what the
    two have in common cancels.

    Args:
        results: from `controls`, or any mapping of results of probe, statistics_probe, matched_probe, residual_probe
            and baseline_probe over the same entities and pairs.
        reference: which of them is the effect.
        resamples: of the cluster bootstrap.

    Returns:
        Dataset with dim `control` before the places (stage, layer, token, pair): accuracy, accuracy_low, accuracy_high;
        effect = accuracy - chance; lost = reference - control with lost_low, lost_high; left = effect / effect of the
        reference with left_low, left_high, NaN where the reference's own interval reaches chance. A matched probe gives
        one row for each of its samples. A result whose stages hold an untrained one (stage_order below that of every
        group) adds the row "untrained_stage": the reference at that stage, repeated over the others.

    Raises:
        InputError: no such reference, or results of different entities or pairs.
    """
    from stratalens.analyses.controls.control_table import tabulate

    if reference not in results:
        raise InputError(f"reference={reference!r} is not among the results: {suggest(reference, results)}")
    return tabulate(results, reference, resamples)
