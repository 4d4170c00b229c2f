"""Group centroids at every layer and stage, and their geometry on entities that did not make the axis.

`centroids` are plain means; `project` is the plane of the recency study with
held-out coordinates, straightness and order against a permutation null. The
geometry itself is in plane.py, the resampling in resample.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.resampling import halves
from stratalens.analyses.centroids.slab import GroupMeans, Projection
from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.data.groups import Groups, clusters, exposure, groups, labels_by_cluster
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.sweep.run import run_slabs
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
    """Mean activation of every group, at every stage, layer and token.

    Args:
        ds: Dataset or DataArray with dims among (stage, layer, entity, token, features).
        by: label column; its groups are in training order where they are stages.
        site: variable to read.
        normalize: False; True or "activations": every activation is scaled to unit length before averaging;
            "centroids": every centroid is.
        order: groups wanted, in order; None = all.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `run_slabs`; None = beside the store where possible.
        scheduler: see `run_slabs`.
        workers: see `run_slabs`.
        progress: see `run_slabs`.

    Returns:
        Dataset with centroid (stage, layer, token, group, features) float32, count (stage, group) rows, and
        exposure (stage, group) where known: negative = the stage was not trained on that group yet.

    Raises:
        NotRecordedError: unrecorded rows. NonFiniteError: NaN among the activations. InputError: bad labels.
    """
    source = SiteData(ds, site)
    scale = _normalize(normalize)
    found = groups(ds, by, order)
    rows = source.rows(skip_missing, found.codes >= 0)
    function = GroupMeans(found.codes, len(found), scale)
    result = run_slabs(
        source,
        function,
        rows=rows,
        name="centroids",
        params={"codes": found.codes, "normalize": scale, "groups": [str(n) for n in found.names]},
        cache=cache,
        scheduler=scheduler,
        workers=workers,
        progress=progress,
    )
    return _labelled(result, source, found, rows, {"method": "mean", "normalize": scale})


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
    """The plane of group centroids, on entities that the plane was not made from.

    In each of `repeats` splits the entities are parted in two; w1 = unit(last - first centroid) and w2 = first
    principal component of the centroids without w1 come from one part, the centroids that are shown and
    measured from the other. Krasheninnikov, Turner and Krueger (2025), arXiv 2509.14223, with held-out
    entities, intervals and nulls added.

    Args:
        ds: Dataset or DataArray with dims among (stage, layer, entity, token, features).
        by: label column of ordered groups.
        axis: (first, last) group of w1; None = the first and the last.
        site: variable to read.
        normalize: as in `centroids`.
        holdout: fraction of every group's entities that is shown.
        repeats: splits; each estimate is their mean.
        permutations: of labels over entities, for p-values; 0 = none.
        seed: of splits, bootstrap and permutations, the same at all places.
        order: groups wanted, in order; None = all.
        bootstrap: resamples of entities, for the 95 % intervals; 0 = none.
        groups_by: column that says which rows are about the same entity.
        skip_missing: leave unrecorded rows out instead of refusing them.
        cache: see `run_slabs`; None = beside the store where possible.
        scheduler: see `run_slabs`.
        workers: see `run_slabs`.
        progress: see `run_slabs`.

    Returns:
        Dataset over (stage, layer, token):
        coordinate (..., group, component), component = w1, w2, centred on the mean of the shown centroids;
        r2: 1 - (squared distances of the shown centroids from their best line in full width) / (total squared
        deviation); rank_correlation (Spearman) and kendall, of the coordinate along w1 with the order of the
        groups; inner_rank_correlation, the same over the groups that do not make the axis (the ends are in
        order as soon as first and last differ); exact_order, the share of splits in exact order. Each with
        _low, _high (95 %), _p (one-sided) and _null (mean under permuted labels: even noise has a large r2).
        count, entities (stage, group), and exposure (stage, group) where known. NaN where all activations
        are equal (e.g. the embedding of a token that all prompts share).

    Raises:
        InputError: fewer than three groups, a group of too few entities (four, with halves), entities in
            several groups, activations that are constant everywhere. NotRecordedError: unrecorded rows.
    """
    source = SiteData(ds, site)
    scale = _normalize(normalize)
    found = groups(ds, by, order)
    units = clusters(ds, groups_by)
    labels_by_cluster(found, units)
    least = halves(holdout, repeats, np.random.default_rng(seed)).least
    why = f"order needs three groups, and splits with holdout={holdout} {least} entities of each"
    found.require(classes=3, per_class=least, units=units, why=why)
    first, last = (0, len(found) - 1) if axis is None else (found.index(axis[0]), found.index(axis[1]))
    if first == last:
        raise InputError(f"axis={axis!r} needs two different groups of {by!r}: {', '.join(map(str, found.names))}")
    rows = source.rows(skip_missing, found.codes >= 0)
    for stage_rows in rows:
        Groups(by, found.names, np.where(np.isin(np.arange(len(units)), stage_rows), found.codes, -1), "").require(
            per_class=least, units=units, why="rows recorded at every stage"
        )
    function = Projection(
        found.codes, units, len(found), (first, last), scale, holdout, repeats, permutations, bootstrap, seed
    )
    result = run_slabs(
        source,
        function,
        rows=rows,
        name="project",
        params=dict(vars(function)),
        cache=cache,
        scheduler=scheduler,
        workers=workers,
        progress=progress,
    )
    if bool(np.isnan(result["r2"]).all()):
        raise InputError(f"the activations of {source.site!r} are the same in all rows, at all places; nothing to see")
    attrs = {
        "method": "held-out projection",
        "axis": [str(found.names[first]), str(found.names[last])],
        "normalize": scale,
        "holdout": holdout,
        "repeats": repeats,
        "permutations": permutations,
        "bootstrap": bootstrap,
        "seed": seed,
    }
    result = _labelled(result, source, found, rows, attrs)
    entities = [[len(np.unique(units[r[found.codes[r] == g]])) for g in range(len(found))] for r in rows]
    return result.assign(entities=_per_stage(np.array(entities), source, found)).assign_coords(component=["w1", "w2"])


def _normalize(normalize: Normalize) -> str:
    if normalize is False:
        return "none"
    if normalize is True:
        return "activations"
    if normalize not in ("activations", "centroids"):
        raise InputError(
            f"normalize={normalize!r}: {suggest(str(normalize), ['activations', 'centroids'])}, True or False"
        )
    return normalize


def _labelled(
    result: xr.Dataset, source: SiteData, found: Groups, rows: list[Array], attrs: dict[str, Any]
) -> xr.Dataset:
    """Group names, counts, exposure and attributes, the same for both verbs."""
    result = result.assign_coords(group=found.names)
    counts = np.array([np.bincount(found.codes[r], minlength=len(found)) for r in rows])
    result["count"] = _per_stage(counts, source, found)
    seen = exposure(source.data, found)
    if seen is not None:
        result["exposure"] = seen.drop_vars([c for c in seen.coords if c not in result.coords])
    result.attrs = {**source.attrs(), "by": found.by, "ordering": found.ordering, **attrs}
    return result


def _per_stage(table: Array, source: SiteData, found: Groups) -> xr.DataArray:
    """A (stage, group) table in the dims of the user's data."""
    array = xr.DataArray(table, dims=("stage", "group"), coords={"group": found.names})
    if "stage" in source.added:
        return array.isel(stage=0)
    return array.assign_coords(stage=source.array.coords["stage"].variable) if "stage" in source.array.coords else array
