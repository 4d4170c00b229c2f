"""One computed statement a figure: the value with its interval, its null, and whether the two differ."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.directions.directions import SHUFFLED, drift, stage_steps
from stratalens.analyses.plots.forgetting import before_training_mask
from stratalens.analyses.plots.probes import is_multiclass, main_pair, multiclass_label, plain_measure
from stratalens.analyses.plots.spec import FigureSpec, SliderValues, lookup, plain_text, values_of
from stratalens.analyses.plots.stages import in_training_order, random_cosine_band
from stratalens.analyses.plots.wording import group_words
from stratalens.analyses.report.phrases import (
    Sentence,
    compare_with_chance,
    estimate_reader,
    is_different,
    location,
    value_with_interval,
)
from stratalens.analyses.stats.estimates import PARTS, estimate, pair_mean


def map_sentence(scalar: xr.DataArray, spec: FigureSpec, label: str, null: float | None) -> Sentence:
    """Describe the largest (a selected maximum) and the smallest cell of a map."""
    dims = [str(d) for d in scalar.dims if d not in spec.sliders]
    untrained = result_order(scalar)[1] if scalar.attrs.get("ordered", True) else []
    names = [values_of(scalar.drop_vars("stage_order", errors="ignore"), d) for d in dims]
    read = lookup(scalar, dims)

    def cell_name(values: np.ndarray, i: int) -> str:
        index = np.unravel_index(i, values.shape)
        words = [f"{d} {plain_text(n[j])}" for d, n, j in zip(dims, names, index, strict=True) if len(n) > 1]
        return ", ".join(words) or "the only position"

    def before_training(values: np.ndarray) -> str:
        if "stage" not in dims or not untrained:
            return ""
        stages = [str(v) for v in names[dims.index("stage")]]
        chosen = np.take(values, [stages.index(s) for s in untrained if s in stages], axis=dims.index("stage"))
        if not np.isfinite(chosen).any() or chosen.size == values.size:
            return ""
        return f" Before training it is {np.nanmin(chosen):z.2f} to {np.nanmax(chosen):z.2f}."

    def sentence(slider_values: SliderValues) -> str:
        values = read(slider_values)
        if not np.isfinite(values).any():
            return f"There is no finite {label} here."
        best, worst = int(np.nanargmax(values)), int(np.nanargmin(values))
        sliders = ", ".join(f"{d} {plain_text(v)}" for d, v in slider_values.items())
        start = f"At {sliders}, the {label}" if sliders else f"The {label}"
        text = (
            f"{start} is largest at {cell_name(values, best)} ({values.flat[best]:z.2f}) "
            f"and smallest at {cell_name(values, worst)} ({values.flat[worst]:z.2f})."
        )
        if null is not None:
            text += f" Without any signal, {null:g} is expected.{before_training(values)}"
        return f"{text} The largest of {values.size} cells overestimates the effect, because it was selected."

    return sentence


def matrix_sentence(probes: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Describe how many pairs differ from chance, and the best and the worst pair."""
    result = estimate(probes)
    pairs, measure = [plain_text(p) for p in values_of(probes, "pair")], plain_measure(str(result.attrs["measured"]))
    read = {k: lookup(result[k], ("pair",) if "pair" in result.dims else ()) for k in PARTS}

    def sentence(slider_values: SliderValues) -> str:
        here = location(spec, slider_values)
        arrays = {k: np.atleast_1d(read[k](slider_values)) for k in PARTS}
        by_pair = [{k: float(arrays[k][i]) for k in PARTS} for i in range(len(pairs))]
        value, null = arrays["value"], arrays["null"]
        if not np.isfinite(value).any():
            return f"At {here}, no pair has a {measure}."
        if len(pairs) == 1:
            (only,) = by_pair
            return (
                f"At {here}, {pairs[0]}: {measure} {value_with_interval(only)}, {compare_with_chance(only)} "
                f"({only['null']:z.2f})."
            )
        differs = np.array([is_different(numbers) for numbers in by_pair])
        above = differs & (value > null)
        below = int((differs & ~above).sum())
        best, worst = int(np.nanargmax(value)), int(np.nanargmin(value))
        return (
            f"At {here}, {int(above.sum())} of {len(pairs)} pairs are above chance in separate tests"
            f"{f' and {below} below chance' if below else ''}; "
            f"by chance alone, about {0.05 * len(pairs):z.1f} would differ from it. "
            f"The best pair is {pairs[best]} with {value_with_interval(by_pair[best])}, "
            f"the worst {pairs[worst]} with {value_with_interval(by_pair[worst])}; chance is {np.nanmean(null):z.2f}."
        )

    return sentence


def sweep_sentence(probes: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Describe one series at both end layers, and the mean of all pairs.

    The series is the pair of the first and the last of ordered groups, a multi-class probe, or the mean of all pairs.
    """
    result, mean = estimate(probes), pair_mean(probes)
    pairs = [str(p) for p in values_of(probes, "pair")]
    multiclass = is_multiclass(probes)
    pair = None if multiclass else pairs[0] if len(pairs) == 1 else main_pair(probes)
    single = mean
    if pair and "pair" in result.dims:
        single = result.isel(pair=pairs.index(pair))
    layers = values_of(probes, "layer")
    first_layer, last_layer = layers[0], layers[-1]
    read_single, read_mean = estimate_reader(single), estimate_reader(mean)
    measure = plain_measure(str(result.attrs["measured"]))
    subject = plain_text(pair) if pair else f"mean over {len(pairs)} pairs of groups"
    if multiclass:
        subject = multiclass_label(probes, str(result.attrs["measured"]))

    def sentence(slider_values: SliderValues) -> str:
        last = read_single({**slider_values, "layer": last_layer})
        fixed = {**spec.fixed, **slider_values}
        where = ", ".join(f"{d} {plain_text(v)}" for d, v in fixed.items() if d != "layer")
        text = (
            f"At {where or 'the only position'}, {subject}: "
            f"{measure} {value_with_interval(last)} at layer {last_layer}, "
            f"{compare_with_chance(last)} ({last['null']:z.2f})"
        )
        if len(layers) > 1:
            first = read_single({**slider_values, "layer": first_layer})
            text += f"; {value_with_interval(first)} at layer {first_layer}, {compare_with_chance(first)}"
        if pair and result.sizes.get("pair", 1) > 1:
            all_pairs = read_mean({**slider_values, "layer": last_layer})
            text += (
                f". The mean of all pairs at layer {last_layer} is {value_with_interval(all_pairs)}, "
                f"{compare_with_chance(all_pairs)}"
            )
        return text + "."

    return sentence


def recall_sentence(shares: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Describe the group that a probe of all groups recognises best, and the one that it recognises least."""
    groups, read = [plain_text(g) for g in group_names(shares)], lookup(shares["recall"], ("group",))
    bounds = [lookup(shares[name], ("group",)) for name in ("recall_low", "recall_high")]

    def sentence(slider_values: SliderValues) -> str:
        here, value = location(spec, slider_values), read(slider_values)
        if not np.isfinite(value).any():
            return f"At {here}, no group has a score."
        low, high = (bound(slider_values) for bound in bounds)
        words = [
            f"{groups[i]} {value_with_interval({'value': value[i], 'low': low[i], 'high': high[i]})}"
            for i in (int(np.nanargmax(value)), int(np.nanargmin(value)))
        ]
        return (
            f"At {here}, the probe of all groups recognises {words[0]} of the rows of a group best and {words[1]} "
            f"least; the mean over groups is {np.nanmean(value):z.2f}, and {1 / len(groups):.2g} is expected by chance."
        )

    return sentence


def loss_sentence(losses: pd.DataFrame) -> Sentence:
    """Describe the decrease of the training loss within a stage."""
    by_stage = losses.groupby("stage", sort=False)["loss"]
    first, last = by_stage.first(), by_stage.last()
    text = (
        f"Within a stage the training loss falls from {first.mean():z.2f} to {last.mean():z.2f} nats per token on "
        f"average over {len(first)} stages and {len(losses)} logged steps. "
        f"The last stage ends at {last.iloc[-1]:z.2f}."
    )
    return lambda slider_values: text


def cosine_sentence(cosines: xr.DataArray, spec: FigureSpec) -> Sentence:
    """Describe the mean cosine of directions that share no group."""
    over = next(str(d) for d in cosines.dims if str(d).endswith("_other")).removesuffix("_other")
    labels = [str(v) for v in values_of(cosines, over)]
    shares_group = np.zeros((len(labels), len(labels)), dtype=bool)
    if over == "pair" and "pair_first" in cosines.coords:
        ends = [np.asarray(cosines[name].values.astype(str)) for name in ("pair_first", "pair_second")]
        shares_group = np.any([a[:, None] == b[None] for a in ends for b in ends], axis=0)
    read = lookup(cosines, (over, f"{over}_other"))
    upper = np.triu(np.ones_like(shares_group), 1).astype(bool)
    disjoint = upper & ~shares_group
    use = disjoint if disjoint.any() else upper
    kind = f"{over}s that share no group" if shares_group.any() and disjoint.any() else f"different {over}s"

    spread, signed = float(cosines.attrs.get("random_sd", np.nan)), cosines.attrs.get("ordered", True)
    expected = np.sqrt(2 / np.pi) * spread if not signed else 0.0  # mean size of a normal variable
    measured = str(cosines.attrs.get("random_from", "")) == SHUFFLED
    kind_of_null = "Probes of shuffled labels" if measured else "Isotropic random directions"
    null = f"{kind_of_null} have a mean of {expected:.2g}" if np.isfinite(expected) else ""
    null += f", single ones are within ±{1.96 * spread:z.2f}." if np.isfinite(spread) else "." if null else ""
    if null and not measured:
        null += " Unrelated probes exceed this where a few directions have most of the variance."

    def sentence(slider_values: SliderValues) -> str:
        value = read(slider_values)
        if not (use & np.isfinite(value)).any():
            return f"At {location(spec, slider_values)}, there are no two directions to compare."
        i, j = np.unravel_index(int(np.nanargmax(np.where(use, np.abs(value), np.nan))), value.shape)
        end = f"The largest cosine is {value[i, j]:z.2f}, of {plain_text(labels[i])} with {plain_text(labels[j])}."
        here = location(spec, slider_values)
        if not signed:  # without an order, the sign of a pair's direction means nothing
            size = float(np.nanmean(np.abs(value[use])))
            return (
                f"At {here}, the mean size of the cosine between {kind} is {size:z.2f} ({int(use.sum())} comparisons). "
                f"{null} {end}"
            )
        mean = float(np.nanmean(value[use]))
        share = "no" if abs(mean) < 0.1 else "a weak" if abs(mean) < 0.3 else "a"
        return (
            f"At {here}, the mean cosine between {kind} is {mean:z.2f} "
            f"({int(use.sum())} comparisons): {share} common direction. {null} {end}"
        )

    return sentence


def direction_drift_sentence(probes: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Describe the cosine of the directions at all other stages with those at the last one.

    Of ordered groups, it is the direction of the first and the last group, of others the mean over pairs.
    """
    stages = [plain_text(s) for s in values_of(probes, "stage")]
    pair, pairs = main_pair(probes), [str(p) for p in values_of(probes, "pair")]
    if pair and "pair" in probes["coef"].dims:
        probes = probes.isel(pair=pairs.index(pair))
    cosine = drift(in_training_order(probes), "stage", "last")["cosine"]
    cosine = cosine.mean("pair") if "pair" in cosine.dims else cosine
    read = lookup(cosine, ("stage",))
    band = random_cosine_band(probes["coef"])
    one = pair or (pairs[0] if len(pairs) == 1 else None)
    subject = f"the direction of {plain_text(one)}" if one else f"a pair's direction (mean over {len(pairs)} pairs)"

    def sentence(slider_values: SliderValues) -> str:
        here, value = location(spec, slider_values), read(slider_values)[:-1]
        if not np.isfinite(value).any():
            return f"At {here}, no direction is known at another stage."
        best = int(np.nanargmax(value))
        return (
            f"At {here}, the cosine of {subject} with its direction at {stages[-1]} is "
            f"{value[0]:z.2f} at {stages[0]} and {value[-1]:z.2f} at {stages[-2]}; "
            f"the largest is {value[best]:z.2f} at {stages[best]}. Unrelated directions are within ±{band:z.2f}; "
            f"{int((value > band).sum())} of {len(value)} stages are above."
        )

    return sentence


def generalisation_sentence(scores: xr.DataArray, spec: FigureSpec) -> Sentence:
    """Describe whether scores along one probe are in the order of the groups, or the ends of groups without one."""
    groups, words = group_names(scores), group_words(scores)
    if not words.ordered:
        return _spread_sentence(scores, spec)
    read = lookup(rank_with_order(scores))

    def sentence(slider_values: SliderValues) -> str:
        here = location(spec, slider_values)
        pair = plain_text({**spec.fixed, **slider_values}.get("pair", "the probe"))
        rank = float(read(slider_values))
        if not np.isfinite(rank):
            return f"At {here}, the probe of {pair} gives no order."
        are = "are" if rank > 0.999 else "are mostly" if rank > 0.6 else "are not"
        return (
            f"At {here}, the {len(groups)} groups {are} in {words.order} along the probe of {pair} "
            f"(rank correlation {rank:z.2f}; two of the groups were used to fit it)."
        )

    return sentence


def _spread_sentence(scores: xr.DataArray, spec: FigureSpec) -> Sentence:
    """Describe which groups have the highest and the lowest mean score along one probe."""
    groups, read = [plain_text(g) for g in group_names(scores)], lookup(scores, ("group",))

    def sentence(slider_values: SliderValues) -> str:
        here, value = location(spec, slider_values), read(slider_values)
        pair = plain_text({**spec.fixed, **slider_values}.get("pair", "the probe"))
        if not np.isfinite(value).any():
            return f"At {here}, the probe of {pair} has no scores."
        high, low = int(np.nanargmax(value)), int(np.nanargmin(value))
        above = int((value > 0).sum())
        return (
            f"At {here}, along the probe of {pair}, {groups[high]} has the highest mean score ({value[high]:z.2f}) and "
            f"{groups[low]} the lowest ({value[low]:z.2f}); {above} of {len(groups)} groups are on the side of its "
            "second class."
        )

    return sentence


def rank_with_order(scores: xr.DataArray) -> xr.DataArray:
    """Return Spearman's correlation of scores with the group order; NaN if undefined."""
    ranks = scores.copy(data=rankdata(scores.values, axis=scores.get_axis_num("group"), nan_policy="propagate"))
    order = xr.DataArray(np.arange(scores.sizes["group"], dtype=float), dims="group", coords={"group": scores["group"]})
    usable = (ranks.std("group") > 0) & (scores.sizes["group"] >= 3)
    return xr.corr(ranks.where(usable), order, dim="group")


def centroid_drift_sentence(centroids: xr.Dataset, spec: FigureSpec) -> Sentence:
    """Describe how far centroids move at their own stage and at the others."""
    groups, stages = group_names(centroids), [str(s) for s in values_of(centroids, "stage")]
    if len(stages) < 2 or "stage" not in centroids["centroid"].dims:
        return lambda slider_values: "Drift needs at least two recorded stages."
    read = lookup(stage_steps(centroids), ("group", "stage"))
    trained = group_words(centroids).trained
    own = np.array([[trained and s == g for s in stages[1:]] for g in groups])

    def sentence(slider_values: SliderValues) -> str:
        here, value = location(spec, slider_values), read(slider_values)
        if not own.any():
            return f"At {here}, a centroid moves by {np.nanmean(value):z.3f} of the mean norm from stage to stage."
        at_own, at_others = float(np.nanmean(value[own])), float(np.nanmean(value[~own]))
        size = "more" if at_own > 1.05 * at_others else "less" if at_own < 0.95 * at_others else "about as much"
        return (
            f"At {here}, a group's centroid moves by {at_own:z.3f} of the mean norm at the stage that trained the "
            f"group and by {at_others:z.3f} at the others. It moves {size} when it is trained; this is not a test."
        )

    return sentence


def forgetting_sentence(table: xr.Dataset) -> Sentence:
    """Describe a statistic before, directly after and longest after training."""
    since = table["exposure"].transpose("group", "stage").values
    value = table["value"].transpose("group", "stage").values
    name = plain_text(table.attrs.get("statistic", "the statistic"))
    ages = [age for age in np.unique(since) if age >= 0]
    if not ages:
        return lambda slider_values: f"No stage that trained a group is recorded, so forgetting of {name} is unknown."
    words = [f"{np.nanmean(value[since == 0]):z.2f} for groups just trained"] if 0 in ages else []
    if ages[-1] > 0:
        words.append(f"{np.nanmean(value[since == ages[-1]]):z.2f} after {ages[-1]:g} further stages")
    before_training = before_training_mask(table)
    if before_training.any():
        words.append(f"{np.nanmean(value[before_training]):z.2f} before their training")
    untrained = (since < 0) & ~before_training
    if untrained.any():
        words.append(f"{np.nanmean(value[untrained]):z.2f} in the untrained model")
    text = f"The mean {name} is " + ", ".join(words) + "."
    return lambda slider_values: text
