"""Resampled sums of entities: splits, bootstrap, jackknife and label permutation without reading rows again.

A random partition divides every group into cells; a slot is one (group, cell), and each side of a split is a union of
cells. Every split, bootstrap sample and permutation is then a small sum over slots, and thousands of them cost a few
matrix products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stratalens.analyses.centroids.jackknife import Jackknife
from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.cancellation import raise_if_cancelled
from stratalens.store.errors import InputError

BLOCK_ENTITIES = 10  # entities that move together inside one batch of permutations
BATCH_PERMUTATIONS = 100  # permutations that share one partition into blocks
BATCH_BYTES = 64 * 2**20  # largest size of the sums of a batch of resamples


@dataclass(frozen=True)
class Halves:
    """Cells of each side of every split: the fitting part, which defines the axis, and the held-out part.

    Attributes:
        cells: number of cells C of every group.
        partitions: number Q of independent partitions into cells.
        axis: float64 array of shape (splits, C), 1.0 where a cell belongs to the fitting part.
    """

    cells: int
    partitions: int
    axis: Array

    @property
    def shown(self) -> Array:
        """The complement of `axis`: 1.0 where a cell belongs to the held-out part."""
        return 1.0 - self.axis

    @property
    def least(self) -> int:
        """Smallest number of entities of a group with which no part of a split is empty."""
        shown = int(self.shown[0].sum())
        return self.cells - min(shown, self.cells - shown) + 1


def halves(holdout: float, repeats: int, rng: np.random.Generator) -> Halves:
    """Choose splits that hold out about the fraction `holdout` of the entities: all unions of k out of C cells.

    Six cells give the 20 splits into halves. More `repeats` than unions need new partitions into cells; fewer are a
    random choice of unions.

    Args:
        holdout: fraction of the entities to hold out.
        repeats: number of splits.
        rng: random generator.

    Raises:
        InputError: a fraction outside 0.1 to 0.9, or no repeats.

    Example:
        >>> h = halves(0.5, 20, np.random.default_rng(0))
        >>> h.cells, h.partitions, h.axis.shape
        (6, 1, (20, 6))
    """
    if not 0.1 <= holdout <= 0.9:
        raise InputError(f"holdout={holdout} must be the fraction of entities to hold out, from 0.1 to 0.9")
    if repeats < 1:
        raise InputError(f"repeats={repeats} must be at least 1")
    shapes = [(c, k) for c in (6, 5, 7, 8, 10) for k in range(1, c)]
    cells, k = min(shapes, key=lambda ck: round(abs(ck[1] / ck[0] - holdout), 2))
    shown = np.array([[c in chosen for c in range(cells)] for chosen in itertools.combinations(range(cells), k)])
    partitions = math.ceil(repeats / len(shown))
    if repeats < len(shown):
        shown = shown[rng.permutation(len(shown))[:repeats]]
    return Halves(cells, partitions, 1.0 - shown)


class Slots:
    """Entities in the order of their slots (group, cell).

    Args:
        labels: int array of shape (entities,), group code of each entity, none negative.
        groups: number of groups.
        halves: the splits.
        rng: random generator of the partitions.
    """

    def __init__(self, labels: Array, groups: int, halves: Halves, rng: np.random.Generator) -> None:
        self.groups, self.halves, self.entities = groups, halves, len(labels)
        self.sizes = np.bincount(labels, minlength=groups)
        C = halves.cells
        # Cell sizes differ by at most one, and the larger cells are spread over the groups.
        cell_sizes = [[size // C + (c < size % C) for c in range(C)] for size in self.sizes]
        self.slot_sizes = np.concatenate([np.roll(sizes, g) for g, sizes in enumerate(cell_sizes)])
        self.starts = np.concatenate([[0], np.cumsum(self.slot_sizes)])
        self.group_starts = np.concatenate([[0], np.cumsum(self.sizes)])
        order = np.argsort(labels, kind="stable")
        # orders[q]: entities in slot order, for each partition into cells.
        self.orders = np.stack(
            [
                np.concatenate([rng.permutation(order[a:z]) for a, z in itertools.pairwise(self.group_starts)])
                for _ in range(halves.partitions)
            ]
        )

    def observed(self, sums: Array) -> Array:
        """Slot sums (Q, G * C, features) of per-entity sums (entities, features)."""
        return np.stack([self._reduce(sums[order]) for order in self.orders])

    def bootstrap(self, sums: Array, draws: int, rng: np.random.Generator) -> Iterator[Array]:
        """Slot sums of bootstrap samples, in batches (b, Q, G * C, features).

        Entities are drawn with replacement inside each group. A copy stays in the cell of its original, so that no
        entity is on both sides of a split.
        """
        weights = np.empty((draws, self.entities), np.float32)
        for n, (a, z) in zip(self.sizes, itertools.pairwise(self.group_starts), strict=True):
            drawn = rng.integers(0, n, (draws, n)) + (np.arange(draws) * n)[:, None]
            weights[:, self.orders[0, a:z]] = np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)
        self._replace_incomplete(weights, rng)
        return self.weighted(sums, weights)

    def jackknife(self, replicates: int, rng: np.random.Generator) -> Jackknife:
        """Leave out entities of one group at a time, in about so many replicates."""
        labels = np.empty(self.entities, np.int64)
        labels[self.orders[0]] = np.repeat(np.arange(self.groups), self.sizes)
        share = 1.0 if self.sizes.min() > self.halves.least else 0.5
        return Jackknife.of(labels, replicates, share, rng)

    def weighted(self, sums: Array, weights: Array | Jackknife) -> Iterator[Array]:
        """Slot sums of weighted entities, in batches (b, Q, G * C, features), from weights (draws, entities)."""
        size = self._batch_size(sums.shape[1])
        ordered = [np.ascontiguousarray(sums[order]) for order in self.orders]
        for start in range(0, len(weights), size):
            raise_if_cancelled()
            batch = weights[start : start + size]
            out = np.empty((len(self.orders), len(self.slot_sizes), len(batch), sums.shape[1]), np.float32)
            for q, order in enumerate(self.orders):
                in_slot_order = np.ascontiguousarray(batch[:, order])
                for s, (a, z) in enumerate(itertools.pairwise(self.starts)):
                    np.matmul(in_slot_order[:, a:z], ordered[q][a:z], out=out[q, s])
            yield out.transpose(2, 0, 1, 3)

    def _replace_incomplete(self, weights: Array, rng: np.random.Generator) -> None:
        """Replace samples in which a small group misses one part of a split by complete samples."""
        complete = np.ones(len(weights), bool)
        for order in self.orders:
            slots = np.add.reduceat(weights[:, order], np.minimum(self.starts[:-1], self.entities - 1), axis=1)
            slots[:, self.slot_sizes == 0] = 0
            cells = slots.reshape(len(weights), self.groups, -1)
            for side in (self.halves.axis, self.halves.shown):
                complete &= (cells @ side.T > 0).all(axis=(1, 2))
        if not complete.any():
            weights[:] = 1
        elif not complete.all():
            weights[~complete] = weights[rng.choice(np.flatnonzero(complete), int((~complete).sum()))]

    def permuted(self, sums: Array, draws: int, rng: np.random.Generator) -> Iterator[Array]:
        """Slot sums after permuting the labels over entities, in batches (b, Q, G * C, features).

        Each permutation is uniformly random. Inside a batch, random blocks of entities move together, which makes the
        products several times smaller. Each batch draws new blocks, without regard to labels.
        """
        size = min(self._batch_size(sums.shape[1]), BATCH_PERMUTATIONS)
        block = BLOCK_ENTITIES if self.slot_sizes.min() >= 4 * BLOCK_ENTITIES else 1
        blocks_of_slot, singles_of_slot = np.divmod(self.slot_sizes, block)
        slots = len(self.slot_sizes)
        blocks, singles = int(blocks_of_slot.sum()), int(singles_of_slot.sum())
        slot_of_block = np.repeat(np.arange(slots), blocks_of_slot)
        slot_of_single = np.repeat(np.arange(slots), singles_of_slot)
        for start in range(0, draws, size):
            raise_if_cancelled()
            b = min(size, draws - start)
            order = rng.permutation(self.entities)
            units = np.empty((blocks + singles, sums.shape[1]), np.float32)
            np.take(sums, order[:blocks], axis=0, out=units[:blocks])
            for k in range(1, block):
                units[:blocks] += sums[order[k * blocks : (k + 1) * blocks]]
            units[blocks:] = sums[order[block * blocks :]]
            out = np.empty((b, len(self.orders), slots, sums.shape[1]), np.float32)
            one_hot = np.empty((b, slots, blocks + singles), np.float32)
            unit = np.arange(blocks + singles)
            slot_of_unit = np.concatenate(
                [
                    rng.permuted(np.tile(slot_of_block, (b, 1)), axis=1),
                    rng.permuted(np.tile(slot_of_single, (b, 1)), axis=1) if singles else np.empty((b, 0), int),
                ],
                axis=1,
            )
            for q in range(len(self.orders)):
                if q:
                    slot_of_unit = self._with_other_cells(slot_of_unit, blocks, rng)
                one_hot[:] = 0
                one_hot[np.arange(b)[:, None], slot_of_unit, unit] = 1
                if len(self.orders) == 1:
                    np.matmul(one_hot.reshape(b * slots, -1), units, out=out.reshape(b * slots, -1))
                else:
                    out[:, q] = (one_hot.reshape(b * slots, -1) @ units).reshape(b, slots, -1)
            yield out

    def _with_other_cells(self, slot_of_unit: Array, blocks: int, rng: np.random.Generator) -> Array:
        """Move the units of each group among its slots, which keeps their labels."""
        out = slot_of_unit.copy()
        for row in out:
            for units in (row[:blocks], row[blocks:]):
                for g in range(self.groups):
                    members = np.flatnonzero(units // self.halves.cells == g)
                    units[members] = units[rng.permutation(members)]
        return out

    def _reduce(self, ordered: Array) -> Array:
        out = np.zeros((len(self.slot_sizes), ordered.shape[1]), np.float32)
        for s, (a, z) in enumerate(itertools.pairwise(self.starts)):
            if z > a:
                ordered[a:z].sum(axis=0, out=out[s])
        return out

    def _batch_size(self, features: int) -> int:
        """Resamples of a batch, so that their sums take at most BATCH_BYTES."""
        return max(1, BATCH_BYTES // (len(self.orders) * len(self.slot_sizes) * features * 4))
