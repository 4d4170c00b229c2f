"""The report's order of questions, and which figures and sentences answer each; no HTML here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from stratalens.analyses import sentences as say
from stratalens.analyses.page import Panel
from stratalens.analyses.plots.distributions import loss_curves_picture, statistic_distributions_picture
from stratalens.analyses.plots.drift import probe_generalisation_picture, stage_drift_picture, stage_steps
from stratalens.analyses.plots.estimates import estimate, extreme_pair, pair_mean
from stratalens.analyses.plots.grids import cosine_matrix_picture, pair_matrix_picture, scalar_map_picture
from stratalens.analyses.plots.palette import group_names
from stratalens.analyses.plots.paths import centroid_path_picture
from stratalens.analyses.plots.picture import Picture, Place, lookup, plain, values_of
from stratalens.analyses.plots.sweeps import control_comparison_picture, control_rows, layer_sweep_picture

Results = Mapping[str, Any]

CONTROL_LABELS = {
    "probes": "activations",
    "statistics_probe": "norms, losses, confidence alone",
    "matched_probe": "matched on them",
    "residual_probe": "with them regressed out",
}


@dataclass
class Section:
    """One question with its figures; `missing` says which call would have answered it."""

    key: str
    title: str
    lead: str = ""
    panels: list[Panel] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    missing: str = ""


def build_sections(results: Results, notes: Sequence[str] = (), known: Sequence[str] = ()) -> list[Section]:
    """All sections in the order in which a reader asks; those without results say how to get them."""
    return [
        recorded(results, known),
        order(results),
        separable(results),
        places(results),
        controls(results),
        directions(results),
        unknown(results, notes),
    ]


def recorded(results: Results, known: Sequence[str] = ()) -> Section:
    """What was recorded: loss curves here, tables of the store in the template."""
    section = Section("recorded", "What was recorded")
    losses = results.get("losses")
    if isinstance(losses, pd.DataFrame) and len(losses):
        picture = loss_curves_picture(losses, known)
        section.panels.append(
            Panel(
                picture, _loss_sentence(losses), "Each stage restarts on new entities, so the loss jumps at its start."
            )
        )
    return section


def _loss_sentence(losses: pd.DataFrame) -> say.Sentence:
    parts = losses.groupby("stage", sort=False)["loss"]
    first, last = parts.first(), parts.last()
    text = (
        f"Over {len(first)} stages and {len(losses)} logged steps the training loss falls within a stage from "
        f"{first.mean():.2f} to {last.mean():.2f} nats per token on average (last stage: {last.iloc[-1]:.2f})."
    )
    return lambda place: text


def order(results: Results) -> Section:
    """Is there an order: the plane, and rank correlation over stages and layers."""
    section = Section("order", "Is there an order?")
    projection = results.get("projection")
    if projection is None:
        section.missing = 'sl.project(ds, by="trained_stage")'
        return section
    section.lead = (
        "The axis w1 runs from the first group's mean to the last group's mean and is made from one half of the "
        "entities; the other half is projected, so the picture is not ordered by construction."
    )
    picture = centroid_path_picture(projection)
    section.panels.append(
        Panel(
            picture,
            say.path_sentence(projection, picture),
            "One dot per group, joined in training order; both axes have about the same scale, bars are 95 % intervals.",
        )
    )
    if "rank_correlation" in projection and {"stage", "layer"} <= set(projection["rank_correlation"].coords):
        rank = projection["rank_correlation"].assign_attrs(projection.attrs)
        label = "rank correlation with training order"
        picture = scalar_map_picture(rank, "stage", "layer", label, (-1.0, 1.0), 0.0)
        section.panels.append(
            Panel(
                picture,
                say.map_sentence(rank, picture, label, 0.0),
                "Stages before training are a control: there is nothing to be ordered yet.",
            )
        )
    return section


def separable(results: Results) -> Section:
    """How separable: the matrix of pairs."""
    section = Section("separable", "How separable are the groups?")
    probes = results.get("probes")
    if probes is None or "pair_first" not in probes.coords:
        section.missing = 'sl.probe(ds, target="trained_stage", pairs="all")'
        return section
    section.lead = "A linear probe is fitted for each pair of groups and scored on entities that it was not fitted on."
    picture = pair_matrix_picture(probes)
    section.panels.append(
        Panel(
            picture,
            say.matrix_sentence(probes, picture),
            "Row: the group trained earlier; column: later. n.s.: not told from chance.",
        )
    )
    return section


def places(results: Results) -> Section:
    """Where: layer, token and stage."""
    section = Section("where", "Where is it: layer, token, stage?")
    probes = results.get("probes")
    if probes is None:
        section.missing = 'sl.probe(ds, target="trained_stage")'
        return section
    if "layer" in probes["accuracy"].coords:
        picture = layer_sweep_picture(probes)
        section.panels.append(
            Panel(
                picture,
                say.sweep_sentence(probes, picture),
                "Bold: the first group against the last, and the mean of all pairs, with 95 % intervals; thin: every other pair, in the colour of its later group.",
            )
        )
    scalar, label = _headline_scalar(probes)
    coords = set(scalar.coords)
    for x, y, reading in (
        ("stage", "layer", "White is chance."),
        ("layer", "token", "White is chance. Positions are those that were recorded."),
    ):
        if {x, y} <= coords and max(scalar.sizes.get(x, 1), scalar.sizes.get(y, 1)) > 1:
            picture = scalar_map_picture(scalar, x, y, label, (0.0, 1.0), 0.5)
            section.panels.append(Panel(picture, say.map_sentence(scalar, picture, label, 0.5), reading))
    return section


def _headline_scalar(probes: xr.Dataset) -> tuple[xr.DataArray, str]:
    pair = extreme_pair(probes)
    result = estimate(probes)
    if pair and "pair" in result.dims:
        index = [str(p) for p in values_of(probes, "pair")].index(pair)
        return result["value"].isel(pair=index, drop=True).assign_attrs(probes.attrs), f"accuracy of {plain(pair, 24)}"
    return pair_mean(probes)["value"].assign_attrs(probes.attrs), "mean accuracy"


def controls(results: Results) -> Section:
    """Does it survive: controls beside the probe, distributions of the statistics, groups not seen yet."""
    section = Section("controls", "Does it survive the controls?")
    chosen = {label: results[key] for key, label in CONTROL_LABELS.items() if results.get(key) is not None}
    if len(chosen) > 1:
        picture = control_comparison_picture(chosen)
        section.panels.append(
            Panel(
                picture,
                say.control_sentence(control_rows(chosen), picture),
                "If norms, losses or confidence were all there is, matching or regressing them out would bring the probe to the dashed line. The random subsample shows what the smaller matched sample costs by itself.",
            )
        )
    else:
        section.missing = "sl.statistics_probe, sl.matched_probe and sl.residual_probe"
    unseen = unseen_sentence(results.get("probes"))
    if unseen:
        section.points.append(unseen)
    quantiles = results.get("statistics")
    if quantiles is not None:
        picture = statistic_distributions_picture(quantiles)
        section.panels.append(
            Panel(
                picture,
                _spread_sentence(quantiles, picture),
                "Dot: median; thick bar: quartiles; thin bar: 5 to 95 % of rows.",
            )
        )
    return section


def _spread_sentence(quantiles: xr.Dataset, picture: Picture) -> say.Sentence:
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
            f"{spread[most]:.2f} standard deviations of single rows, a {size} difference; no test is made here."
        )

    return sentence


def unseen_mask(probes: xr.Dataset) -> xr.DataArray | None:
    """True at (stage, pair) where neither group of the pair was trained on yet; None where that is not known."""
    if not {"stage", "stage_order", "pair_first"} <= set(probes.coords) or "stage" not in probes.dims:
        return None
    order_of = dict(zip(map(str, probes["stage"].values), probes["stage_order"].values.tolist(), strict=True))
    first = [str(g) for g in np.atleast_1d(probes["pair_first"].values)]
    second = [str(g) for g in np.atleast_1d(probes["pair_second"].values)]
    if not set(first) | set(second) <= set(order_of) or "pair" not in probes.dims:
        return None
    earliest = np.array([min(order_of[a], order_of[b]) for a, b in zip(first, second, strict=True)])
    mask = probes["stage_order"].values[:, None] < earliest[None]
    return xr.DataArray(mask, dims=("stage", "pair"), coords={"stage": probes["stage"], "pair": probes["pair"]})


def unseen_sentence(probes: xr.Dataset | None) -> str:
    """Mean accuracy of pairs at checkpoints before either group was trained on, over all layers and tokens."""
    mask = unseen_mask(probes) if probes is not None else None
    if probes is None or mask is None or not bool(mask.any()):
        return ""
    value = estimate(probes)["value"].where(mask)
    others = [d for d in value.dims if d not in ("stage", "pair")]
    per_pair = value.mean(others).values
    per_pair = per_pair[np.isfinite(per_pair)]
    highest = float(value.max())
    return (
        f"Control by time: before either group of a pair was trained on, its probe has a mean accuracy of "
        f"{per_pair.mean():.2f} (single stage and pair, averaged over layers and tokens: {per_pair.min():.2f} to "
        f"{per_pair.max():.2f}; largest of all {int(value.notnull().sum())} single values: {highest:.2f}); "
        f"0.50 is expected if nothing but training tells the groups apart."
    )


def directions(results: Results) -> Section:
    """How directions relate: cosines, generalisation, drift of centroids."""
    section = Section("directions", "How do the directions relate?")
    cosines, scores, centroids = results.get("cosines"), results.get("generalise"), results.get("centroids")
    if cosines is not None:
        picture = cosine_matrix_picture(cosines)
        section.panels.append(
            Panel(
                picture,
                _cosine_sentence(cosines, picture),
                "Directions point to the later group. Pairs that share a group have a cosine by construction (about 0.5 if they share the same end), so compare pairs that share none.",
            )
        )
    if scores is not None:
        picture = probe_generalisation_picture(scores)
        section.panels.append(
            Panel(
                picture,
                _score_sentence(scores, picture),
                "Groups that the probe was not fitted on fall where its direction puts them; an ordered row means one direction serves all.",
            )
        )
    if centroids is not None:
        picture = stage_drift_picture(centroids)
        section.panels.append(
            Panel(
                picture, _drift_sentence(centroids, picture), "A large dot marks the stage that trained on the group."
            )
        )
    if not section.panels:
        section.missing = "sl.cosines(probes), sl.generalise(probes, ds) and sl.centroids(ds)"
    return section


def _cosine_sentence(cosines: xr.DataArray, picture: Picture) -> say.Sentence:
    over = next(str(d) for d in cosines.dims if str(d).endswith("_other")).removesuffix("_other")
    labels = [str(v) for v in values_of(cosines, over)]
    share = np.zeros((len(labels), len(labels)), dtype=bool)
    if over == "pair" and "pair_first" in cosines.coords:
        ends = list(zip(cosines["pair_first"].values, cosines["pair_second"].values, strict=True))
        share = np.array([[bool(set(a) & set(b)) for b in ends] for a in ends])
    read = lookup(cosines, (over, f"{over}_other"))
    upper = np.triu(np.ones_like(share), 1).astype(bool)

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
            f"At {say.where(picture, place)}, the mean cosine between {kind} is {mean:.2f} "
            f"({int(use.sum())} comparisons; 0 is expected of unrelated directions): {words}; "
            f"the largest is {value[i, j]:.2f}, {plain(labels[i])} with {plain(labels[j])}."
        )

    return sentence


def rank_with_order(scores: xr.DataArray) -> xr.DataArray:
    """Spearman correlation of scores with the order of groups; NaN below three groups or without spread."""
    ranks = scores.copy(data=rankdata(scores.values, axis=scores.get_axis_num("group"), nan_policy="propagate"))
    order = xr.DataArray(np.arange(scores.sizes["group"], dtype=float), dims="group", coords={"group": scores["group"]})
    usable = (ranks.std("group") > 0) & (scores.sizes["group"] >= 3)
    return xr.corr(ranks.where(usable), order, dim="group")


def _score_sentence(scores: xr.DataArray, picture: Picture) -> say.Sentence:
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
            f"(rank correlation {rank:.2f}; two of the groups were used to fit it)."
        )

    return sentence


def _drift_sentence(centroids: xr.Dataset, picture: Picture) -> say.Sentence:
    groups, stages = group_names(centroids), [str(s) for s in values_of(centroids, "stage")]
    steps = stage_steps(centroids) if len(stages) > 1 and "stage" in centroids["centroid"].dims else None
    if steps is None:
        return lambda place: "Drift needs at least two recorded stages."
    read = lookup(steps, ("group", "stage"))
    own = np.array([[s == g for s in stages[1:]] for g in groups])

    def sentence(place: Place) -> str:
        value = read(place)
        if not own.any():
            return f"At {say.where(picture, place)} a centroid moves by {np.nanmean(value):.3f} of the mean norm at a stage."
        mine, other = float(np.nanmean(value[own])), float(np.nanmean(value[~own]))
        words = "more" if mine > 1.05 * other else "less" if mine < 0.95 * other else "about as much"
        return (
            f"At {say.where(picture, place)}, a group's centroid moves by {mine:.3f} of the mean norm at its own stage and by "
            f"{other:.3f} at the others: {words} when it is trained on; no test is made here."
        )

    return sentence


def unknown(results: Results, notes: Sequence[str]) -> Section:
    """What is not known: limits that follow from the numbers, then the caller's notes."""
    section = Section("unknown", "What is not known")
    projection, probes = results.get("projection"), results.get("probes")
    points = [
        "One training run with one order of stages: anything that differs between the groups by accident counts as order here; other seeds and other orders would tell."
    ]
    if projection is not None and projection.attrs.get("permutations"):
        n = int(projection.attrs["permutations"])
        points.append(
            f"{n} permutations: no p value can be below {1 / (n + 1):.2g}, and p values are for one place at a time."
        )
    if probes is not None:
        sizes = {d: probes.sizes[d] for d in ("stage", "layer", "token", "pair") if d in probes.dims}
        cells = int(np.prod(list(sizes.values()))) if sizes else 1
        points.append(
            f"{cells} probes ({' x '.join(f'{n} {d}' for d, n in sizes.items()) or 'one place'}): the best of them looks better than it is; headline numbers are taken at the last stage, the deepest layer and the last token, chosen before looking."
        )
        points.append(
            f"Intervals of accuracies: {estimate(probes).attrs['interval']}; they do not cover another training run."
        )
        if "converged" in probes and not bool(probes["converged"].all()):
            share = float((~probes["converged"].astype(bool)).mean())
            points.append(f"{share:.1%} of the probes did not converge.")
    absent = [label for key, label in CONTROL_LABELS.items() if results.get(key) is None]
    if absent:
        points.append(f"Not computed in this run: {', '.join(absent)}.")
    sites = sorted({str(r.attrs.get("site")) for r in results.values() if hasattr(r, "attrs") and r.attrs.get("site")})
    if sites:
        points.append(
            f"Only the site{'s' if len(sites) > 1 else ''} {', '.join(map(plain, sites))} and the recorded token positions were looked at."
        )
    section.points = [*points, *notes]
    return section
