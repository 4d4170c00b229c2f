"""Single rows in the plane of training-order recency, from a store: one slab is read, nothing more."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.labels import groups as label_groups
from stratalens.analyses.plots.hv_backend import to_holoviews
from stratalens.analyses.plots.palette import stage_colors, trained_order
from stratalens.analyses.plots.picture import Axis, Mark, Picture, Place, Table, padded, plain, values_of
from stratalens.store.errors import InputError, near

MAX_POINTS = 20_000


def entity_plane(
    ds: xr.Dataset,
    by: str = "trained_stage",
    site: str = "resid_post",
    seed: int = 0,
    **place: Hashable,
) -> xr.Dataset:
    """Project single rows into (w1, w2) made from the other half of the entities.

    Args:
        ds: open store; `site` is read at one stage, layer and token.
        by: label column of the groups.
        site: variable with activations.
        seed: which half of the entities the axes are made from.
        place: stage=, layer=, token=; what is not named is taken at its last value.

    Returns:
        Dataset `coordinate` (entity, component) in activation units for the rows of the held-out half,
        with coords group, entity_id and label columns; attributes site, by, stage, layer, token.

    w1 = unit(mean of last group - mean of first group); w2 = first principal component of the group
    means without w1 (Krasheninnikov, Turner, Krueger 2025).
    """
    if site not in ds:
        raise InputError(f"entity_plane: no site {site!r}; {near(site, map(str, ds.data_vars))}")
    array = ds[site]
    chosen: Place = {}
    for dim in ("stage", "layer", "token"):
        if dim not in array.dims:
            continue
        values = values_of(array, dim)
        chosen[dim] = place.get(dim, values[-1])
        if chosen[dim] not in values:
            raise InputError(f"entity_plane: no {dim} {chosen[dim]!r}; {near(str(chosen[dim]), map(str, values))}")
        array = array.isel({dim: list(array[dim].values.tolist()).index(chosen[dim])})
    slab = array.values.reshape(array.sizes["entity"], -1).astype(np.float64)
    found = label_groups(ds, by)
    codes = np.asarray(found.codes)
    fitted = _half(ds, seed) & (codes >= 0)
    if any(not (fitted & (codes == g)).any() for g in range(len(found.names))):
        raise InputError(f"entity_plane: a group of {by!r} has no entity in one of the halves; take another seed")
    means = np.stack([slab[fitted & (codes == g)].mean(0) for g in range(len(found.names))])
    w1 = means[-1] - means[0]
    w1 /= np.linalg.norm(w1)
    centred = means - means.mean(0)
    centred -= np.outer(centred @ w1, w1)
    w2 = np.linalg.svd(centred, full_matrices=False)[2][0]
    w2 -= (w2 @ w1) * w1
    w2 /= np.linalg.norm(w2)
    if centred[len(means) // 2] @ w2 < 0:
        w2 = -w2
    shown = ~fitted & (codes >= 0)
    coords = {k: v[shown] if v.dims == ("entity",) else v for k, v in ds.coords.items() if v.dims == ("entity",)}
    result = xr.Dataset(
        {"coordinate": (("entity", "component"), slab[shown] @ np.stack([w1, w2], 1))},
        coords={**coords, "component": np.array(["w1", "w2"], dtype=object)},
        attrs={"site": site, "by": by, "seed": seed, **{k: str(v) for k, v in chosen.items()}},
    )
    result["group"] = ("entity", np.asarray(found.names, dtype=object)[codes[shown]])
    result = result.set_coords("group")
    trained, untrained = trained_order(ds.assign_coords(group=np.asarray(found.names, dtype=object)))
    result.attrs["trained"], result.attrs["untrained"] = trained, untrained
    return result


def _half(ds: xr.Dataset, seed: int) -> np.ndarray:
    """True for rows of the entities that the axes are made from: half of the entities, whole entities only."""
    entities, index = np.unique(np.asarray(ds["entity_id"].values, dtype=str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(entities))
    chosen = np.zeros(len(entities), dtype=bool)
    chosen[order[: len(entities) // 2]] = True
    return chosen[index]


def entity_scatter_picture(plane: xr.Dataset) -> Picture:
    """Describe `entity_scatter` without drawing it."""
    xy = plane["coordinate"].transpose("entity", "component").values.astype(float)
    group = [str(g) for g in plane["group"].values]
    tint = stage_colors(list(dict.fromkeys(group)), plane.attrs["trained"], plane.attrs["untrained"])
    columns: Table = {"x": xy[:, 0], "y": xy[:, 1], "color": [tint[g] for g in group]}
    columns["group"] = [plain(g) for g in group]
    hover = {"group": "group"}
    for name in ("entity_id", "template", "prompt"):
        if name in plane.coords:
            columns[name] = [plain(v, 120) for v in plane[name].values]
            hover[name] = name
    hover |= {"x": "w1", "y": "w2"}
    x0, x1 = padded(float(xy[:, 0].min()), float(xy[:, 0].max()))
    y0, y1 = padded(float(xy[:, 1].min()), float(xy[:, 1].max()))
    return Picture(
        name="entity_scatter",
        title="Single rows in the recency plane",
        x=Axis("w1: from the first group to the last (activation units)"),
        y=Axis("w2: widest direction beside w1 (activation units)"),
        marks=[Mark("rows", "points", hover=hover, size=5, alpha=0.6)],
        tables=lambda place: {"rows": columns},
        limits=lambda place: (x0, x1, y0, y1),
        fixed={d: plane.attrs[d] for d in ("stage", "layer", "token") if d in plane.attrs},
        site=plain(plane.attrs["site"]),
        height=440,
        legend={plain(g): c for g, c in tint.items()},
    )


def entity_scatter(ds: xr.Dataset, by: str = "trained_stage", site: str = "resid_post", **place: Hashable) -> Any:
    """Draw held-out rows in the recency plane, coloured by group, with hover.

    Args:
        ds: an open store, or the result of `entity_plane`.
        by: label column of the groups.
        site: variable with activations.
        place: stage=, layer=, token=; what is not named is taken at its last value.

    Returns:
        HoloViews object; above 20,000 rows they are rasterised by datashader, which has to be installed
        (extra `explore`).
    """
    plane = ds if "coordinate" in ds else entity_plane(ds, by, site, 0, **place)
    picture = entity_scatter_picture(plane)
    if plane.sizes["entity"] <= MAX_POINTS:
        return to_holoviews(picture)
    try:
        from holoviews.operation.datashader import datashade, dynspread
    except ImportError as error:
        raise InputError(
            "entity_scatter: above 20,000 rows it needs datashader: pip install 'stratalens[explore]'"
        ) from error
    import datashader
    import holoviews as hv

    table = picture.tables({})["rows"]
    points = hv.Points((table["x"], table["y"], table["group"]), ["x", "y"], ["group"])
    shaded = dynspread(datashade(points, aggregator=datashader.count_cat("group"), color_key=dict(picture.legend)))
    x0, x1, y0, y1 = picture.limits({})
    return shaded.opts(
        title=picture.heading({}), xlabel=picture.x.label, ylabel=picture.y.label, xlim=(x0, x1), ylim=(y0, y1)
    )
