"""Group means of one slab, and the held-out geometry of one slab with its resamples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr
from scipy.special import ndtri

from stratalens.analyses.centroids.jackknife import correlation_bounds, share_bounds, smallest_step
from stratalens.analyses.centroids.mixed_entities import MixedSlots
from stratalens.analyses.centroids.projection import (
    ORDER_STATISTICS,
    STATISTICS,
    coordinates,
    corrected_straightness,
    gram,
    inner_products,
    inner_ranks,
    principal_coordinates,
    principal_reference,
    statistics,
)
from stratalens.analyses.centroids.resampling import Halves, Slots, halves
from stratalens.analyses.centroids.steps import STEP_STATISTICS, step_geometry
from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.stats.bootstrap import LEVEL, interval
from stratalens.analyses.stats.permutation import p_value
from stratalens.store.errors import InputError

SUM_ROWS = 512  # rows that are summed in float32 before they are added in float64
COORDINATE_DRAWS = 250  # most bootstrap samples for intervals of coordinates, which cost most
LEAST_SIGNAL = 0.5  # least share of the squared deviation of centroids that is not noise, for a straightness without it
LEAST_STEP = 0.3  # least share of the squared length of a step that is not noise, for its angle to the next one
DIMS = {
    "coordinate": ("token", "group", "component"),
    "inner_rank": ("token", "group"),
    "step_square": ("token", "group"),
    "step_cosine": ("token", "group"),
}


@dataclass
class GroupMeans:
    """Function of a slab: means of groups from one pass over its blocks; a class, so that a cluster can pickle it.

    Attributes:
        codes: int64 array of shape (entity,), group of every row; -1 = in no group.
        groups: number of groups.
        normalize: "none", "activations" or "centroids".
    """

    codes: Array
    groups: int
    normalize: str

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Compute centroid (token, group, features) of one slab."""
        _, tokens, features = slab.shape
        total = np.zeros((self.groups, tokens * features), np.float64)
        for rows, values in slab.blocks():
            if self.normalize == "activations":
                values = to_unit_length(values)
            flat, codes = values.reshape(len(rows), -1), self.codes[rows]
            with np.errstate(invalid="ignore", over="ignore"):  # checked below
                for start in range(0, len(flat), SUM_ROWS):
                    chunk = slice(start, start + SUM_ROWS)
                    total += _one_hot(codes[chunk], self.groups) @ flat[chunk]
        if not np.isfinite(total).all():
            raise_nonfinite(slab)
        mean = total / np.bincount(self.codes[slab.rows], minlength=self.groups)[:, None]
        mean = np.moveaxis(mean.reshape(self.groups, tokens, features), 0, 1)
        if self.normalize == "centroids":
            mean = to_unit_length(mean)
        shape = (tokens, self.groups, *slab.feature_shape)
        return xr.Dataset(
            {"centroid": (("token", "group", *slab.feature_dims), mean.reshape(shape).astype(np.float32))},
            coords={d: slab.array.coords[d].variable for d in slab.feature_dims if d in slab.array.coords},
        )


def _one_hot(codes: Array, groups: int) -> Any:
    """One-hot matrix (group, row), sparse by columns: its product reads every row once, and the sums fit the cache."""
    n = len(codes)
    return scipy.sparse.csc_array((np.ones(n, np.float32), codes, np.arange(n + 1)), shape=(groups, n))


@dataclass
class Projection:
    """Function of a slab: held-out geometry of all tokens, with intervals and nulls; a class, so that it pickles.

    The cache identifies results by these attributes and their names.

    Attributes:
        codes: int64 array of shape (entity,), group of every row; -1 = in no group.
        units: int64 array of shape (entity,), entity of every row.
        groups: number of groups.
        axis: indices of the groups that define w1.
        normalize: "none", "activations" or "centroids".
        holdout: fraction of the entities to hold out.
        repeats: number of splits.
        permutations: number of permutations of labels.
        bootstrap: number of replicates of the jackknife, and of bootstrap samples up to `COORDINATE_DRAWS`; 0 = none.
        seed: of splits, bootstrap and permutations.
        ordered: measure the order of the groups; False leaves NaN in its place.
        principal: coordinates are those of principal components, not of `axis`.
        version: of the numbers, for the cache.
    """

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
    ordered: bool = True
    principal: bool = False
    version: int = 5

    def __call__(self, slab: Slab) -> xr.Dataset:
        """Compute all estimates (token), their intervals, p-values and null means, and coordinates of one slab."""
        units, codes = self.units[slab.rows], self.codes[slab.rows]
        mixed = has_mixed_entities(codes, units)
        sums, counts, labels, constant = self._unit_sums(slab, np.arange(len(units)) if mixed else units)
        split_rng, boot_rng, null_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(self.seed).spawn(3))
        splits = halves(self.holdout, self.repeats, split_rng)
        slots: Slots | MixedSlots
        if mixed:
            slots = MixedSlots(labels, np.unique(units, return_inverse=True)[1], self.groups, splits, split_rng)
        else:
            slots = Slots(labels, self.groups, splits, split_rng)
        # The number of rows is the last column, so that it is resampled like the sums.
        table = np.concatenate([sums.reshape(len(sums), -1), counts[:, None]], axis=1).astype(np.float32)
        tokens = sums.shape[1]

        observed = self._measure(slots.observed(table)[None], splits, tokens, with_coordinates=True, with_ranks=True)
        reference = observed.pop("reference", None)
        bounds: dict[str, tuple[Array, Array]] = {}
        if self.bootstrap:
            entities = min(len(np.unique(units[codes == g])) for g in range(self.groups))
            bounds = self._bounds(slots, table, splits, observed, boot_rng, reference, entities)
        tested = [name for name in STATISTICS if name in observed and name != "inner_rank_correlation"]
        null: dict[str, list[Array]] = {name: [] for name in tested}
        for batch in slots.permuted(table, self.permutations, null_rng):
            measured = self._measure(batch, splits, tokens, with_coordinates=False, corrected=False)
            for name in tested:
                null[name].append(measured[name])
        out = {}
        for name, observations in observed.items():
            dims = DIMS.get(name, ("token",))
            estimate = observations[0]
            estimate[constant] = np.nan
            out[name] = (dims, estimate)
            if name in bounds:
                low, high = (np.where(np.isnan(estimate), np.nan, bound) for bound in bounds[name])
                out[f"{name}_low"], out[f"{name}_high"] = (dims, low), (dims, high)
            if self.permutations and name in tested:
                draws = np.concatenate(null[name])
                mean = np.where(constant, np.nan, draws.mean(axis=0))
                out[f"{name}_p"], out[f"{name}_null"] = (dims, p_value(draws, estimate)), (dims, mean)
        return xr.Dataset(out if self.ordered else out | self._no_order(tokens))

    def _bounds(
        self,
        slots: Slots | MixedSlots,
        table: Array,
        splits: Halves,
        observed: dict[str, Array],
        rng: np.random.Generator,
        reference: Array | None,
        entities: int,
    ) -> dict[str, tuple[Array, Array]]:
        """95 % intervals: by the jackknife, and of coordinates by the bootstrap; NaN for the share in exact order.

        The share of splits in exact order is near 1 or far from it by one entity; neither method covers it.
        """
        tokens = observed["r2"].shape[1]
        jackknife = slots.jackknife(self.bootstrap, rng)
        replicates: dict[str, list[Array]] = {}
        for batch in slots.weighted(table, jackknife):
            for name, measured in self._measure(batch, splits, tokens, with_coordinates=False).items():
                replicates.setdefault(name, []).append(measured)
        out = {}
        for name, values in replicates.items():
            estimate, error = observed[name][0], jackknife.standard_error(np.concatenate(values))
            if name == "exact_order":
                out[name] = (np.full_like(estimate, np.nan), np.full_like(estimate, np.nan))
            elif name == "r2_corrected":  # often 1, which is on no logit scale
                half = float(ndtri((1 + LEVEL) / 2)) * error
                out[name] = (np.clip(estimate - half, 0, 1), np.clip(estimate + half, 0, 1))
            elif name in STEP_STATISTICS:
                half = float(ndtri((1 + LEVEL) / 2)) * error
                most = np.inf if name == "step_square" else 1.0
                out[name] = (np.clip(estimate - half, -most, most), np.clip(estimate + half, -most, most))
            elif name == "r2":
                out[name] = share_bounds(estimate, error)
            else:
                out[name] = correlation_bounds(estimate, error, smallest_step(name, self.groups), entities)
        drawn = [
            self._measure(batch, splits, tokens, with_coordinates=True, reference=reference)["coordinate"]
            for batch in slots.bootstrap(table, min(self.bootstrap, COORDINATE_DRAWS), rng)
        ]
        return out | {"coordinate": interval(np.concatenate(drawn), observed["coordinate"][0])}

    def _no_order(self, tokens: int) -> dict[str, tuple[tuple[str, ...], Array]]:
        """Variables of the order of groups that have none: NaN."""
        ends = ["", *(["_low", "_high"] if self.bootstrap else []), *(["_p", "_null"] if self.permutations else [])]
        out: dict[str, tuple[tuple[str, ...], Array]] = {
            name + end: (("token",), np.full(tokens, np.nan)) for name in ORDER_STATISTICS for end in ends
        }
        for name in STEP_STATISTICS:
            dims = DIMS.get(name, ("token",))
            empty = np.full((tokens, self.groups)[: len(dims)], np.nan)
            out |= {name + end: (dims, empty) for end in ("", "_low", "_high") if not end or self.bootstrap}
        return out | {"inner_rank": (DIMS["inner_rank"], np.full((tokens, self.groups), np.nan))}

    def _measure(
        self,
        slot_sums: Array,
        splits: Halves,
        tokens: int,
        with_coordinates: bool,
        with_ranks: bool = False,
        reference: Array | None = None,
        corrected: bool = True,
    ) -> dict[str, Array]:
        """Measure resamples, averaged over the partitions into cells.

        Args:
            slot_sums: float32 array of shape (draws, partitions, slots, tokens * features + 1).
            splits: the splits.
            tokens: number of tokens.
            with_coordinates: include the coordinates.
            with_ranks: include the mean ranks of the inner groups, and the orientation of principal components; these
                are the sums of the sample itself.
            reference: orientation of principal components (1, tokens, groups, 2); None = that of these sums.
            corrected: include the straightness and the steps without the noise of centroids.

        Returns:
            Every statistic (draws, tokens), coordinate (draws, tokens, groups, 2), inner_rank (draws, tokens, groups)
            and reference (draws, tokens, groups, 2).
        """
        draws, partitions, n_slots, width = slot_sums.shape
        features = (width - 1) // tokens
        flat = slot_sums[:, 0] if partitions == 1 else slot_sums.reshape(draws * partitions, n_slots, -1)
        rows = flat[..., -1].astype(np.float64)
        measured: dict[str, list[Array]] = {}
        for t in range(tokens):
            slot_gram = gram(flat[..., t * features : (t + 1) * features])
            inner = inner_products(slot_gram, rows, splits, unit=self.normalize == "centroids")
            values = statistics(inner, *self.axis, ordered=self.ordered)
            if corrected:
                values["r2_corrected"] = corrected_straightness(inner, LEAST_SIGNAL if with_ranks else 0.0)
                if self.ordered:
                    values |= step_geometry(inner, LEAST_STEP if with_ranks else 0.0)
            if with_ranks and self.ordered:
                values["inner_rank"] = inner_ranks(inner, *self.axis)
            if with_coordinates and self.principal:
                towards = principal_reference(inner) if reference is None else reference[0, t]
                values["coordinate"] = principal_coordinates(inner, towards)
                if with_ranks:
                    values["reference"] = np.broadcast_to(towards, values["coordinate"].shape)
            elif with_coordinates:
                values["coordinate"] = coordinates(inner, *self.axis)
            for name, array in values.items():
                by_partition = array.reshape(draws, partitions, *array.shape[1:])
                measured.setdefault(name, []).append(by_partition.mean(axis=1))
        return {name: np.stack(arrays, axis=1) for name, arrays in measured.items()}

    def _unit_sums(self, slab: Slab, units: Array) -> tuple[Array, Array, Array, Array]:
        """Sum the rows of each unit, an entity or a row.

        Args:
            slab: the slab.
            units: int64 array of shape (rows,), unit of each row of the slab; its rows are in one group.

        Returns:
            sums: float32 array of shape (units, tokens, features), of shifted rows.
            counts: int array of shape (units,), rows.
            labels: int64 array of shape (units,), groups.
            constant: bool array of shape (tokens,), True where all sums are equal.
        """
        used, unit_of_row = np.unique(units, return_inverse=True)
        counts = np.bincount(unit_of_row)
        labels = np.empty(len(used), np.int64)
        labels[unit_of_row] = self.codes[slab.rows]
        one_row_each = bool((counts == 1).all())
        sums = np.zeros((len(used), *slab.shape[1:]), np.float32)
        done, shift, square = 0, None, np.zeros(slab.shape[1])
        for rows, values in slab.blocks():
            if self.normalize == "activations":
                values = to_unit_length(values)
            with np.errstate(invalid="ignore", over="ignore"):  # checked below
                square += np.einsum("ntd,ntd->t", values, values)
            if not np.isfinite(square).all():
                raise_nonfinite(slab)
            if shift is None:  # any vector near the mean keeps float32 sums from cancelling
                near_mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
                shift = near_mean if self.normalize != "centroids" else np.zeros_like(near_mean)
            target = unit_of_row[done : done + len(rows)]
            if one_row_each:
                sums[target] = values - shift
            else:
                order = np.argsort(target, kind="stable")
                starts = np.flatnonzero(np.diff(target[order], prepend=-1))
                sums[target[order][starts]] += np.add.reduceat((values - shift)[order], starts, axis=0)
            done += len(rows)
        centre = sums.mean(axis=0) * (self.normalize == "centroids")
        spread = np.einsum("ntd,ntd->t", sums - centre, sums - centre)
        return sums, counts, labels, spread <= 1e-9 * np.maximum(square, 1e-30)


def has_mixed_entities(codes: Array, units: Array) -> bool:
    """Whether an entity has rows in several groups."""
    label = np.empty(int(units.max(initial=-1)) + 1, np.int64)
    label[units] = codes
    return bool((label[units] != codes).any())


def to_unit_length(values: Array) -> Array:
    """Scale the vectors of the last axis to unit length; zero vectors stay zero."""
    norm = np.sqrt(np.einsum("...d,...d->...", values, values))[..., None]
    return np.asarray(values / np.where(norm == 0, 1, norm))


def raise_nonfinite(slab: Slab) -> None:
    """Raise the error of a slab whose sums are not finite.

    Raises:
        NonFiniteError: names the first NaN or infinity.
        InputError: the sums overflow although all activations are finite.
    """
    for rows, values in slab.blocks():
        slab.refuse_nonfinite(values, rows)
    raise InputError(f"{slab.where}: sums overflow float32; the activations are too large (normalize=True may help)")
