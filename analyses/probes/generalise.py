"""Scores of groups that a probe was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.projection import spearman
from stratalens.analyses.data.array_types import Array, Data, Mask
from stratalens.analyses.data.groups import check_data, clusters, groups, plain_entities
from stratalens.analyses.data.results import as_text, carried_attrs, vectors
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.stats.bootstrap import cluster_bootstrap
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest


def generalise(
    probes: xr.Dataset,
    ds: Data,
    by: str | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
    order: Sequence[object] | None = None,
) -> xr.DataArray:
    """Average the scores of every group along each probe, on unseen entities.

    The means show whether training order holds beyond the pair of the probe. If `ds` has the rows of the probes, their
    out-of-fold scores are used and nothing is read. For other data, the probes that were refitted on all rows are
    applied to entities whose entity_id they never saw.

    Args:
        probes: result of `probe` with pairs (not "multiclass").
        ds: data that the probes were fitted on, or other data with the same site, stages and layers.
        by: label column to group by; None = the target of the probes.
        draws: resamples of entities for the intervals.
        seed: of the resamples.
        skip_missing: leave unrecorded rows of other data out.
        cache: see `RunOptions`; None = next to the store where possible.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.
        order: groups wanted, in order, as in `probe`; None = all.

    Returns:
        DataArray mean_score (stage, layer, token, pair, group): float64, in score units; positive = towards the second
        group of the pair. Its coordinates are:

        - low, high (stage, layer, token, pair, group): float64, 95 % cluster bootstrap over entities.
        - order_kept (stage, layer, token, pair): float64, Spearman's correlation of the means with the order of the
          groups outside the pair; NaN with fewer than three, and for groups without an order.

    Raises:
        InputError: no scores of pairs, data without the stages, layers or tokens of the probes, no unseen entity, or
            probes of residuals with other data than their own.
    """
    if "score" not in probes or "pair" not in probes["score"].dims:
        raise InputError("generalise needs the scores of probe(ds, ...) with pairs, not 'multiclass'")
    by = by or str(probes.attrs.get("target", "trained_stage"))
    check_data(ds)
    ds = plain_entities(ds)
    label_groups = groups(ds, by, order)
    used = label_groups.codes >= 0
    if _same_rows(probes, ds):
        score = probes["score"]
    else:
        if probes.attrs.get("residual") or "explained" in probes:
            raise InputError(
                "probes of residual_probe cannot score other data: their directions are those of residuals, and the "
                "regression on the statistics is not part of the result. Pass the data that they were fitted on"
            )
        used &= _unseen(probes, ds)
        if not used.any():
            raise InputError("the probes have seen every entity of this data; pass data about other entities")
        score = _apply(probes, ds, used, RunOptions(skip_missing, cache, scheduler, workers, progress))
    dims = [d for d in ("stage", "layer", "token", "pair") if d in score.dims]
    values = score.transpose("entity", *dims).values.astype(np.float64)
    units = clusters(ds)
    mean, low, high = np.full((3, *values.shape[1:], len(label_groups)), np.nan)
    for g in range(len(label_groups)):
        rows = np.flatnonzero(used & (label_groups.codes == g))
        if len(rows) == 0:
            continue
        low[..., g], high[..., g] = cluster_bootstrap(values[rows], units[rows], draws=draws, seed=seed)
        with np.errstate(invalid="ignore"):
            mean[..., g] = _nanmean(values[rows])
    coords = {k: c for k, c in score.coords.items() if "entity" not in c.dims}
    correlation = _order_outside(probes, mean, [str(name) for name in label_groups.names])
    out = xr.DataArray(mean, dims=(*dims, "group"), coords=coords, name="mean_score")
    out = out.assign_coords(
        group=label_groups.names,
        low=((*dims, "group"), low),
        high=((*dims, "group"), high),
        order_kept=(dims, correlation if label_groups.ordered else np.full_like(correlation, np.nan)),
    )
    return out.assign_attrs({**carried_attrs(probes), "by": by, "ordered": label_groups.ordered})


def _same_rows(probes: xr.Dataset, ds: Data) -> bool:
    """Whether the labels of `ds` are those of the rows that the probes were fitted on."""
    if probes.sizes["entity"] != ds.sizes["entity"] or ("entity" in probes.coords) != ("entity" in ds.coords):
        return False
    shared = [str(name) for name, c in probes.coords.items() if c.dims == ("entity",) and name in ds.coords]
    # Without a name of the rows, all other labels have to agree.
    names = [name for name in ("entity", "entity_id") if name in shared] or shared
    return all(probes[name].values.tolist() == ds[name].values.tolist() for name in names)


class _ProbeScores:
    """Function of a slab: scores (token, pair, entity) of probes, NaN for unused rows; a class, so that it pickles."""

    def __init__(self, coef: Array, intercept: Array, entities: int, normalize: bool, joint: bool) -> None:
        self.coef, self.intercept, self.entities, self.normalize = coef, intercept, entities, normalize
        self.joint = joint  # one score for all tokens

    def __call__(self, slab: Slab) -> xr.Dataset:
        coef, intercept = self.coef[slab.position], self.intercept[slab.position]  # (T, P, D), (T, P)
        out = np.full((*intercept.shape, self.entities), np.nan, np.float32)
        for rows, x in slab.blocks():
            if self.normalize:
                x = x / np.linalg.norm(x, axis=-1, keepdims=True)
            along = np.einsum("ntd,tpd->tpn", x, coef, optimize=True)
            if self.joint:
                along = along.sum(axis=0, keepdims=True)
            out[:, :, rows] = along + intercept[:, :, None]
        dims = ("token", "pair", "entity")
        return xr.Dataset({"score": (dims[1:], out[0]) if self.joint else (dims, out)})


def _apply(probes: xr.Dataset, ds: Data, used: Mask, options: RunOptions) -> xr.DataArray:
    """Score the used rows of other data by the refitted probes."""
    source = SiteData(_select_places(probes, ds), str(probes.attrs.get("site", "resid_post")))
    coef, features = vectors(probes)
    joint = "token" in features
    places = ("stage", "layer", "token", "pair")
    absent = {d: 1 for d in places[:3] if d not in coef.dims}
    coef = coef.expand_dims(absent).transpose(*places, *(d for d in features if d != "token"))
    intercept = probes["intercept"].expand_dims(absent | ({"token": 1} if joint else {})).transpose(*places)
    function = _ProbeScores(
        coef.values.reshape(*coef.shape[:4], -1).astype(np.float32),
        intercept.values.astype(np.float32),
        source.array.sizes["entity"],
        bool(probes.attrs.get("normalize", False)),
        joint,
    )
    rows = source.rows(options.skip_missing, used)
    params = {"coef": function.coef, "intercept": function.intercept, "normalize": function.normalize}
    result = run_slabs(source, function, rows=rows, name="generalise", params=params, options=options)
    pairs = {k: c.variable for k, c in probes.coords.items() if c.dims == ("pair",)}
    return result["score"].assign_coords(pairs)


def _select_places(probes: xr.Dataset, ds: Data) -> Data:
    """Select the stages, layers and tokens of the probes from other data.

    Raises:
        InputError: a place of the probes is missing from the data, or the two differ in the number of places.
    """
    for dim in ("stage", "layer", "token"):
        if dim in probes.coords and dim in ds.coords:
            wanted, available = (np.atleast_1d(data[dim].values) for data in (probes, ds))
            missing = [v for v in wanted.tolist() if v not in available.tolist()]
            if missing:
                hint = suggest(str(missing[0]), map(str, available))
                raise InputError(f"{dim} {missing[0]!r} of the probes is missing from the data: {hint}")
            if dim in ds.dims:
                ds = ds.sel({dim: wanted if dim in probes.dims else wanted[0]})
        probed, present = (int(data.sizes.get(dim, 1)) for data in (probes, ds))
        if probed != present and not (dim == "token" and probes.attrs.get("tokens") == "joint"):
            raise InputError(
                f"number of {dim}s: the probes have {probed}, the data has {present}; narrow it with .isel({dim}=...)"
            )
    return ds


def _unseen(probes: xr.Dataset, ds: Data) -> Mask:
    """Rows of `ds` about entities that no probe was fitted on."""
    if "entity_id" in probes.coords and "entity_id" in ds.coords:
        seen = probes["entity_id"].values
        seen = seen[probes["entity_fold"].values >= 0] if "entity_fold" in probes else seen
        return ~np.isin(as_text(ds["entity_id"].values), as_text(seen))
    if "entity" in probes.coords and "entity" in ds.coords:
        # An index of the data that is called entity may hold the entity ids of the probes.
        names = [name for name in ("entity", "entity_id") if name in probes.coords]
        seen = np.concatenate([as_text(probes[name].values) for name in names])
        return ~np.isin(as_text(ds["entity"].values), seen)
    raise InputError("cannot tell which entities the probes have seen; both need the coordinate entity_id or entity")


def _order_outside(probes: xr.Dataset, mean: Array, names: list[str]) -> Array:
    """Spearman's correlation of the mean scores with group order, over the groups outside the pair."""
    out = np.full(mean.shape[:-1], np.nan)
    if "pair_first" not in probes.coords:
        return out
    ends = zip(probes["pair_first"].values, probes["pair_second"].values, strict=True)
    for p, pair in enumerate(ends):
        others = [i for i, name in enumerate(names) if name not in {str(e) for e in pair}]
        if len(others) > 2:
            scores = mean[..., p, :][..., others]
            out[..., p] = np.where(np.isnan(scores).any(axis=-1), np.nan, spearman(scores))
    return out


def _nanmean(values: Array) -> Array:
    known = ~np.isnan(values)
    return np.asarray(np.where(known, values, 0).sum(axis=0) / known.sum(axis=0))
