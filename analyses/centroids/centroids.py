"""Group centroids at every stage, layer and token, and their plane of training order on held-out entities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.order_test import NULL_OF_LABELS, add_order_test
from stratalens.analyses.centroids.resampling import halves
from stratalens.analyses.centroids.slab import GroupMeans, Projection
from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.data.groups import Groups, clusters, exposure, groups
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest

Normalize = bool | Literal["activations", "centroids"]


def centroids(
    ds: Data,
    by: str = "trained_stage",
    site: str = "resid_post",
    normalize: Normalize = False,
    order: Iterable[object] | None = None,
    *,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Compute the mean activation of every group at every stage, layer and token.

    Args:
        ds: Dataset or DataArray with dims among (stage, layer, entity, token, features).
        by: label column; groups that are stages have training order.
        site: variable to read.
        normalize: False; True or "activations": scale every activation to unit length before averaging;
            "centroids": scale every centroid to unit length.
        order: groups wanted, in order; None = all.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.

    Returns:
        Dataset:
        - centroid (stage, layer, token, group, features): float32, mean activation.
        - count (stage, group): int64, rows.
        - exposure (stage, group): float64, stages since the group was trained on; negative = not trained yet. Missing
          where unknown.

    Raises:
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.
        InputError: invalid labels.
    """
    source = SiteData(ds, site)
    scale = _check_normalize(normalize)
    label_groups = groups(ds, by, order)
    rows = source.rows(skip_missing, label_groups.codes >= 0)
    result = run_slabs(
        source,
        GroupMeans(label_groups.codes, len(label_groups), scale),
        rows=rows,
        name="centroids",
        params={"codes": label_groups.codes, "normalize": scale, "groups": [str(n) for n in label_groups.names]},
        options=RunOptions(skip_missing, cache, scheduler, workers, progress),
    )
    return _add_labels(result, source, label_groups, rows, {"method": "mean", "normalize": scale})


def project(
    ds: Data,
    by: str = "trained_stage",
    axis: tuple[object, object] | None = None,
    site: str = "resid_post",
    normalize: Normalize = False,
    holdout: float = 0.5,
    repeats: int = 20,
    permutations: int = 1000,
    seed: int = 0,
    order: Iterable[object] | None = None,
    *,
    bootstrap: int = 1000,
    groups_by: str = "entity_id",
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Project group centroids into the plane of training order, fitted on other entities.

    Each of `repeats` splits divides the entities into a fitting part and a held-out part. The fitting part gives
    w1 = unit(last - first centroid), and w2, the first principal component of the centroids without w1. The centroids
    of the held-out part are measured. Krasheninnikov, Turner and Krueger (2025), arXiv 2509.14223, with held-out
    entities, intervals and nulls added.

    Read inner_rank_correlation and its p-value first. It asks if the groups between the first and the last one lie in
    order, against random orders of these groups. All other p-values permute labels over entities: a small one says
    that the groups differ, and nothing about their order. Groups without an order (`ordered` False) get coordinates on
    the two principal components of the fitting part's centroids, and no numbers of order, unless `axis` or `order` is
    set.

    Args:
        ds: Dataset or DataArray with dims among (stage, layer, entity, token, features).
        by: label column of the groups.
        axis: (first, last) group of w1; None = the first and the last of ordered groups.
        site: variable to read.
        normalize: as in `centroids`.
        holdout: fraction of every group's entities to hold out.
        repeats: number of splits; each estimate is the mean over splits.
        permutations: of labels over entities, for p-values of a difference between groups; 0 = none.
        seed: of splits, bootstrap, permutations and orders, the same at every stage and layer.
        order: groups wanted, in order; None = all.
        bootstrap: most resamples of entities, for the 95 % intervals; 0 = none. Groups with more entities in all
            leave out blocks of them.
        groups_by: column with the entity of each row. An entity may have rows in several groups.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.

    Returns:
        Dataset, NaN where all activations are equal (e.g. the embedding of a token that all prompts share). Its
        attributes: `ordered`; `plane`, "order" or "principal components"; `orders`, the number of orders of the inner
        groups; `least_p`, the smallest p that these allow (above .05 with fewer than six groups). Variables:

        - inner_rank_correlation (stage, layer, token): float64, Spearman's correlation of the coordinate along w1 with
          the order of the groups, over the groups that do not define the axis. The ends are in order as soon as the
          first and the last group differ. NaN with fewer than four groups.
        - inner_rank_correlation_p (stage, layer, token): float64, one-sided p under random orders of the inner groups:
          all orders of up to seven, else 10,000.
        - inner_rank_correlation_p_max (stage, layer, token): float64, the same for the largest correlation over all
          places of the call, which share the orders.
        - inner_rank (stage, layer, token, group): float64, mean rank along w1 of each inner group, from 1; NaN for the
          ends.
        - rank_correlation (stage, layer, token): float64, Spearman's correlation over all groups, ends included.
        - kendall (stage, layer, token): float64, Kendall's correlation of the same.
        - exact_order (stage, layer, token): float64, share of splits in exact order. Its interval is NaN.
        - r2 (stage, layer, token): float64, 1 - (squared distances of the held-out centroids from their best line in
          full width) / (total squared deviation); needs no order.
        - r2_corrected (stage, layer, token): float64, the same for the expected centroids, without their noise, which
          pulls r2 towards that of random points: from products of centroids of different entities. NaN where more than
          half of the squared deviation of the held-out centroids is noise.
        - step_square (stage, layer, token, group): float64, squared length of the step from the group before to this
          one, of the expected centroids: unbiased, so negative at times. NaN for the first group.
        - step_cosine (stage, layer, token, group): float64, cosine of the steps to and from a group: 1 straight on, 0 a
          right angle, -1 back. From products of centroids of different entities; those of the same entities pull it
          towards -1/2. NaN for the ends, and where more than .7 of the squared length of a step is noise.
        - step_cosine_mean (stage, layer, token): float64, mean of step_cosine weighted by the product of both lengths.
        - coordinate (stage, layer, token, group, component): float64, held-out centroids along component = w1, w2,
          centred on their mean.
        - <name>_low, <name>_high: float64, 95 % interval of each variable above but inner_rank, with the same dims: a
          jackknife over entities on the logit scale (r2) or Fisher's z scale (correlations), which is 1.3 to 2 times
          as wide as needed; for coordinates a bootstrap over entities.
        - <name>_p (stage, layer, token): float64, of rank_correlation, kendall, exact_order and r2: one-sided
          permutation p of "no difference between groups".
        - <name>_null (stage, layer, token): float64, mean under permuted labels (inner_rank_correlation: under random
          orders); even noise has a large r2.
        - count (stage, group): int64, rows.
        - entities (stage, group): int64.
        - exposure (stage, group): float64, as in `centroids`. Missing where unknown.

    Raises:
        InputError: fewer than three groups, a group of too few entities (four, with halves), or activations that are
            constant everywhere.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.
    """
    source = SiteData(ds, site)
    scale = _check_normalize(normalize)
    label_groups = groups(ds, by, order)
    codes, units, count = label_groups.codes, clusters(ds, groups_by), len(label_groups)
    least = halves(holdout, repeats, np.random.default_rng(seed)).least
    why = f"a plane needs three groups, and splits with holdout={holdout} {least} entities of each"
    label_groups.require(classes=3, per_class=least, units=units, why=why)
    first, last = (0, count - 1) if axis is None else (label_groups.index(axis[0]), label_groups.index(axis[1]))
    if first == last:
        raise InputError(
            f"axis={axis!r} needs two different groups of {by!r}: {', '.join(map(str, label_groups.names))}"
        )
    rows = source.rows(skip_missing, codes >= 0)
    for stage_rows in rows:
        in_stage = np.isin(np.arange(len(units)), stage_rows)
        recorded = Groups(by, label_groups.names, np.where(in_stage, codes, -1), "")
        recorded.require(per_class=least, units=units, why="rows recorded at every stage")
    principal = axis is None and not label_groups.ordered
    counts = (holdout, repeats, permutations, bootstrap, seed)
    function = Projection(codes, units, count, (first, last), scale, *counts, label_groups.ordered, principal)
    result = run_slabs(
        source,
        function,
        rows=rows,
        name="project",
        params=dict(vars(function)),
        options=RunOptions(skip_missing, cache, scheduler, workers, progress),
    )
    if bool(np.isnan(result["r2"]).all()):
        raise InputError(
            f"the activations of {source.site!r} are the same in all rows at every stage, layer and token; "
            f"there is nothing to project"
        )
    attrs = {
        "method": "held-out projection",
        "axis": [str(label_groups.names[first]), str(label_groups.names[last])],
        "plane": "principal components" if principal else "order",
        "normalize": scale,
        "holdout": holdout,
        "repeats": repeats,
        "permutations": permutations,
        "bootstrap": bootstrap,
        "seed": seed,
    }
    result = _add_labels(result, source, label_groups, rows, attrs)
    entities = [[len(np.unique(units[r[codes[r] == g]])) for g in range(count)] for r in rows]
    result["entities"] = _per_stage(np.array(entities), source, label_groups)
    for name in ("r2", "rank_correlation", "kendall", "exact_order") if permutations else ():
        result[f"{name}_p"].attrs["null"] = result[f"{name}_null"].attrs["null"] = NULL_OF_LABELS
    return add_order_test(result.assign_coords(component=["w1", "w2"]), seed)


def _check_normalize(normalize: Normalize) -> str:
    if normalize is False:
        return "none"
    if normalize is True:
        return "activations"
    if normalize not in ("activations", "centroids"):
        raise InputError(
            f"normalize={normalize!r}: {suggest(str(normalize), ['activations', 'centroids'])}, True or False"
        )
    return normalize


def _add_labels(
    result: xr.Dataset, source: SiteData, label_groups: Groups, rows: list[Array], attrs: dict[str, Any]
) -> xr.Dataset:
    """Add group names, counts, exposure and attributes to a result."""
    result = result.assign_coords(group=label_groups.names)
    counts = np.array([np.bincount(label_groups.codes[r], minlength=len(label_groups)) for r in rows])
    result["count"] = _per_stage(counts, source, label_groups)
    stages_ago = exposure(source.data, label_groups)
    if stages_ago is not None:
        result["exposure"] = stages_ago.drop_vars([c for c in stages_ago.coords if c not in result.coords])
    order = {"by": label_groups.by, "ordering": label_groups.ordering, "ordered": label_groups.ordered}
    result.attrs = {**source.attrs(), **order, **attrs}
    return result


def _per_stage(table: Array, source: SiteData, label_groups: Groups) -> xr.DataArray:
    """A (stage, group) table in the dims of the user's data."""
    array = xr.DataArray(table, dims=("stage", "group"), coords={"group": label_groups.names})
    if "stage" in source.added:
        return array.isel(stage=0)
    return array.assign_coords(stage=source.array.coords["stage"].variable) if "stage" in source.array.coords else array
