"""Effects of interventions: mean differences with intervals over entities, null, slope over doses, and a verdict."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array, Doubles, Mask
from stratalens.analyses.stats.bootstrap import LEVEL, cluster_bootstrap

_PLACE = ("stage", "layer", "direction")


def summarise_effects(
    outcome: xr.DataArray,
    clean: xr.DataArray,
    null_outcome: Doubles,
    *,
    units: Array,
    scored: Mask | None = None,
    attrs: Mapping[str, Any],
    price: xr.DataArray | None = None,
) -> xr.Dataset:
    """Compute the effects of interventions on an outcome.

    Args:
        outcome: dims (stage, layer, direction, dose, entity), without layer for a site outside the blocks; float64.
        clean: dims (stage, entity), the outcome without an intervention.
        null_outcome: float64 array of shape (stages, layers, random, doses, rows), the outcome under random directions.
        units: int array of shape (rows,), entity of each row.
        scored: bool array of shape (rows,), rows that count; None for all.
        attrs: `outcome`, `kind`, `site`, `positions` and `null_kind` in words, which the verdict names.
        price: dims (stage, layer, direction, dose), KL divergence on unrelated prompts; None for none.

    Returns:
        Dataset with outcome and clean, and over the places (stage, layer, direction):

        - effect, effect_low, effect_high, effect_p (..., dose): mean of intervened minus clean over the rows, its 95 %
          interval over entities, and the share of random directions (counting this one) with an effect at least as
          large in size.
        - null (stage, layer, dose, random): effect of each random direction.
        - slope, slope_low, slope_high, slope_p (...): least squares slope of the effect over the dose, through zero;
          null_slope (stage, layer, random). Only with several doses.
        - p_max (...): p of the largest effect in size over the doses, controlled over stages, layers and doses.

        The attribute `verdict` has one sentence for each direction.
    """
    has_layer = "layer" in outcome.dims
    full = outcome if has_layer else outcome.expand_dims(layer=[-1], axis=1)
    rows = np.ones(full.sizes["entity"], bool) if scored is None else scored
    difference = full.values[..., rows] - clean.values[:, None, None, None, rows]
    null_difference = null_outcome[..., rows] - clean.values[:, None, None, None, rows]
    own = np.asarray(units)[rows]
    doses = full["dose"].values.astype(float)
    place = (*_PLACE, "dose")
    values: dict[str, tuple[tuple[str, ...], Array]] = {}

    effect = difference.mean(axis=-1)
    null = null_difference.mean(axis=-1).swapaxes(2, 3)  # (stage, layer, dose, random)
    low, high = _interval(difference, own)
    values |= {"effect": (place, effect), "effect_low": (place, low), "effect_high": (place, high)}
    values["null"] = (("stage", "layer", "dose", "random"), null)
    if null.shape[-1]:
        values["effect_p"] = (place, _p(effect, null[:, :, None]))
        values["p_max"] = (_PLACE, _p_max(effect, null))
    moved = doses != 0
    if len(doses) > 1 and moved.any():
        weight = doses / (doses**2).sum()
        slopes = np.einsum("slvdn,d->slvn", difference, weight)
        null_slopes = np.einsum("slrdn,d->slrn", null_difference, weight).mean(axis=-1)
        slope = slopes.mean(axis=-1)
        low, high = _interval(slopes, own)
        values |= {"slope": (_PLACE, slope), "slope_low": (_PLACE, low), "slope_high": (_PLACE, high)}
        values["null_slope"] = (("stage", "layer", "random"), null_slopes)
        if null.shape[-1]:
            values["slope_p"] = (_PLACE, _p(slope, null_slopes[:, :, None]))
    coords: dict[Hashable, Any] = {**full.coords, "random": np.arange(null.shape[-1])}
    result = xr.Dataset({"outcome": full, "clean": clean, **values}, coords=coords)
    if not has_layer:
        result = result.squeeze("layer", drop=True)
    if price is not None:
        result["kl"] = price.drop_vars(list(price.coords))
    result = result.assign_attrs(attrs)
    return result.assign_attrs(verdict="\n".join(verdicts(result, len(np.unique(own)))))


def _interval(rows: Doubles, units: Array) -> tuple[Array, Array]:
    """Interval of the mean over the last axis, by bootstrap over entities."""
    return cluster_bootstrap(np.moveaxis(rows, -1, 0), units)


def _p(effect: Doubles, null: Doubles) -> Doubles:
    """Share of random directions, counting the tested one, whose effect is at least as large in size."""
    size, drawn = np.abs(effect), np.abs(null)
    at_least = (drawn >= size[..., None] * (1 - 1e-9)) | np.isnan(drawn)
    p = (1 + at_least.sum(axis=-1)) / (1 + drawn.shape[-1])
    return np.where(np.isnan(size), np.nan, p)


def _p_max(effect: Doubles, null: Doubles) -> Doubles:
    """P of the largest effect in size over the doses, controlled over stages, layers and doses.

    The effect is compared with the largest effect of each random direction at any place and dose (Westfall and Young,
    1993). Effects have the unit of the outcome at every place, so that they are not studentised.
    """
    size, drawn = np.abs(effect), np.abs(null)
    drawn = np.where(np.isnan(drawn).all(axis=-1, keepdims=True), -np.inf, drawn)  # nothing was tested there
    largest = np.where(np.isnan(drawn), np.inf, drawn).max(axis=(0, 1, 2))
    at_least = largest >= size[..., None] * (1 - 1e-9)
    p = np.where(np.isnan(size), np.inf, (1 + at_least.sum(axis=-1)) / (1 + len(largest))).min(axis=-1)
    return np.where(np.isinf(p), np.nan, p)


def verdicts(result: xr.Dataset, entities: int) -> list[str]:
    """Write one verdict for each direction, at the place and dose with its largest effect.

    Args:
        result: result of `summarise_effects`.
        entities: number of entities that count.
    """
    sentences = []
    for name in result["direction"].values:
        own = result.sel(direction=name)
        size = abs(own["effect"])
        if not bool(np.isfinite(size).any()):
            sentences.append(f"{name!r} was not tested: its length is zero at every place.")
            continue
        best = size.fillna(-np.inf)
        index = np.unravel_index(int(best.values.argmax()), best.shape)
        at = own.isel(dict(zip(best.dims, index, strict=True)))
        sentences.append(_verdict(result, str(name), at, entities))
    return sentences


def _verdict(result: xr.Dataset, name: str, at: xr.Dataset, entities: int) -> str:
    attrs = result.attrs
    effect, low, high = (float(at[v]) for v in ("effect", "effect_low", "effect_high"))
    draws = at.sizes["random"]
    place = [f"site {attrs['site']}"]
    place += [f"layer {int(at.layer)}"] if "layer" in at.coords else []
    place += [f"stage {at.stage.item()}"] if result.sizes["stage"] > 1 else []
    place += [f"dose {float(at.dose):g}"] if attrs["kind"] == "steer" else []
    verb = {"steer": "Steering along", "ablate": "Ablating", "patch": "Interchanging"}[attrs["kind"]]
    numbers = (
        f"{verb} {name!r} ({', '.join(place)}, positions {attrs['positions']}) changes {attrs['outcome']} by "
        f"{effect:.3g} (95 % interval {low:.3g} to {high:.3g}, {entities} entities)"
    )
    if not draws:
        return f"{numbers}; without random directions there is no verdict."
    p, over = float(at["effect_p"]), float(at["p_max"])
    places = int(np.isfinite(result["effect"].sel(direction=name)).sum())
    largest = float(np.abs(at["null"]).max())
    null = (
        f"{draws} random directions {attrs['null_kind']} change it by up to {largest:.3g} (p {p:.2g}"
        f"{f'; p {over:.2g} over all {places} places and doses' if places > 1 else ''})"
    )
    alpha = 1 - LEVEL
    outside = low > 0 or high < 0
    if over <= alpha and outside:
        end = "The outcome depends on this direction more than on random ones"
    elif draws < 1 / alpha - 1:
        end = f"{draws} random directions cannot show p <= {alpha:.2g}; pass random=20 or more"
    elif p <= alpha and outside:
        end = "This holds at this place alone, not after a search over all places; choose the place beforehand"
    else:
        end = "No effect beyond that of random directions was shown"
    price = (
        f"; KL on unrelated prompts {float(at['kl']):.2g} nats" if "kl" in at and np.isfinite(float(at["kl"])) else ""
    )
    return f"{numbers}; {null}{price}. {end}."
