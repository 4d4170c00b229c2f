"""Principal angles between subspaces, and Procrustes alignment of one checkpoint with another."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import scipy.linalg
import xarray as xr

from stratalens.analyses.data.array_types import Array, Data, Mask
from stratalens.analyses.data.groups import clusters
from stratalens.analyses.data.results import vectors
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.run import RunOptions, run_slabs
from stratalens.store.errors import InputError, suggest


def principal_angles(first: Data, second: Data, span: str = "pair") -> xr.DataArray:
    """Compute the principal angles between the subspaces that two sets of vectors span.

    Björck and Golub (1973), as `scipy.linalg.subspace_angles`.

    Args:
        first: vectors along `span`, e.g. the probes of all pairs at one layer, or centred centroids (span="group").
        second: vectors with the same features; all other dims are matched by label.
        span: dim whose vectors span the subspace; its size may differ between the two.

    Returns:
        DataArray:

        - principal_angle (..., angle): float64, radians from 0 to pi/2, smallest first; NaN where a vector is not
          finite.

    Raises:
        InputError: no such dim, or more vectors than features.

    Example:
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
    """Align every checkpoint with a reference by a rotation: orthogonal Procrustes, layer by layer.

    The rotation is fitted on half of the entities and evaluated on the other half, because its d x d free numbers
    always fit the rows they were fitted on.

    Args:
        ds: Dataset or DataArray with at least two stages.
        reference: stage that the others are aligned with; None = the last.
        site: variable to read.
        groups: column with the entity of each row.
        seed: of the split.
        skip_missing: use only rows recorded at all stages.
        cache: see `RunOptions`.
        scheduler: see `RunOptions`.
        workers: see `RunOptions`.
        progress: see `RunOptions`.

    Returns:
        Dataset:
        - explained (stage, layer, token): float64, R2 of the reference by the activations as they are.
        - explained_aligned (stage, layer, token): float64, R2 by the rotated activations; each half is centred on its
          own mean, and the scale does not change.
        - rotation (stage, layer, token): float64, root mean square angle of the rotation in the data's row space, in
          - radians (0: no rotation).

    Raises:
        InputError: fewer than two stages, an unknown reference, or fewer than four entities.
        NotRecordedError: unrecorded rows.
        NonFiniteError: NaN or infinity among the activations.
    """
    source = SiteData(ds, site)
    names = source.labels("stage")
    if len(names) < 2:
        raise InputError("procrustes compares stages; the data has one. Do not narrow the stages before the call")
    texts = [str(name) for name in names]
    if reference is not None and str(reference) not in texts:
        raise InputError(f"reference={reference!r} is no stage: {suggest(str(reference), texts)}")
    index = -1 if reference is None else texts.index(str(reference))
    index %= len(names)
    common = reduce(np.intersect1d, source.rows(skip_missing))
    units = clusters(ds, groups)
    entities = np.random.default_rng(seed).permutation(np.unique(units[common]))
    if len(entities) < 4:
        raise InputError(f"procrustes needs at least four entities that all stages have; there are {len(entities)}")
    fit = np.isin(units, entities[: len(entities) // 2])
    result = run_slabs(
        source,
        _Align(source.array[index], names[index], fit),
        rows=[common] * len(names),
        name="procrustes",
        params={"reference": index, "fit": fit},
        options=RunOptions(skip_missing, cache, scheduler, workers, progress),
    )
    return result.assign_attrs({**source.attrs(), "reference": texts[index], "seed": seed})


@dataclass
class _Align:
    """Function of a slab: its alignment with the same layer of the reference stage."""

    reference: xr.DataArray
    name: Hashable
    fit: Mask

    def __call__(self, slab: Slab) -> xr.Dataset:
        other = Slab(self.reference[slab.position[1]], self.name, slab.layer, slab.position, slab.rows)
        x, y = slab.values(), other.values()
        slab.refuse_nonfinite(x)
        other.refuse_nonfinite(y)
        fit = self.fit[slab.rows]
        tokens = [_align(x[:, t], y[:, t], fit) for t in range(x.shape[1])]
        explained, explained_aligned, rotation = np.array(tokens).T
        return xr.Dataset(
            {
                "explained": (("token",), explained),
                "explained_aligned": (("token",), explained_aligned),
                "rotation": (("token",), rotation, {"units": "rad"}),
            }
        )


def _align(x: Array, y: Array, fit: Mask) -> tuple[float, float, float]:
    """R2 of y by x and by rotated x on held-out rows, and the rms angle of the rotation."""
    (a, b), (a_out, b_out) = ((_centred(x[rows]), _centred(y[rows])) for rows in (fit, ~fit))
    total, energy = float((b_out**2).sum()), (a_out**2).sum(axis=1)
    if total == 0:
        return np.nan, np.nan, np.nan
    rotation, _ = scipy.linalg.orthogonal_procrustes(a, b)
    rotated = a_out @ rotation
    explained, explained_aligned = (1 - float(((b_out - m) ** 2).sum()) / total for m in (a_out, rotated))
    # Angle between each held-out row and its image, weighted by its share of the energy.
    length = np.maximum(energy, np.finfo(float).tiny)
    angle = np.arccos(np.clip((a_out * rotated).sum(axis=1) / length, -1, 1))
    # Without any energy all rows are equal, and the angle is undefined.
    rms = float(np.sqrt((energy * angle**2).sum() / energy.sum())) if energy.any() else np.nan
    return explained, explained_aligned, rms


def _centred(rows: Array) -> Array:
    rows = rows.astype(np.float64)
    return np.asarray(rows - rows.mean(axis=0))
