"""Sentences of the figures about directions, drift, statistics and losses (order and probes: sentences.py)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from stratalens.analyses.directions import drift
from stratalens.analyses.plots.drift import stage_steps
from stratalens.analyses.plots.estimates import extreme_pair
from stratalens.analyses.plots.palette import group_names
from stratalens.analyses.plots.picture import Picture, Place, lookup, plain, values_of
from stratalens.analyses.plots.stages import not_yet
from stratalens.analyses.reporting import sentences as say


def loss_sentence(losses: pd.DataFrame) -> say.Sentence:
    """How far the training loss falls within a stage."""
    parts = losses.groupby("stage", sort=False)["loss"]
    first, last = parts.first(), parts.last()
    text = (
        f"Over {len(first)} stages and {len(losses)} logged steps the training loss falls within a stage from "
        f"{first.mean():z.2f} to {last.mean():z.2f} nats per token on average (last stage: {last.iloc[-1]:z.2f})."
    )
    return lambda place: text


def spread_sentence(quantiles: xr.Dataset, picture: Picture) -> say.Sentence:
    """Which statistic differs most between groups, and by how much."""
    names = [plain(n) for n in values_of(quantiles, "statistic")]
    read = lookup(quantiles["spread"], ("statistic",))

    def sentence(place: Place) -> str:
        spread = read(place)
        if not np.isfinite(spread).any():
            return f"At {say.where(picture, place)} no statistic is known."
        most = int(np.nanargmax(spread))
        size = "small" if spread[most] < 0.2 else "moderate" if spread[most] < 0.8 else "large"
        return (
            f"At {say.where(picture, place)}, {names[most]} differs most between groups: their medians lie within "
            f"{spread[most]:z.2f} standard deviations of single rows, a {size} difference; no test is made here."
        )

    return sentence


def rank_with_order(scores: xr.DataArray) -> xr.DataArray:
    """Spearman correlation of scores with the order of groups; NaN below three groups or without spread."""
    ranks = scores.copy(data=rankdata(scores.values, axis=scores.get_axis_num("group"), nan_policy="propagate"))
    order = xr.DataArray(np.arange(scores.sizes["group"], dtype=float), dims="group", coords={"group": scores["group"]})
    usable = (ranks.std("group") > 0) & (scores.sizes["group"] >= 3)
    return xr.corr(ranks.where(usable), order, dim="group")


def cosine_sentence(cosines: xr.DataArray, picture: Picture) -> say.Sentence:
    """Mean cosine between directions that share no group, beside what unrelated directions give."""
    over = next(str(d) for d in cosines.dims if str(d).endswith("_other")).removesuffix("_other")
    labels = [str(v) for v in values_of(cosines, over)]
    share = np.zeros((len(labels), len(labels)), dtype=bool)
    if over == "pair" and "pair_first" in cosines.coords:
        ends = list(zip(cosines["pair_first"].values, cosines["pair_second"].values, strict=True))
        share = np.array([[bool(set(a) & set(b)) for b in ends] for a in ends])
    read = lookup(cosines, (over, f"{over}_other"))
    upper = np.triu(np.ones_like(share), 1).astype(bool)

    spread = cosines.attrs.get("random_sd")
    null = "0 is expected of unrelated directions"
    null += f", single ones within ±{1.96 * float(spread):z.2f}" if spread else ""

    def sentence(place: Place) -> str:
        value = read(place)
        use = upper & ~share if (upper & ~share).any() else upper
        if not (use & np.isfinite(value)).any():
            return f"At {say.where(picture, place)} there are no two directions to compare."
        i, j = np.unravel_index(int(np.nanargmax(np.where(use, np.abs(value), np.nan))), value.shape)
        kind = f"{over}s that share no group" if share.any() else f"different {over}s"
        mean = float(np.nanmean(value[use]))
        words = (
            "no common direction"
            if abs(mean) < 0.1
            else "a weak common direction"
            if abs(mean) < 0.3
            else "a common direction"
        )
        return (
            f"At {say.where(picture, place)}, the mean cosine between {kind} is {mean:z.2f} "
            f"({int(use.sum())} comparisons; {null}): {words}; "
            f"the largest is {value[i, j]:z.2f}, {plain(labels[i])} with {plain(labels[j])}."
        )

    return sentence


def turn_sentence(probes: xr.Dataset, picture: Picture) -> say.Sentence:
    """How near the first-versus-last direction of earlier stages is to that of the last one."""
    names = values_of(probes, "stage")
    present = probes["stage"].values.tolist()
    cosine = drift(probes.isel(stage=[present.index(s) for s in names]), "stage", "last")["cosine"]
    pair = extreme_pair(probes)
    if "pair" in cosine.dims:
        pairs = [str(p) for p in values_of(probes, "pair")]
        cosine = cosine.isel(pair=pairs.index(pair)) if pair else cosine.mean("pair")
    read = lookup(cosine, ("stage",))
    known = {"stage", "layer", "token", "pair", "fold"}
    width = int(np.prod([probes["coef"].sizes[d] for d in probes["coef"].dims if d not in known]))
    band = 1.96 * width**-0.5

    def sentence(place: Place) -> str:
        value = read(place)[:-1]
        if not np.isfinite(value).any():
            return f"At {say.where(picture, place)} no direction is known at an earlier stage."
        best = int(np.nanargmax(value))
        beyond = int((value > band).sum())
        who = f"the direction of {plain(pair)}" if pair else "the mean direction"
        return (
            f"At {say.where(picture, place)}, {who} at earlier stages has a cosine of {value[0]:z.2f} "
            f"({plain(names[0])}) to {value[-1]:z.2f} ({plain(names[-2])}) with that at {plain(names[-1])}, the "
            f"largest is {value[best]:z.2f} at {plain(names[best])}; unrelated directions lie within ±{band:z.2f}, "
            f"{beyond} of {len(value)} stages above that."
        )

    return sentence


def score_sentence(scores: xr.DataArray, picture: Picture) -> say.Sentence:
    """Whether the groups lie in training order along one pair's probe."""
    groups, read = group_names(scores), lookup(rank_with_order(scores))

    def sentence(place: Place) -> str:
        pair = plain({**picture.fixed, **place}.get("pair", "the probe"))
        rank = float(read(place))
        if not np.isfinite(rank):
            return f"At {say.where(picture, place)}, pair {pair}: no order to speak of."
        words = (
            "in training order"
            if rank > 0.999
            else "mostly in training order"
            if rank > 0.6
            else "not in training order"
        )
        return (
            f"At {say.where(picture, place)}, along the probe of {pair} the {len(groups)} groups are {words} "
            f"(rank correlation {rank:z.2f}; two of the groups were used to fit it)."
        )

    return sentence


def drift_sentence(centroids: xr.Dataset, picture: Picture) -> say.Sentence:
    """How far centroids move at their own stage and at the others."""
    groups, stages = group_names(centroids), [str(s) for s in values_of(centroids, "stage")]
    steps = stage_steps(centroids) if len(stages) > 1 and "stage" in centroids["centroid"].dims else None
    if steps is None:
        return lambda place: "Drift needs at least two recorded stages."
    read = lookup(steps, ("group", "stage"))
    own = np.array([[s == g for s in stages[1:]] for g in groups])

    def sentence(place: Place) -> str:
        value = read(place)
        if not own.any():
            return (
                f"At {say.where(picture, place)} a centroid moves by {np.nanmean(value):z.3f} of the mean "
                "norm at a stage."
            )
        mine, other = float(np.nanmean(value[own])), float(np.nanmean(value[~own]))
        words = "more" if mine > 1.05 * other else "less" if mine < 0.95 * other else "about as much"
        return (
            f"At {say.where(picture, place)}, a group's centroid moves by {mine:z.3f} of the mean norm "
            f"at its own stage and by "
            f"{other:z.3f} at the others: {words} when it is trained on; no test is made here."
        )

    return sentence


def forgetting_sentence(table: xr.Dataset) -> say.Sentence:
    """Describe a statistic of groups before they are trained on, right after, and the longest time since."""
    since = table["exposure"].transpose("group", "stage").values
    value = table["value"].transpose("group", "stage").values
    name = plain(table.attrs.get("statistic", "the statistic"))
    ages = [age for age in np.unique(since) if age >= 0]
    if not ages:
        return lambda place: f"No stage that trained on a group is recorded, so nothing can be said of {name}."
    words = [f"{np.nanmean(value[since == 0]):z.2f} in groups just trained on"] if 0 in ages else []
    if ages[-1] > 0:
        words.append(f"{np.nanmean(value[since == ages[-1]]):z.2f} after {ages[-1]:g} further stages")
    to_come = not_yet(table)
    if to_come.any():
        words.append(f"{np.nanmean(value[to_come]):z.2f} before training on them")
    untaught = (since < 0) & ~to_come
    if untaught.any():
        words.append(f"{np.nanmean(value[untaught]):z.2f} in the untrained model")
    text = f"The mean {name} is " + ", ".join(words) + "."
    return lambda place: text
