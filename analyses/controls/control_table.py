"""Arithmetic of the control table: effects of several results side by side, with paired intervals over entities.

The function that users call is `control_table` in controls.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from stratalens.analyses.stats.bootstrap import bootstrap_weights
from stratalens.store.errors import InputError

PLACES = ("stage", "layer", "token", "pair")


Doubles = npt.NDArray[np.float64]


def tabulate(results: Mapping[str, xr.Dataset], reference: str, resamples: int, level: float = 0.95) -> xr.Dataset:
    """See `stratalens.analyses.controls.controls.control_table`."""
    rows = _rows(results)
    base = rows[reference] if reference in rows else rows[f"{reference}: all"]
    chance = xr.ones_like(base["accuracy_mean"]) / 2 if "chance" not in base else base["chance"]
    units, strata = _units(base)
    draws = bootstrap_weights(strata, resamples, 0)
    base_draws = _resampled(base, units, draws)
    estimate = base["accuracy_mean"]
    floor = float(np.asarray(chance).min()) if chance.ndim == 0 else chance
    tails = [(1 - level) / 2, (1 + level) / 2]
    made = []
    for name, row in rows.items():
        missing = [d for d in estimate.dims if d in PLACES and d not in row["accuracy_mean"].dims]
        if row.sizes["pair"] != base.sizes["pair"] or (row["pair"].values != base["pair"].values).any():
            raise InputError(
                f"{name!r} has other pairs than {reference!r} ({', '.join(map(str, row['pair'].values[:6]))}); run "
                f"both with the same pairs="
            )
        accuracy = row["accuracy_mean"].broadcast_like(estimate) if missing else row["accuracy_mean"]
        own = _resampled(row, units, draws).broadcast_like(base_draws)
        accuracy = accuracy.transpose(*estimate.dims)
        effect = accuracy - floor
        left = effect / (estimate - floor).where(estimate > floor)
        # Resamples in which the reference itself is at chance count as a tiny effect, not as an infinite share.
        left_draws = (own - floor) / (base_draws - floor).clip(min=1e-3)
        # A share of nothing is no number: only where the reference is above chance itself.
        real = base["accuracy_low"] > floor
        lost_low, lost_high = _interval(base_draws - own, tails)
        left_low, left_high = _interval(left_draws, tails)
        low, high = _interval(own, tails)
        made.append(
            xr.Dataset(
                {
                    "accuracy": accuracy,
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "effect": effect,
                    "lost": estimate - accuracy,
                    "lost_low": lost_low,
                    "lost_high": lost_high,
                    "left": left.where(real),
                    "left_low": left_low.where(real),
                    "left_high": left_high.where(real),
                }
            ).drop_vars(["sample"], errors="ignore")
        )
    names = xr.DataArray(np.array(list(rows), dtype=object), dims="control", name="control")
    table = xr.concat(made, names, coords="minimal", compat="override", join="exact")
    keep = {k: v for k, v in base.attrs.items() if k in ("site", "hook", "target", "model", "folds", "seed", "C")}
    return table.assign_attrs(keep | {"reference": reference, "resamples": resamples})


def _rows(results: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """One Dataset for each row of the table: samples of a matched probe, and the untrained stage, by themselves."""
    rows: dict[str, xr.Dataset] = {}
    for name, result in results.items():
        lacking = [v for v in ("accuracy_mean", "right", "tested") if v not in result]
        if lacking:
            raise InputError(
                f"{name!r} has no {lacking[0]!r}: only results of probe, statistics_probe, matched_probe, "
                f"residual_probe and baseline_probe for two classes can stand in the table"
            )
        if "sample" in result["accuracy_mean"].dims:
            for sample in result["sample"].values:
                rows[f"{name}: {sample}"] = result.sel(sample=sample, drop=True)
        else:
            rows[name] = result
    first = next(iter(rows.values()))
    untrained = _untrained(first)
    if untrained is not None:
        rows["untrained_stage"] = first.isel(stage=untrained, drop=True)
    return rows


def _untrained(result: xr.Dataset) -> int | None:
    if "pair_first" not in result.coords:
        return None
    return untrained_rows(
        {*map(str, result["pair_first"].values), *map(str, result["pair_second"].values)} - {"rest"}, result
    )


def untrained_rows(groups: Iterable[str], data: xr.Dataset | xr.DataArray) -> int | None:
    """Index of a stage from before any of these groups was trained on; None where there is none."""
    if "stage" not in data.dims or "stage_order" not in data.coords:
        return None
    order = dict(zip(map(str, data["stage"].values), data["stage_order"].values.tolist(), strict=True))
    trained = [order[n] for n in groups if n in order]
    earliest = int(np.argmin(data["stage_order"].values))
    return earliest if trained and data["stage_order"].values[earliest] < min(trained) else None


def _units(result: xr.Dataset) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Entity of each row, and a stratum of each entity: which classes of which pairs it was tested in."""
    n = result.sizes["entity"]
    codes = np.arange(n)
    if "entity_id" in result.coords:
        codes = np.asarray(pd.factorize(np.asarray(result["entity_id"].values).astype(object))[0])
    tested = (result["tested"] > 0).any([d for d in result["tested"].dims if d not in ("pair", "entity")])
    member = tested.transpose("entity", "pair").values
    labels = result.attrs.get("target", "")
    if labels in result.coords:
        group = pd.factorize(np.asarray(result[labels].values).astype(object))[0]
        member = np.concatenate([member, group[:, None] == np.arange(group.max(initial=0) + 1)], axis=1)
    present = np.zeros((int(codes.max()) + 1, member.shape[1]), dtype=bool)
    np.logical_or.at(present, codes, member)
    _, strata = np.unique(present, axis=0, return_inverse=True)
    return codes.astype(np.int64), np.asarray(strata, dtype=np.int64).ravel()


def _resampled(row: xr.Dataset, units: npt.NDArray[np.int64], draws: npt.NDArray[np.float32]) -> xr.DataArray:
    """Accuracy in every resample, dims (draw, places)."""
    if row.sizes["entity"] != len(units):
        raise InputError("the results are of different entities; run all controls on the same rows")
    right, tested = (row[v].transpose("entity", ...) for v in ("right", "tested"))
    right, tested = xr.broadcast(right, tested)
    places = [d for d in right.dims if d != "entity"]
    right, tested = (v.transpose("entity", *places) for v in (right, tested))
    shape = [right.sizes[d] for d in places]
    sums = []
    for v in (right, tested):
        flat = v.values.reshape(len(units), -1).astype(np.float32)
        total = np.zeros((draws.shape[1], flat.shape[1]), dtype=np.float32)
        np.add.at(total, units, flat)
        sums.append(draws @ total)
    value = np.full(sums[0].shape, np.nan)
    np.divide(sums[0], sums[1], out=value, where=sums[1] > 0)
    coords = {d: right.coords[d] for d in places if d in right.coords}
    return xr.DataArray(value.reshape(len(draws), *shape), dims=("draw", *places), coords=coords)


def _interval(values: xr.DataArray, tails: list[float]) -> tuple[xr.DataArray, xr.DataArray]:
    found = values.quantile(tails, "draw", skipna=False)
    return found.isel(quantile=0, drop=True), found.isel(quantile=1, drop=True)
