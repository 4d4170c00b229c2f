"""Table of the effect that each control leaves, with paired intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from stratalens.analyses.data.array_types import Codes
from stratalens.analyses.stats.bootstrap import bootstrap_weights
from stratalens.store.errors import InputError, suggest

PLACES = ("stage", "layer", "token", "pair")
TAILS = (0.025, 0.975)


def control_table(results: Mapping[str, xr.Dataset], reference: str = "probe", resamples: int = 1000) -> xr.Dataset:
    """Compute how much of the effect each control leaves.

    The effect is accuracy above chance: one half, or the share of the larger class where classes are unequal. Both
    sides of a difference use the same resamples of entities, so that the variation they share cancels.

    Args:
        results: from `controls`, or any mapping of results of probe, statistics_probe, matched_probe, residual_probe
            and baseline_probe over the same entities and pairs.
        reference: name of the result with the effect.
        resamples: of the cluster bootstrap.

    Returns:
        Dataset with one entry of `control` for each result, without the dims among (stage, layer, token) that the
        results do not have:

        - accuracy (control, stage, layer, token, pair): float64.
        - accuracy_low, accuracy_high (control, stage, layer, token, pair): float64, 95 % interval.
        - effect (control, stage, layer, token, pair): float64, accuracy - chance.
        - lost (control, stage, layer, token, pair): float64, accuracy of the reference - accuracy.
        - lost_low, lost_high (control, stage, layer, token, pair): float64, 95 % interval.
        - left (control, stage, layer, token, pair): float64, effect / effect of the reference. NaN where the
          interval of the reference reaches chance.
        - left_low, left_high (control, stage, layer, token, pair): float64, 95 % interval.

        A matched probe has one entry for each of its samples. If the first result has an untrained stage (stage_order
        below that of every group), the entry "untrained_stage" repeats that stage over the others.

    Raises:
        InputError: an unknown reference, or results of different entities or pairs.
    """
    if reference not in results:
        raise InputError(f"reference={reference!r} is not among the results: {suggest(reference, results)}")
    entries = _entries(results)
    base = entries[reference] if reference in entries else entries[f"{reference}: all"]
    estimate = base["accuracy_mean"]
    chance = base.get("chance", 0.5)
    if isinstance(chance, xr.DataArray) and chance.ndim == 0:
        chance = float(chance)
    units, strata = _units(base)
    draws = bootstrap_weights(strata, resamples, 0)
    base_draws = _resample_accuracy(base, units, draws)
    above_chance = base["accuracy_low"] > chance
    tables = []
    for name, entry in entries.items():
        if entry.sizes["pair"] != base.sizes["pair"] or (entry["pair"].values != base["pair"].values).any():
            raise InputError(
                f"{name!r} has other pairs than {reference!r} ({', '.join(map(str, entry['pair'].values[:6]))}); run "
                f"both with the same pairs="
            )
        missing = [d for d in estimate.dims if d in PLACES and d not in entry["accuracy_mean"].dims]
        accuracy = entry["accuracy_mean"].broadcast_like(estimate) if missing else entry["accuracy_mean"]
        accuracy = accuracy.transpose(*estimate.dims)
        entry_draws = _resample_accuracy(entry, units, draws).broadcast_like(base_draws)
        effect = accuracy - chance
        # A resample with the reference at chance counts as a tiny effect, not as an infinite share.
        left_draws = (entry_draws - chance) / (base_draws - chance).clip(min=1e-3)
        low, high = _interval(entry_draws)
        lost_low, lost_high = _interval(base_draws - entry_draws)
        left_low, left_high = _interval(left_draws)
        table = {
            "accuracy": accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "effect": effect,
            "lost": estimate - accuracy,
            "lost_low": lost_low,
            "lost_high": lost_high,
            "left": (effect / (estimate - chance).where(estimate > chance)).where(above_chance),
            "left_low": left_low.where(above_chance),
            "left_high": left_high.where(above_chance),
        }
        tables.append(xr.Dataset(table).drop_vars(["sample"], errors="ignore"))
    names = xr.DataArray(np.array(list(entries), dtype=object), dims="control", name="control")
    out = xr.concat(tables, names, coords="minimal", compat="override", join="exact")
    attrs = {k: v for k, v in base.attrs.items() if k in ("site", "hook", "target", "model", "folds", "seed", "C")}
    return out.assign_attrs(attrs | {"reference": reference, "resamples": resamples})


def _entries(results: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Split results into the entries of the table: the samples of a matched probe, and the untrained stage."""
    entries: dict[str, xr.Dataset] = {}
    for name, result in results.items():
        missing = [v for v in ("accuracy_mean", "right", "tested") if v not in result]
        if missing:
            raise InputError(
                f"{name!r} has no {missing[0]!r}: the table takes results of probe, statistics_probe, matched_probe, "
                f"residual_probe and baseline_probe for two classes"
            )
        if "sample" in result["accuracy_mean"].dims:
            for sample in result["sample"].values:
                entries[f"{name}: {sample}"] = result.sel(sample=sample, drop=True)
        else:
            entries[name] = result
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


def _resample_accuracy(entry: xr.Dataset, units: Codes, draws: npt.NDArray[np.float32]) -> xr.DataArray:
    """Compute the accuracy in every resample, with dims (draw, places)."""
    if entry.sizes["entity"] != len(units):
        raise InputError("the results are of different entities; run all controls on the same rows")
    right, tested = xr.broadcast(entry["right"], entry["tested"])
    places = [d for d in right.dims if d != "entity"]
    sums = []
    for counts in (right, tested):
        flat = counts.transpose("entity", *places).values.reshape(len(units), -1).astype(np.float32)
        by_unit = np.zeros((draws.shape[1], flat.shape[1]), dtype=np.float32)
        np.add.at(by_unit, units, flat)
        sums.append(draws @ by_unit)
    accuracy = np.full(sums[0].shape, np.nan)
    np.divide(sums[0], sums[1], out=accuracy, where=sums[1] > 0)
    coords = {d: right.coords[d] for d in places if d in right.coords}
    shape = (len(draws), *(right.sizes[d] for d in places))
    return xr.DataArray(accuracy.reshape(shape), dims=("draw", *places), coords=coords)


def _interval(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    bounds = values.quantile(TAILS, "draw", skipna=False)
    return bounds.isel(quantile=0, drop=True), bounds.isel(quantile=1, drop=True)
