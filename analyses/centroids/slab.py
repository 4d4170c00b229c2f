"""What the centroid verbs compute on one slab: group means, and the held-out geometry with its resamples.

Functions of one slab, picklable for a cluster. Labels and assembly are in centroids.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr

from stratalens.analyses.centroids.projection import STATISTICS, coordinates, gram, inner_products, statistics
from stratalens.analyses.centroids.resampling import Slots, halves
from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.stats.bootstrap import interval, p_value
from stratalens.store.errors import InputError

ROWS = 512  # rows that are summed in float32 before they are added up in float64


COORDINATE_DRAWS = 250  # at least so many resamples for intervals of coordinates, whose planes cost most


BOUNDS = {"r2": (0.0, 1.0), "exact_order": (0.0, 1.0)}


@dataclass
class GroupMeans:
    """Means of groups from one pass over the blocks of a slab."""

    codes: Array
    groups: int
    normalize: str

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Centroids (token, group, features) of one slab."""
        _, tokens, features = slab.shape
        total = np.zeros((self.groups, tokens * features), np.float64)
        for rows, values in slab.blocks():
            if self.normalize == "activations":
                values = unit(values)
            flat, codes = values.reshape(len(rows), -1), self.codes[rows]
            with np.errstate(invalid="ignore", over="ignore"):  # looked for below
                for start in range(0, len(flat), ROWS):
                    part = flat[start : start + ROWS]
                    total += _member(codes[start : start + ROWS], self.groups) @ part
        if not np.isfinite(total).all():
            find_nonfinite(slab)
        mean = total / np.bincount(self.codes[slab.rows], minlength=self.groups)[:, None]
        mean = np.moveaxis(mean.reshape(self.groups, tokens, features), 0, 1)
        if self.normalize == "centroids":
            mean = unit(mean)
        shape = (tokens, self.groups, *slab.feature_shape)
        return xr.Dataset(
            {"centroid": (("token", "group", *slab.feature_dims), mean.reshape(shape).astype(np.float32))},
            coords={d: slab.array.coords[d].variable for d in slab.feature_dims if d in slab.array.coords},
        )


def _member(codes: Array, groups: int) -> Any:
    """One-hot (group, row) as a sparse matrix by columns: its product reads every row once, sums stay in the cache."""
    n = len(codes)
    return scipy.sparse.csc_array((np.ones(n, np.float32), codes, np.arange(n + 1)), shape=(groups, n))


@dataclass
class Projection:
    """Held-out geometry of one slab, all tokens, with intervals and nulls."""

    codes: Array
    units: Array
    groups: int
    axis: tuple[int, int]
    normalize: str
    holdout: float
    repeats: int
    permutations: int
    bootstrap: int
    seed: int

    def __call__(self, slab: Slab) -> xr.Dataset:
        """All estimates (token), their intervals, p-values and null means, and coordinates, of one slab."""
        sums, counts, labels, constant = self._entity_sums(slab)
        split, boot, shuffle = (np.random.default_rng(s) for s in np.random.SeedSequence(self.seed).spawn(3))
        parts = halves(self.holdout, self.repeats, split)
        slots = Slots(labels, self.groups, parts, split)
        tokens, features = sums.shape[1:]
        # The number of rows rides along as one more column, so that it is resampled like everything else.
        table = np.concatenate([sums.reshape(len(sums), -1), counts[:, None]], axis=1).astype(np.float32)

        def measure(slot_sums: Array, places: bool) -> tuple[dict[str, Array], Array | None]:
            """Statistics (draws, token) and coordinates (draws, token, group, 2), averaged over divisions."""
            draws, Q, S, _ = slot_sums.shape
            flat = slot_sums[:, 0] if Q == 1 else slot_sums.reshape(draws * Q, S, -1)
            rows = flat[..., -1].astype(np.float64)
            kinds: dict[str, list[Array]] = {name: [] for name in STATISTICS}
            where = []
            for t in range(tokens):
                g = gram(flat[..., t * features : (t + 1) * features])
                inner = inner_products(g, rows, parts, unit=self.normalize == "centroids")
                for name, values in statistics(inner, *self.axis).items():
                    kinds[name].append(values.reshape(draws, Q).mean(axis=1))
                if places:
                    where.append(coordinates(inner, *self.axis).reshape(draws, Q, self.groups, 2).mean(axis=1))
            return {k: np.stack(v, axis=1) for k, v in kinds.items()}, np.stack(where, axis=1) if places else None

        found, place = measure(slots.observed(table)[None], True)
        assert place is not None
        estimate = {name: values[0] for name, values in found.items()} | {"coordinate": place[0]}
        drawn: dict[str, list[Array]] = {name: [] for name in estimate}
        for batch in slots.bootstrap(table, self.bootstrap, boot):
            part, where = measure(batch, sum(map(len, drawn["coordinate"])) < COORDINATE_DRAWS)
            for name, values in (part | ({} if where is None else {"coordinate": where})).items():
                drawn[name].append(values)
        null: dict[str, list[Array]] = {name: [] for name in STATISTICS}
        for batch in slots.permuted(table, self.permutations, shuffle):
            for name, values in measure(batch, False)[0].items():
                null[name].append(values)
        out = {}
        for name, value in estimate.items():
            dims = ("token", "group", "component") if name == "coordinate" else ("token",)
            value[constant] = np.nan
            out[name] = (dims, value)
            if self.bootstrap:
                bounds = (-np.inf, np.inf) if name == "coordinate" else BOUNDS.get(name, (-1.0, 1.0))
                low, high = interval(np.concatenate(drawn[name]), value, bounds=bounds)
                out[f"{name}_low"], out[f"{name}_high"] = (dims, low), (dims, high)
            if self.permutations and name != "coordinate":
                draws = np.concatenate(null[name])
                mean = np.where(constant, np.nan, draws.mean(axis=0))
                out[f"{name}_p"], out[f"{name}_null"] = (dims, p_value(draws, value)), (dims, mean)
        return xr.Dataset(out)

    def _entity_sums(self, slab: Slab) -> tuple[Array, Array, Array, Array]:
        """Per-entity sums (E, token, feature), rows (E,), labels (E,), and which tokens are constant (token,)."""
        used, where = np.unique(self.units[slab.rows], return_inverse=True)
        counts = np.bincount(where)
        labels = np.empty(len(used), np.int64)
        labels[where] = self.codes[slab.rows]
        single = bool((counts == 1).all())
        sums = np.zeros((len(used), *slab.shape[1:]), np.float32)
        done, shift, square = 0, None, np.zeros(slab.shape[1])
        for rows, values in slab.blocks():
            if self.normalize == "activations":
                values = unit(values)
            with np.errstate(invalid="ignore", over="ignore"):  # looked for below
                square += np.einsum("ntd,ntd->t", values, values)
            if not np.isfinite(square).all():
                find_nonfinite(slab)
            if shift is None:  # any vector near the mean keeps float32 sums from cancelling
                near_mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
                shift = near_mean if self.normalize != "centroids" else np.zeros_like(near_mean)
            target = where[done : done + len(rows)]
            if single:
                sums[target] = values - shift
            else:
                order = np.argsort(target, kind="stable")
                starts = np.flatnonzero(np.diff(target[order], prepend=-1))
                sums[target[order][starts]] += np.add.reduceat((values - shift)[order], starts, axis=0)
            done += len(rows)
        centre = sums.mean(axis=0) * (self.normalize == "centroids")
        spread = np.einsum("ntd,ntd->t", sums - centre, sums - centre)
        return sums, counts, labels, spread <= 1e-9 * np.maximum(square, 1e-30)


def unit(values: Array) -> Array:
    """Vectors of the last axis scaled to unit length; zero vectors stay zero."""
    norm = np.sqrt(np.einsum("...d,...d->...", values, values))[..., None]
    return np.asarray(values / np.where(norm == 0, 1, norm))


def find_nonfinite(slab: Slab) -> None:
    """Raise naming the first NaN or infinity of a slab whose sums are not finite."""
    for rows, values in slab.blocks():
        slab.refuse_nonfinite(values, rows)
    raise InputError(f"{slab.where}: sums overflow float32; the activations are too large (normalize=True may help)")
