"""Subspaces and rotations: principal angles, and Procrustes alignment of one checkpoint with another.

Directions themselves are in directions.py.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import xarray as xr

from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.data.groups import clusters
from stratalens.analyses.data.results import vectors
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.run import run_slabs
from stratalens.store.errors import InputError, suggest


def principal_angles(
    first: xr.Dataset | xr.DataArray, second: xr.Dataset | xr.DataArray, span: str = "pair"
) -> xr.DataArray:
    """Principal angles between the subspaces that two sets of vectors span.

    Args:
        first: vectors along `span`, e.g. the probes of all pairs at one layer, or centred centroids (span="group").
        second: vectors with the same features; all other dims are matched by label.
        span: dim whose vectors span the subspace; its size may differ between the two.

    Returns:
        DataArray (..., angle) in radians from 0 to pi/2, smallest first. Björck and Golub (1973), as
        `scipy.linalg.subspace_angles`.

    Raises:
        InputError: no such dim, or more vectors than features.

    >>> a = xr.DataArray(np.eye(3)[:2], dims=("pair", "d_model"))
    >>> b = xr.DataArray(np.eye(3)[1:], dims=("pair", "d_model"))
    >>> principal_angles(a, b).values.round(4).tolist()
    [0.0, 1.5708]
    """
    (a, features), (b, _) = vectors(first), vectors(second)
    for array in (a, b):
        if span not in array.dims:
            raise InputError(f"span={span!r} is no dim of the vectors: {suggest(span, map(str, array.dims))}")
        size = int(np.prod([array.sizes[d] for d in features]))
        if array.sizes[span] > size:
            raise InputError(f"{array.sizes[span]} vectors along {span!r} in {size} features span everything")

    def angles(x: Array, y: Array) -> Array:
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return np.full(min(len(x), len(y)), np.nan)
        flat_x, flat_y = (v.reshape(len(v), -1).T.astype(np.float64) for v in (x, y))
        return np.sort(scipy.linalg.subspace_angles(flat_x, flat_y))

    core: list[list[Hashable]] = [[span, *features], [f"{span}_other", *features]]
    out: xr.DataArray = xr.apply_ufunc(
        angles,
        a.drop_vars([c for c in a.coords if span in a[c].dims]),
        b.drop_vars([c for c in b.coords if span in b[c].dims]).rename({span: f"{span}_other"}),
        input_core_dims=core,
        output_core_dims=[["angle"]],
        vectorize=True,
        join="exact",
    )
    return out.rename("principal_angle").assign_attrs(units="rad", span=span)


def procrustes(
    ds: Data,
    reference: object = None,
    site: str = "resid_post",
    *,
    groups: str = "entity_id",
    seed: int = 0,
    skip_missing: bool = False,
    cache: str | bool | None = None,
    scheduler: Any = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """How much of a checkpoint is a rotation of another one: orthogonal Procrustes alignment, layer by layer.

    The rotation is fitted on half of the entities and judged on the other half, as d x d free numbers always fit
    what they were fitted on.

    Args:
        ds: Dataset or DataArray with at least two stages.
        reference: stage that the others are aligned with; None = the last.
        site: variable to read.
        groups: column that says which rows are about the same entity.
        seed: of the split.
        skip_missing: use only rows recorded at all stages.
        cache: see `run_slabs`.
        scheduler: see `run_slabs`.
        workers: see `run_slabs`.
        progress: see `run_slabs`.

    Returns:
        Dataset over (stage, layer, token): explained: R2 of the reference by the activations as they are;
        explained_aligned: by rotating them (both parts centred on their half's means, scale kept); rotation:
        root mean square angle of the rotation in the data's row space, in radians (0: nothing turned).

    Raises:
        InputError: fewer than two stages, or an unknown reference.
    """
    source = SiteData(ds, site)
    stages, _ = source.shape
    if stages < 2:
        raise InputError("procrustes compares stages; the data has one. Do not narrow them before the call")
    names = [source.label("stage", i) for i in range(stages)]
    if reference is not None and str(reference) not in map(str, names):
        raise InputError(f"reference={reference!r} is no stage: {suggest(str(reference), map(str, names))}")
    index = stages - 1 if reference is None else [str(n) for n in names].index(str(reference))
    rows = source.rows(skip_missing)
    common = rows[0]
    for more in rows[1:]:
        common = np.intersect1d(common, more)
    units = clusters(ds, groups)
    chosen = np.random.default_rng(seed).permutation(np.unique(units[common]))
    fit = np.isin(units, chosen[: len(chosen) // 2])
    if len(chosen) < 4:
        raise InputError(f"procrustes needs at least four entities that all stages have; there are {len(chosen)}")
    function = _Align(source.array[index], names[index], fit)
    result = run_slabs(
        source,
        function,
        rows=[common] * stages,
        name="procrustes",
        params={"reference": index, "fit": fit},
        cache=cache,
        scheduler=scheduler,
        workers=workers,
        progress=progress,
    )
    return result.assign_attrs({**source.attrs(), "reference": str(names[index]), "seed": seed})


@dataclass
class _Align:
    """Alignment of one slab with the same layer of the reference stage."""

    reference: xr.DataArray
    name: Hashable
    fit: Array

    def __call__(self, slab: Slab) -> xr.Dataset:
        other = Slab(self.reference[slab.position[1]], self.name, slab.layer, slab.position, slab.rows)
        x, y = slab.values(), other.values()
        slab.refuse_nonfinite(x)
        other.refuse_nonfinite(y)
        fit = self.fit[slab.rows]
        table = [_aligned(x[:, t], y[:, t], fit) for t in range(x.shape[1])]
        names = ("explained", "explained_aligned", "rotation")
        units = {"rotation": {"units": "rad"}}
        return xr.Dataset(
            {n: (("token",), np.array([row[k] for row in table]), units.get(n, {})) for k, n in enumerate(names)}
        )


def _aligned(x: Array, y: Array, fit: Array) -> tuple[float, float, float]:
    """R2 of y by x and by rotated x on held-out rows, and the rms angle of the rotation."""
    parts = []
    for rows in (fit, ~fit):
        a, b = x[rows].astype(np.float64), y[rows].astype(np.float64)
        parts.append((a - a.mean(axis=0), b - b.mean(axis=0)))
    (a, b), (a_out, b_out) = parts
    total, energy = float((b_out**2).sum()), (a_out**2).sum(axis=1)
    if total == 0:
        return (np.nan,) * 3
    rotation, _ = scipy.linalg.orthogonal_procrustes(a, b)
    plain, turned = (1 - float(((b_out - m) ** 2).sum()) / total for m in (a_out, a_out @ rotation))
    # Angle between each held-out row and its image, by its share of the energy.
    length = np.maximum(energy, np.finfo(float).tiny)
    angle = np.arccos(np.clip((a_out * (a_out @ rotation)).sum(axis=1) / length, -1, 1))
    # Nothing turns where all rows are the same.
    rotated = float(np.sqrt((energy * angle**2).sum() / energy.sum())) if energy.any() else np.nan
    return plain, turned, rotated
