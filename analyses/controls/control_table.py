"""Table of the effect that each control leaves, with paired intervals."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from stratalens.analyses.controls.intervals import Resampler, fold_factor, fold_placements
from stratalens.analyses.data.array_types import Codes, Doubles, Mask
from stratalens.analyses.data.results import boosting_result
from stratalens.analyses.stats.bootstrap import bootstrap_weights
from stratalens.analyses.stats.scores import ratio
from stratalens.store.errors import InputError, suggest

TAILS = (0.025, 0.975)
LARGEST_CHANCE = 0.55  # share of the larger class up to which accuracy measures an effect


def control_table(results: Mapping[str, xr.Dataset], reference: str = "probe", resamples: int = 1000) -> xr.Dataset:
    """Compute how much of the effect each control leaves.

    The effect is accuracy above chance where the classes are about equally large. Where they are not, it is the AUC
    above 1/2, because some controls train or score on equal classes, which moves the threshold of a probe but not its
    AUC. Both sides of a difference use the same resamples of entities, so that the variation they share cancels.

    Args:
        results: from `controls`, or any mapping of results of probe, statistics_probe, matched_probe, weighted_probe,
            conditional_test, residual_probe and baseline_probe over the same entities and pairs.
        reference: name of the result with the effect.
        resamples: of the cluster bootstrap.

    Returns:
        Dataset with one entry of `control` for each result, without the dims among (stage, layer, token) that the
        results do not have; the attribute `measure` is "accuracy" or "auc":

        - accuracy (control, stage, layer, token, pair): float64.
        - accuracy_low, accuracy_high (control, stage, layer, token, pair): float64, 95 % interval of the result.
        - auc (control, stage, layer, token, pair): float64; only with measure "auc".
        - null (control, stage, layer, token, pair): float64, level of the measure without an effect: chance; for a
          conditional test, what the statistics alone would give.
        - effect (control, stage, layer, token, pair): float64, measure - null.
        - lost (control, stage, layer, token, pair): float64, effect of the reference - effect.
        - lost_low, lost_high (control, stage, layer, token, pair): float64, 95 % interval.
        - left (control, stage, layer, token, pair): float64, effect / effect of the reference. NaN where the
          interval of the reference reaches chance.
        - left_low, left_high (control, stage, layer, token, pair): float64, 95 % interval.

        The intervals of `lost` and `left` are widened for overlapping training sets (Nadeau and Bengio, 2003).

        A matched probe has one entry for each of its samples, on matched test rows, and one for its matched sample on
        all test rows. A statistics probe with both models has a second entry for the boosting. The coordinate
        `matched_on` names the matched statistics. If the first result has an untrained stage (stage_order below that
        of every group), the entry "untrained_stage" repeats that stage over the others.

    Raises:
        InputError: an unknown reference, or results of different entities or pairs.
    """
    if reference not in results:
        raise InputError(f"reference={reference!r} is not among the results: {suggest(reference, results)}")
    entries = _entries(results)
    base = entries[reference] if reference in entries else entries[f"{reference}: all"]
    measure = "auc" if bool((base.get("chance", xr.DataArray(0.5)) > LARGEST_CHANCE).any()) else "accuracy"
    units, strata = _units(base)
    draws = bootstrap_weights(strata, resamples, 0)
    factor = fold_factor(int(base.sizes.get("fold", 5)))
    estimate, base_draws = _resample(base, units, draws, measure, factor)
    base_effect, base_draws = estimate - _null(base, measure), base_draws - _null(base, measure)
    above_chance = _interval(base_draws)[0] > 0
    tables = []
    for name, entry in entries.items():
        if entry.sizes["pair"] != base.sizes["pair"] or (entry["pair"].values != base["pair"].values).any():
            raise InputError(
                f"{name!r} has other pairs than {reference!r} ({', '.join(map(str, entry['pair'].values[:6]))}); run "
                f"both with the same pairs="
            )
        null = _null(entry, measure)
        value, entry_draws = _resample(entry, units, draws, measure, factor)
        entry_draws = (entry_draws - null).broadcast_like(base_draws)
        effect = _like(value - null, estimate)
        # A resample with the reference at chance counts as a tiny effect, not as an infinite share.
        left_draws = entry_draws / base_draws.clip(min=1e-3)
        lost_low, lost_high = _interval(base_draws - entry_draws)
        left_low, left_high = _interval(left_draws)
        table = {
            "accuracy": _like(entry["accuracy_mean"], estimate),
            "accuracy_low": _like(entry["accuracy_low"], estimate),
            "accuracy_high": _like(entry["accuracy_high"], estimate),
            "null": _like(null, estimate),
            "effect": effect,
            "lost": base_effect - effect,
            "lost_low": lost_low,
            "lost_high": lost_high,
            "left": (effect / base_effect.where(base_effect > 0)).where(above_chance),
            "left_low": left_low.where(above_chance),
            "left_high": left_high.where(above_chance),
        }
        if measure == "auc":
            table["auc"] = _like(value, estimate)
        tables.append(xr.Dataset(table).drop_vars(["sample", "scored"], errors="ignore"))
    names = xr.DataArray(np.array(list(entries), dtype=object), dims="control", name="control")
    out = xr.concat(tables, names, coords="minimal", compat="override", join="exact")
    matched_on = [", ".join(map(str, entry.attrs.get("matched_on", ()))) for entry in entries.values()]
    out = out.assign_coords(matched_on=("control", np.array(matched_on, dtype=object)))
    attrs = {k: v for k, v in base.attrs.items() if k in ("site", "hook", "target", "model", "folds", "seed", "C")}
    return out.assign_attrs(attrs | {"reference": reference, "resamples": resamples, "measure": measure})


def _like(values: xr.DataArray, example: xr.DataArray) -> xr.DataArray:
    """Broadcast to the dims of an example, in their order."""
    return values.broadcast_like(example).transpose(*example.dims)


def _null(entry: xr.Dataset, measure: str) -> xr.DataArray:
    """Level of a result without an effect: of a conditional test its null, else chance."""
    if "null_mean" in entry:
        return entry[f"{measure}_null"]
    return entry.get("chance", xr.DataArray(0.5)) if measure == "accuracy" else xr.DataArray(0.5)


def _entries(results: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Split results into the entries of the table: samples of a matched probe, models, and the untrained stage."""
    entries: dict[str, xr.Dataset] = {}
    for name, result in results.items():
        missing = [v for v in ("accuracy_mean", "right", "tested") if v not in result]
        if missing:
            raise InputError(
                f"{name!r} has no {missing[0]!r}: the table takes results of probe, statistics_probe, matched_probe, "
                f"weighted_probe, conditional_test, residual_probe and baseline_probe for two classes"
            )
        if "sample" in result["accuracy_mean"].dims:
            matched = result.assign_attrs(matched_on=list(result.attrs.get("statistics", ())))
            for sample in matched["sample"].values:
                row = matched.sel(sample=sample, drop=True)
                entries[f"{name}: {sample}"] = row.sel(scored="matched", drop=True) if "scored" in row.dims else row
            if "scored" in matched.dims:
                row = matched.sel(sample="matched", scored="unmatched", drop=True)
                entries[f"{name}: matched, unmatched test rows"] = row
        else:
            entries[name] = result
            boosting = boosting_result(result)
            if boosting is not None:
                entries.setdefault(f"{name}_boosting", boosting)
    first = next(iter(entries.values()))
    if "pair_first" in first.coords:
        groups = {*map(str, first["pair_first"].values), *map(str, first["pair_second"].values)} - {"rest"}
        untrained = find_untrained_stage(groups, first)
        if untrained is not None:
            entries["untrained_stage"] = first.isel(stage=untrained, drop=True)
    return entries


def find_untrained_stage(groups: Iterable[str], data: xr.Dataset | xr.DataArray) -> int | None:
    """Find a stage from before any of these groups was trained on.

    Returns:
        Index of the stage; None if there is none.
    """
    if "stage" not in data.dims or "stage_order" not in data.coords:
        return None
    order = dict(zip(map(str, data["stage"].values), data["stage_order"].values.tolist(), strict=True))
    trained = [order[n] for n in groups if n in order]
    earliest = int(np.argmin(data["stage_order"].values))
    return earliest if trained and data["stage_order"].values[earliest] < min(trained) else None


def _units(result: xr.Dataset) -> tuple[Codes, Codes]:
    """Entity of each row, and a stratum of each entity: the classes and pairs that it was tested in."""
    codes = np.arange(result.sizes["entity"])
    if "entity_id" in result.coords:
        codes = _factorize(result["entity_id"])
    tested = (result["tested"] > 0).any([d for d in result["tested"].dims if d not in ("pair", "entity")])
    member = tested.transpose("entity", "pair").values
    target = result.attrs.get("target", "")
    if target in result.coords:
        group = _factorize(result[target])
        member = np.concatenate([member, group[:, None] == np.arange(group.max(initial=0) + 1)], axis=1)
    present = np.zeros((int(codes.max()) + 1, member.shape[1]), dtype=bool)
    np.logical_or.at(present, codes, member)
    _, strata = np.unique(present, axis=0, return_inverse=True)
    return codes.astype(np.int64), np.asarray(strata, dtype=np.int64).ravel()


def _factorize(labels: xr.DataArray) -> Codes:
    return np.asarray(pd.factorize(np.asarray(labels.values).astype(object))[0])


def _resample(
    entry: xr.Dataset, units: Codes, draws: npt.NDArray[np.float32], measure: str, factor: float
) -> tuple[xr.DataArray, xr.DataArray]:
    """Compute a measure, and its value in every resample with dims (draw, places), widened by a factor."""
    if entry.sizes["entity"] != len(units):
        raise InputError("the results are of different entities; run all controls on the same rows")
    right, tested = xr.broadcast(entry["right"], entry["tested"])
    places = [d for d in right.dims if d != "entity"]
    order = (*places, "entity")
    flat_tested = tested.transpose(*order).values.reshape(-1, len(units)).astype(np.float64)
    flat_right = right.transpose(*order).values.reshape(flat_tested.shape).astype(np.float64)
    resampler = Resampler(units, draws)
    if measure == "accuracy":
        value = ratio(flat_right.sum(axis=1), flat_tested.sum(axis=1))
        resampled = ratio(resampler.sums(flat_right), resampler.sums(flat_tested))
    else:
        positive = np.broadcast_to(_positive(entry).broadcast_like(right).transpose(*order).values, right.shape)
        positive = positive.reshape(flat_tested.shape)
        placed = _placements(entry, right, flat_tested, positive, order)
        value, resampled = resampler.auc_draws(placed, flat_tested, positive)
    coords = {d: right.coords[d] for d in places if d in right.coords}
    shape = [right.sizes[d] for d in places]
    resampled = value + factor * (resampled - value)
    return (
        xr.DataArray(value.reshape(shape), dims=places, coords=coords),
        xr.DataArray(resampled.reshape(len(draws), *shape), dims=("draw", *places), coords=coords),
    )


def _positive(entry: xr.Dataset) -> xr.DataArray:
    """Rows of the positive class of each pair, with dims among (places, pair, entity)."""
    if "score" in entry and set(entry["right"].dims) <= set(entry["score"].dims):
        # The class by which a row was judged, which is not its label where labels were shuffled.
        judged: xr.DataArray = (entry["score"] > 0) == (entry["right"] > 0)
        return judged
    target = entry.attrs.get("target", "")
    if target not in entry.coords:
        raise InputError(f"a result without scores needs the label column {target!r} to compute its AUC")
    labels = entry[target].astype(str)
    labelled: xr.DataArray = (entry["pair_second"].astype(str) == labels) & (entry["tested"] > 0)
    return labelled


def _placements(
    entry: xr.Dataset, right: xr.DataArray, tested: Doubles, positive: Mask, order: Sequence[Hashable]
) -> Doubles:
    """Sum of the placements of every row over its tests, array of shape (places, entity)."""
    if "placement" in entry:
        return entry["placement"].transpose(*order).values.reshape(tested.shape).astype(np.float64)
    if "score" not in entry or "entity_fold" not in entry:
        raise InputError("classes of unequal size are compared by their AUC, and a result has no scores for it")
    score = entry["score"].broadcast_like(right).transpose(*order).values.reshape(tested.shape)
    fold = entry["entity_fold"].values
    rows = zip(score, positive, tested, strict=True)
    return np.stack([fold_placements(s, p, w, fold) * w for s, p, w in rows])


def _interval(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    bounds = values.quantile(TAILS, "draw", skipna=False)
    return bounds.isel(quantile=0, drop=True), bounds.isel(quantile=1, drop=True)
