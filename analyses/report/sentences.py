"""What each figure shows, in one sentence made from its numbers: against the null, weak effects said so."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.directions.directions import drift, stage_steps
from stratalens.analyses.plots.probes import common_pairs
from stratalens.analyses.plots.spec import SLIDER_DIMS, FigureSpec, SliderValues, lookup, plain, values_of
from stratalens.analyses.plots.stages import not_yet
from stratalens.analyses.stats.estimates import PARTS, differs_from_null, estimate, extreme_pair, pair_mean

Sentence = Callable[[SliderValues], str]


OWN, ALONE = "activations", "norms, losses, confidence alone"


def where(picture: FigureSpec, place: SliderValues) -> str:
    """Say the place in words: "stage s6, layer 12, token last"."""
    every = {**picture.fixed, **place}
    return ", ".join(f"{dim} {plain(every[dim])}" for dim in SLIDER_DIMS if dim in every) or "the only recorded place"


def reader(result: xr.Dataset) -> Callable[[SliderValues], dict[str, float]]:
    """Return a function that gives value, low, high, null and p at one place."""
    read = {k: lookup(result[k]) for k in PARTS}
    return lambda place: {k: float(read[k](place)) for k in PARTS}


def interval(n: Mapping[str, float], digits: int = 2) -> str:
    """Value with its interval: "0.83 (95 % 0.78 to 0.88)"."""
    text = f"{n['value']:z.{digits}f}"
    if np.isfinite(n["low"]) and np.isfinite(n["high"]):
        text += f" (95 % {n['low']:z.{digits}f} to {n['high']:z.{digits}f})"
    return text


def p_text(p: float, permutations: int | None = None) -> str:
    """Permutation p in words; the smallest one that the permutations allow is said to be a bound."""
    if not np.isfinite(p):
        return ""
    floor = 1 / (permutations + 1) if permutations else 0.0
    if permutations and p <= floor * 1.0001:
        return f", p ≤ {floor:.2g}"
    return f", p = {p:.2g}"


def size_words(n: Mapping[str, float]) -> str:
    """How large an accuracy is beside its null, in words.

    >>> base = {"low": 0.8, "high": 0.9, "null": 0.5, "p": float("nan")}
    >>> size_words(base | {"value": 0.85}), size_words(base | {"value": 0.55, "low": 0.45})
    ('far above chance', 'not told from chance')
    """
    if not np.isfinite(n["value"]):
        return "not known"
    if not differs_from_null(n["value"], n["low"], n["high"], n["null"], n["p"]):
        return "not told from chance"
    gap = n["value"] - n["null"]
    if gap < 0:
        return "below chance"
    for least, words in ((0.25, "far above chance"), (0.1, "clearly above chance"), (0.05, "a little above chance")):
        if gap >= least:
            return words
    return "above chance, but by very little"


def path_sentence(projection: xr.Dataset, picture: FigureSpec) -> Sentence:
    """Order of the centroids along w1: rank correlation, straightness, against permuted labels."""
    permutations = projection.attrs.get("permutations")
    count = len(group_names(projection))

    if "rank_correlation" not in projection:
        return lambda place: "The order was not measured: this projection holds no rank correlation."
    read_rank = reader(estimate(projection, "rank_correlation", 0.0))
    read_line = reader(estimate(projection, "r2", 0.0)) if "r2" in projection else None

    def say(place: SliderValues) -> str:
        text = f"At {where(picture, place)}, "
        rank = read_rank(place)
        told = differs_from_null(*(rank[k] for k in PARTS))
        verdict = "follow training order" if told and rank["value"] > 0 else "do not show training order"
        if told and 0 < rank["value"] < 0.6:
            verdict = "follow training order weakly"
        text += (
            f"the {count} centroids of held-out entities {verdict}: rank correlation {interval(rank)}, "
            f"{rank['null']:z.2f} with permuted labels{p_text(rank['p'], permutations)}"
        )
        if read_line is not None:
            line = read_line(place)
            straight = differs_from_null(*(line[k] for k in PARTS))
            text += (
                f"; a straight line explains {interval(line)} of their spread, {line['null']:z.2f} with permuted labels"
            )
            text += f"{p_text(line['p'], permutations)}" + (
                "" if straight else ", so straightness is not told from chance"
            )
        return text + "."

    return say


def map_sentence(scalar: xr.DataArray, picture: FigureSpec, label: str, null: float | None) -> Sentence:
    """Largest and smallest cell of a map, and that the largest was found by looking."""
    dims = [str(d) for d in scalar.dims if d not in picture.sliders]
    _, untrained = result_order(scalar)
    names = [values_of(scalar.drop_vars("stage_order", errors="ignore"), d) for d in dims]
    read = lookup(scalar, dims)

    def name(here: np.ndarray, i: int) -> str:
        index = np.unravel_index(i, here.shape)
        spots = [f"{d} {plain(n[j])}" for d, n, j in zip(dims, names, index, strict=True) if len(n) > 1]
        return ", ".join(spots) or "the only place"

    def before_training(here: np.ndarray) -> str:
        if "stage" not in dims or not untrained:
            return ""
        stages = [str(v) for v in names[dims.index("stage")]]
        chosen = np.take(here, [stages.index(s) for s in untrained if s in stages], axis=dims.index("stage"))
        if not np.isfinite(chosen).any() or chosen.size == here.size:
            return ""
        return f", and before training it is {np.nanmin(chosen):z.2f} to {np.nanmax(chosen):z.2f}"

    def say(place: SliderValues) -> str:
        here = read(place)
        if not np.isfinite(here).any():
            return f"There is no finite {label} here."
        best, worst = int(np.nanargmax(here)), int(np.nanargmin(here))
        fixed = ", ".join(f"{d} {plain(v)}" for d, v in place.items())
        text = (
            f"{'At ' + fixed + ': ' if fixed else ''}{label} is largest at {name(here, best)} ({here.flat[best]:z.2f})"
        )
        text += f" and smallest at {name(here, worst)} ({here.flat[worst]:z.2f})"
        if null is not None:
            text += f"; {null:g} is expected without any signal{before_training(here)}"
        return text + f". The largest of {here.size} cells is picked by looking and so is flattered."

    return say


def matrix_sentence(probes: xr.Dataset, picture: FigureSpec) -> Sentence:
    """How many pairs are told apart, which best, which worst."""
    result = estimate(probes)
    pairs = [plain(p) for p in values_of(probes, "pair")]
    read = {k: lookup(result[k], ("pair",) if "pair" in result.dims else ()) for k in PARTS}

    def say(place: SliderValues) -> str:
        got = {k: np.atleast_1d(read[k](place)) for k in PARTS}
        told = np.array([differs_from_null(*(float(got[k][i]) for k in PARTS)) for i in range(len(pairs))])
        above = told & (got["value"] > got["null"])
        below = int((told & ~above).sum())
        if not np.isfinite(got["value"]).any():
            return f"At {where(picture, place)} no pair has an accuracy."
        best, worst = int(np.nanargmax(got["value"])), int(np.nanargmin(got["value"]))
        if len(pairs) == 1:
            only = {k: float(v[0]) for k, v in got.items()}
            return (
                f"At {where(picture, place)}, {pairs[0]}: accuracy {interval(only)}, {size_words(only)} "
                f"({only['null']:z.2f})."
            )
        by_chance = 0.05 * len(pairs)
        return (
            f"At {where(picture, place)}, {int(above.sum())} of {len(pairs)} pairs are above chance one by one"
            f"{f' and {below} below it' if below else ''} "
            f"(about {by_chance:z.1f} would be told from it by chance alone); {pairs[best]} best with "
            f"{interval({k: float(v[best]) for k, v in got.items()})}, {pairs[worst]} worst with "
            f"{interval({k: float(v[worst]) for k, v in got.items()})}; chance is {np.nanmean(got['null']):z.2f}."
        )

    return say


def sweep_sentence(probes: xr.Dataset, picture: FigureSpec) -> Sentence:
    """Accuracy of the first-versus-last pair at the first and at the deepest layer, and the mean of pairs."""
    result, mean = estimate(probes), pair_mean(probes)
    pair = extreme_pair(probes)
    single = (
        result.isel(pair=[str(p) for p in values_of(probes, "pair")].index(pair))
        if pair and "pair" in result.dims
        else mean
    )
    layers = values_of(probes, "layer")
    read_single, read_mean = reader(single), reader(mean)

    def say(place: SliderValues) -> str:
        first = read_single({**place, "layer": layers[0]})
        last = read_single({**place, "layer": layers[-1]})
        every = read_mean({**place, "layer": layers[-1]})
        spot = ", ".join(f"{d} {plain(v)}" for d, v in {**picture.fixed, **place}.items() if d != "layer")
        who = plain(pair) if pair else "the groups"
        text = (
            f"At {spot or 'the only place'}, {who}: accuracy {interval(last)} at layer {layers[-1]}, "
            f"{size_words(last)} ({last['null']:z.2f})"
        )
        if len(layers) > 1:
            text += f"; {interval(first)} at layer {layers[0]}, {size_words(first)}"
        if pair and result.sizes.get("pair", 1) > 1:
            text += f". The mean of all pairs at layer {layers[-1]} is {interval(every)}, {size_words(every)}"
        return text + "."

    return say


def control_sentence(rows: Mapping[str, xr.Dataset], picture: FigureSpec) -> Sentence:
    """What is left of the accuracy under each control, in the order of the figure."""
    narrowed = common_pairs(rows)
    readers = {label: reader(pair_mean(data)) for label, data in narrowed.items()}
    pairs = max((values_of(data, "pair") for data in narrowed.values()), key=len)
    what = f"accuracy of {plain(pairs[0])}" if len(pairs) == 1 else f"mean accuracy over {len(pairs)} pairs"

    def say(place: SliderValues) -> str:
        here = {label: read({**picture.fixed, **place}) for label, read in readers.items()}
        verdict, parts = _verdict(here), []
        for label, n in here.items():
            if verdict and label not in (OWN, ALONE) and np.isfinite(n["value"]):
                continue  # the verdict says what is left there
            known = f" {interval(n)}, {size_words(n)}" if np.isfinite(n["value"]) else ": too few rows for a number"
            parts.append(f"{plain(label)}{known}")
        return f"At {where(picture, place)}, {what}: " + "; ".join(parts) + "." + (f" {verdict}" if verdict else "")

    return say


def _verdict(rows: Mapping[str, Mapping[str, float]]) -> str:
    """What is left of the effect after each control, in points above chance; nothing where a row is not known."""
    own, alone = rows.get(OWN), rows.get(ALONE)
    if own is None or alone is None or not np.isfinite([own["value"], alone["value"]]).all():
        return ""
    if size_words(own) == "not told from chance":
        return "There is no effect here for the controls to explain."
    effect = own["value"] - own["null"]
    gap = alone["value"] - alone["null"]
    if size_words(alone) == "not told from chance":
        start = "Norms, losses and confidence alone do not tell the groups apart"
    elif alone["value"] >= own["value"]:
        start = "Norms, losses and confidence alone tell the groups apart at least as well as the activations do"
    else:
        start = "Norms, losses and confidence alone go part of the way"
    text = f"{start} ({gap:z.2f} above chance; the activations {effect:z.2f})."
    left = [
        _left(
            rows, "matched on them: matched", "among rows matched on them", "matched on them: random subsample", effect
        ),
        _left(rows, "with them regressed out", "with them regressed out", None, effect),
    ]
    told = [words for words in left if words]
    if told:
        text += f" Of the activations' {effect:z.2f} above chance, " + "; ".join(told) + "."
    return text


def _left(rows: Mapping[str, Mapping[str, float]], row: str, where: str, against: str | None, effect: float) -> str:
    """Points above chance that one control leaves, beside those of a sample of the same size where there is one."""
    n = rows.get(row)
    if n is None or not np.isfinite(n["value"]):
        return ""
    left = n["value"] - n["null"]
    text = f"{left:z.2f}"
    if np.isfinite(n["low"]) and np.isfinite(n["high"]):
        text += f" (95 % {n['low'] - n['null']:z.2f} to {n['high'] - n['null']:z.2f})"
    text += f" is left {where}"
    base = rows.get(against) if against else None
    if base is not None and np.isfinite(base["value"]):
        text += f", {base['value'] - base['null']:z.2f} in a random subsample of that size"
    elif effect > 0:
        text += f", {100 * max(left, 0) / effect:z.0f} % of it"
    if size_words(n) == "not told from chance":
        text += ", which is not told from chance"
    return text


def loss_sentence(losses: pd.DataFrame) -> Sentence:
    """How far the training loss falls within a stage."""
    parts = losses.groupby("stage", sort=False)["loss"]
    first, last = parts.first(), parts.last()
    text = (
        f"Over {len(first)} stages and {len(losses)} logged steps the training loss falls within a stage from "
        f"{first.mean():z.2f} to {last.mean():z.2f} nats per token on average (last stage: {last.iloc[-1]:z.2f})."
    )
    return lambda place: text


def spread_sentence(quantiles: xr.Dataset, picture: FigureSpec) -> Sentence:
    """Which statistic differs most between groups, and by how much."""
    names = [plain(n) for n in values_of(quantiles, "statistic")]
    read = lookup(quantiles["spread"], ("statistic",))

    def sentence(place: SliderValues) -> str:
        spread = read(place)
        if not np.isfinite(spread).any():
            return f"At {where(picture, place)} no statistic is known."
        most = int(np.nanargmax(spread))
        size = "small" if spread[most] < 0.2 else "moderate" if spread[most] < 0.8 else "large"
        return (
            f"At {where(picture, place)}, {names[most]} differs most between groups: their medians lie within "
            f"{spread[most]:z.2f} standard deviations of single rows, a {size} difference; no test is made here."
        )

    return sentence


def rank_with_order(scores: xr.DataArray) -> xr.DataArray:
    """Spearman correlation of scores with the order of groups; NaN below three groups or without spread."""
    ranks = scores.copy(data=rankdata(scores.values, axis=scores.get_axis_num("group"), nan_policy="propagate"))
    order = xr.DataArray(np.arange(scores.sizes["group"], dtype=float), dims="group", coords={"group": scores["group"]})
    usable = (ranks.std("group") > 0) & (scores.sizes["group"] >= 3)
    return xr.corr(ranks.where(usable), order, dim="group")


def cosine_sentence(cosines: xr.DataArray, picture: FigureSpec) -> Sentence:
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

    def sentence(place: SliderValues) -> str:
        value = read(place)
        use = upper & ~share if (upper & ~share).any() else upper
        if not (use & np.isfinite(value)).any():
            return f"At {where(picture, place)} there are no two directions to compare."
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
            f"At {where(picture, place)}, the mean cosine between {kind} is {mean:z.2f} "
            f"({int(use.sum())} comparisons; {null}): {words}; "
            f"the largest is {value[i, j]:z.2f}, {plain(labels[i])} with {plain(labels[j])}."
        )

    return sentence


def turn_sentence(probes: xr.Dataset, picture: FigureSpec) -> Sentence:
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

    def sentence(place: SliderValues) -> str:
        value = read(place)[:-1]
        if not np.isfinite(value).any():
            return f"At {where(picture, place)} no direction is known at an earlier stage."
        best = int(np.nanargmax(value))
        beyond = int((value > band).sum())
        who = f"the direction of {plain(pair)}" if pair else "the mean direction"
        return (
            f"At {where(picture, place)}, {who} at earlier stages has a cosine of {value[0]:z.2f} "
            f"({plain(names[0])}) to {value[-1]:z.2f} ({plain(names[-2])}) with that at {plain(names[-1])}, the "
            f"largest is {value[best]:z.2f} at {plain(names[best])}; unrelated directions lie within ±{band:z.2f}, "
            f"{beyond} of {len(value)} stages above that."
        )

    return sentence


def score_sentence(scores: xr.DataArray, picture: FigureSpec) -> Sentence:
    """Whether the groups lie in training order along one pair's probe."""
    groups, read = group_names(scores), lookup(rank_with_order(scores))

    def sentence(place: SliderValues) -> str:
        pair = plain({**picture.fixed, **place}.get("pair", "the probe"))
        rank = float(read(place))
        if not np.isfinite(rank):
            return f"At {where(picture, place)}, pair {pair}: no order to speak of."
        words = (
            "in training order"
            if rank > 0.999
            else "mostly in training order"
            if rank > 0.6
            else "not in training order"
        )
        return (
            f"At {where(picture, place)}, along the probe of {pair} the {len(groups)} groups are {words} "
            f"(rank correlation {rank:z.2f}; two of the groups were used to fit it)."
        )

    return sentence


def drift_sentence(centroids: xr.Dataset, picture: FigureSpec) -> Sentence:
    """How far centroids move at their own stage and at the others."""
    groups, stages = group_names(centroids), [str(s) for s in values_of(centroids, "stage")]
    steps = stage_steps(centroids) if len(stages) > 1 and "stage" in centroids["centroid"].dims else None
    if steps is None:
        return lambda place: "Drift needs at least two recorded stages."
    read = lookup(steps, ("group", "stage"))
    own = np.array([[s == g for s in stages[1:]] for g in groups])

    def sentence(place: SliderValues) -> str:
        value = read(place)
        if not own.any():
            return (
                f"At {where(picture, place)} a centroid moves by {np.nanmean(value):z.3f} of the mean norm at a stage."
            )
        mine, other = float(np.nanmean(value[own])), float(np.nanmean(value[~own]))
        words = "more" if mine > 1.05 * other else "less" if mine < 0.95 * other else "about as much"
        return (
            f"At {where(picture, place)}, a group's centroid moves by {mine:z.3f} of the mean norm "
            f"at its own stage and by "
            f"{other:z.3f} at the others: {words} when it is trained on; no test is made here."
        )

    return sentence


def forgetting_sentence(table: xr.Dataset) -> Sentence:
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
