"""What a probe of one pair says of all the other groups: does training order hold beyond the pair it learned?

Uses scores that `probe` made out of fold, or applies refitted probes to entities
they never saw. Relations between the directions themselves are in directions.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.projection import spearman
from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.data.groups import clusters, groups
from stratalens.analyses.data.results import carried_attrs, vectors
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.stats.bootstrap import cluster_bootstrap
from stratalens.analyses.sweep.run import run_slabs
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
) -> xr.DataArray:
    """Mean score of every group along each probe, on entities the probe never saw: train on one pair, look at all.

    Where `ds` holds the entities of the probes, their out-of-fold scores are used and nothing is read; for other
    data the probes refitted on everything are applied, to entities whose entity_id they never saw.

    Args:
        probes: result of `probe` with pairs (not "multiclass").
        ds: the data the probes were made from, or other data with the same site, stages and layers.
        by: label column to group by; None = the probes' target.
        draws: resamples of entities for the intervals.
        seed: of the resamples.
        skip_missing: leave unrecorded rows of other data out.
        cache: see `run_slabs`.
        scheduler: see `run_slabs`.
        workers: see `run_slabs`.
        progress: see `run_slabs`.

    Returns:
        DataArray (stage, layer, token, pair, group), score units (positive = the pair's second group), with the
        coordinates low, high (95 %, cluster bootstrap) of the same dims, and order_kept (stage, layer, token, pair):
        Spearman's correlation of the means with the order of the groups outside the pair, NaN where under three.
    """
    if "score" not in probes or "pair" not in probes["score"].dims:
        raise InputError("generalise needs the scores of probe(ds, ...) with pairs, not 'multiclass'")
    by = by or str(probes.attrs.get("target", "trained_stage"))
    found = groups(ds, by)
    if _same_rows(probes, ds):
        score = probes["score"]
        used = np.asarray(found.codes >= 0)
    else:
        used = _unseen(probes, ds) & (found.codes >= 0)
        if not used.any():
            raise InputError("the probes have seen every entity of this data; give data about other entities")
        score = _applied(probes, ds, used, skip_missing, {
            "cache": cache, "scheduler": scheduler, "workers": workers, "progress": progress,
        })  # fmt: skip
    names = [d for d in ("stage", "layer", "token", "pair") if d in score.dims]
    values = score.transpose("entity", *names).values.astype(np.float64)
    units = clusters(ds)
    table = []
    for g in range(len(found)):
        rows_g = np.flatnonzero(used & (found.codes == g))
        if len(rows_g) == 0:
            table.append([np.full(values.shape[1:], np.nan)] * 3)
            continue
        low, high = cluster_bootstrap(values[rows_g], units[rows_g], draws=draws, seed=seed)
        with np.errstate(invalid="ignore"):
            table.append([_nanmean(values[rows_g]), low, high])
    mean, low, high = (np.stack([entry[k] for entry in table], axis=-1) for k in range(3))
    dims = (*names, "group")
    coords = {k: c for k, c in score.coords.items() if "entity" not in c.dims}
    out = xr.DataArray(mean, dims=dims, coords=coords, name="mean_score").assign_coords(group=found.names)
    out = out.assign_coords(low=(dims, low), high=(dims, high))
    out = out.assign_coords(order_kept=(tuple(names), _order_outside(probes, mean, [str(n) for n in found.names])))
    return out.assign_attrs({**carried_attrs(probes), "by": by})


def _same_rows(probes: xr.Dataset, ds: Data) -> bool:
    """Whether the rows of `ds` are those that the probes were made from, as far as labels tell."""
    if probes.sizes["entity"] != ds.sizes["entity"] or ("entity" in probes.coords) != ("entity" in ds.coords):
        return False
    shared = [str(name) for name, c in probes.coords.items() if c.dims == ("entity",) and name in ds.coords]
    # Where nothing says which rows they are, what else is said of them does.
    names = [name for name in ("entity", "entity_id") if name in shared] or shared
    return all(probes[name].values.tolist() == ds[name].values.tolist() for name in names)


class _Apply:
    """Scores of the probes on one slab, (token, pair, entity), NaN for rows that are not used."""

    def __init__(self, coef: Array, intercept: Array, entities: int, normalize: bool, joint: bool) -> None:
        self.coef, self.intercept, self.entities, self.normalize = coef, intercept, entities, normalize
        self.joint = joint  # one score of all tokens together

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


def _applied(probes: xr.Dataset, ds: Data, used: Array, skip_missing: bool, options: Mapping[str, Any]) -> xr.DataArray:
    for dim in ("stage", "layer", "token"):
        if dim in probes.coords and dim in ds.coords:
            wanted, have = (np.atleast_1d(data[dim].values) for data in (probes, ds))
            lacking = [v for v in wanted.tolist() if v not in have.tolist()]
            if lacking:
                told = suggest(str(lacking[0]), map(str, have))
                raise InputError(f"the data lacks {dim} {lacking[0]!r} of the probes: {told}")
            if dim in ds.dims:
                ds = ds.sel({dim: wanted if dim in probes.dims else wanted[0]})
        mine, theirs = (int(data.sizes.get(dim, 1)) for data in (probes, ds))
        if mine != theirs and not (dim == "token" and probes.attrs.get("tokens") == "joint"):
            raise InputError(f"the probes are of {mine} {dim}s, the data has {theirs}; narrow it with .isel({dim}=...)")
    source = SiteData(ds, str(probes.attrs.get("site", "resid_post")))
    coef, features = vectors(probes)
    full = {d: 1 for d in ("stage", "layer", "token") if d not in coef.dims}
    joint, places = "token" in features, ("stage", "layer", "token", "pair")
    features = [d for d in features if d != "token"]
    coef = coef.expand_dims(full).transpose(*places, *features)
    full |= {"token": 1} if joint else {}
    intercept = probes["intercept"].expand_dims(full).transpose(*places)
    function = _Apply(
        coef.values.reshape(*coef.shape[:4], -1).astype(np.float32),
        intercept.values.astype(np.float32),
        source.array.sizes["entity"],
        bool(probes.attrs.get("normalize", False)),
        joint,
    )
    rows = source.rows(skip_missing, used)
    params = {"coef": function.coef, "intercept": function.intercept, "normalize": function.normalize}
    result = run_slabs(source, function, rows=rows, name="generalise", params=params, **options)
    pairs = {k: c.variable for k, c in probes.coords.items() if c.dims == ("pair",)}
    return result["score"].assign_coords(pairs)


def _unseen(probes: xr.Dataset, ds: Data) -> Array:
    """Rows of `ds` about entities that no probe was fitted on."""
    if "entity_id" in probes.coords and "entity_id" in ds.coords:
        seen = probes["entity_id"].values
        seen = seen[probes["entity_fold"].values >= 0] if "entity_fold" in probes else seen
        return ~np.isin(ds["entity_id"].values.astype(str), seen.astype(str))
    if "entity" in probes.coords and "entity" in ds.coords:
        return ~np.isin(ds["entity"].values.astype(str), probes["entity"].values.astype(str))
    raise InputError("cannot tell which entities the probes have seen; both need the coordinate entity_id or entity")


def _order_outside(probes: xr.Dataset, mean: Array, names: list[str]) -> Array:
    """Spearman of the mean scores with group order, over the groups that are not of the pair."""
    out = np.full(mean.shape[:-1], np.nan)
    if "pair_first" not in probes.coords:
        return out
    ends = zip(probes["pair_first"].values, probes["pair_second"].values, strict=True)
    for p, pair in enumerate(ends):
        others = [i for i, name in enumerate(names) if name not in {str(e) for e in pair}]
        if len(others) > 2:
            part = mean[..., p, :][..., others]
            out[..., p] = np.where(np.isnan(part).any(axis=-1), np.nan, spearman(part))
    return out


def _nanmean(values: Array) -> Array:
    have = ~np.isnan(values)
    return np.asarray(np.where(have, values, 0).sum(axis=0) / have.sum(axis=0))
