"""What each figure shows, in one sentence made from its numbers: against the null, weak effects said so."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from stratalens.analyses.plots.comparison import common_pairs
from stratalens.analyses.plots.estimates import PARTS, beyond_null, estimate, extreme_pair, pair_mean
from stratalens.analyses.plots.palette import group_names, trained_order
from stratalens.analyses.plots.picture import SLIDER_DIMS, Picture, Place, lookup, plain, values_of

Sentence = Callable[[Place], str]
OWN, ALONE = "activations", "norms, losses, confidence alone"


def where(picture: Picture, place: Place) -> str:
    """Say the place in words: "stage s6, layer 12, token last"."""
    every = {**picture.fixed, **place}
    return ", ".join(f"{dim} {plain(every[dim])}" for dim in SLIDER_DIMS if dim in every) or "the only recorded place"


def reader(result: xr.Dataset) -> Callable[[Place], dict[str, float]]:
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
    if not beyond_null(n["value"], n["low"], n["high"], n["null"], n["p"]):
        return "not told from chance"
    gap = n["value"] - n["null"]
    if gap < 0:
        return "below chance"
    for least, words in ((0.25, "far above chance"), (0.1, "clearly above chance"), (0.05, "a little above chance")):
        if gap >= least:
            return words
    return "above chance, but by very little"


def path_sentence(projection: xr.Dataset, picture: Picture) -> Sentence:
    """Order of the centroids along w1: rank correlation, straightness, against permuted labels."""
    permutations = projection.attrs.get("permutations")
    count = len(group_names(projection))

    if "rank_correlation" not in projection:
        return lambda place: "The order was not measured: this projection holds no rank correlation."
    read_rank = reader(estimate(projection, "rank_correlation", 0.0))
    read_line = reader(estimate(projection, "r2", 0.0)) if "r2" in projection else None

    def say(place: Place) -> str:
        text = f"At {where(picture, place)}, "
        rank = read_rank(place)
        told = beyond_null(*(rank[k] for k in PARTS))
        verdict = "follow training order" if told and rank["value"] > 0 else "do not show training order"
        if told and 0 < rank["value"] < 0.6:
            verdict = "follow training order weakly"
        text += (
            f"the {count} centroids of held-out entities {verdict}: rank correlation {interval(rank)}, "
            f"{rank['null']:z.2f} with permuted labels{p_text(rank['p'], permutations)}"
        )
        if read_line is not None:
            line = read_line(place)
            straight = beyond_null(*(line[k] for k in PARTS))
            text += (
                f"; a straight line explains {interval(line)} of their spread, {line['null']:z.2f} with permuted labels"
            )
            text += f"{p_text(line['p'], permutations)}" + (
                "" if straight else ", so straightness is not told from chance"
            )
        return text + "."

    return say


def map_sentence(scalar: xr.DataArray, picture: Picture, label: str, null: float | None) -> Sentence:
    """Largest and smallest cell of a map, and that the largest was found by looking."""
    dims = [str(d) for d in scalar.dims if d not in picture.sliders]
    _, untrained = trained_order(scalar)
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

    def say(place: Place) -> str:
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


def matrix_sentence(probes: xr.Dataset, picture: Picture) -> Sentence:
    """How many pairs are told apart, which best, which worst."""
    result = estimate(probes)
    pairs = [plain(p) for p in values_of(probes, "pair")]
    read = {k: lookup(result[k], ("pair",) if "pair" in result.dims else ()) for k in PARTS}

    def say(place: Place) -> str:
        got = {k: np.atleast_1d(read[k](place)) for k in PARTS}
        told = np.array([beyond_null(*(float(got[k][i]) for k in PARTS)) for i in range(len(pairs))])
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


def sweep_sentence(probes: xr.Dataset, picture: Picture) -> Sentence:
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

    def say(place: Place) -> str:
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


def control_sentence(rows: Mapping[str, xr.Dataset], picture: Picture) -> Sentence:
    """What is left of the accuracy under each control, in the order of the figure."""
    narrowed = common_pairs(rows)
    readers = {label: reader(pair_mean(data)) for label, data in narrowed.items()}
    pairs = max((values_of(data, "pair") for data in narrowed.values()), key=len)
    what = f"accuracy of {plain(pairs[0])}" if len(pairs) == 1 else f"mean accuracy over {len(pairs)} pairs"

    def say(place: Place) -> str:
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
