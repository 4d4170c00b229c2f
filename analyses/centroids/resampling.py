"""Resampling entities as sums: halves, cluster bootstrap and label permutation without touching rows again.

Entities are laid out in *slots*, one for each (group, cell): cells are random
parts of every group, and a half is a union of cells. Every split, bootstrap
sample and permutation is then a small sum over slots, so that thousands of them
cost a few matrix products. What is computed from the sums is in plane.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stratalens.analyses.data.array_types import Array
from stratalens.store.errors import InputError

BLOCK = 10  # entities that move together inside one batch of permutations


BATCH = 100  # permutations that share one partition into blocks


@dataclass(frozen=True)
class Halves:
    """Which cells a split shows, and which its axis is made from.

    Attributes:
        cells: number of cells C that every group is divided into.
        partitions: number Q of independent divisions into cells.
        axis: [array-like, shape: (H, C)] 1.0 where a cell belongs to the axis part; the rest is shown.
    """

    cells: int
    partitions: int
    axis: Array

    @property
    def shown(self) -> Array:
        """[array-like, shape: (H, C)] the complement of `axis`."""
        return 1.0 - self.axis

    @property
    def least(self) -> int:
        """Entities that each group needs, so that no part of a split is ever empty."""
        shown = int(self.shown[0].sum())
        return self.cells - min(shown, self.cells - shown) + 1


def halves(holdout: float, repeats: int, rng: np.random.Generator) -> Halves:
    """Splits that show about the fraction `holdout` of the entities: all unions of k out of C cells.

    Six cells give the 20 splits into halves. More `repeats` than unions are new divisions into cells,
    fewer are a random choice of unions.

    >>> h = halves(0.5, 20, np.random.default_rng(0))
    >>> h.cells, h.partitions, h.axis.shape
    (6, 1, (20, 6))
    """
    if not 0.1 <= holdout <= 0.9:
        raise InputError(f"holdout={holdout} must be the fraction of entities that is shown, from 0.1 to 0.9")
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
    """Entities laid out by (group, cell).

    Args:
        labels: [array-like, shape: (E,)] int group code of each entity, none negative.
        groups: number of groups.
        halves: how groups are divided.
        rng: random generator of the layout.
    """

    def __init__(self, labels: Array, groups: int, halves: Halves, rng: np.random.Generator) -> None:
        self.groups, self.halves, self.entities = groups, halves, len(labels)
        self.sizes = np.bincount(labels, minlength=groups)
        C = halves.cells
        # Cell sizes differ by at most one, and the larger cells are spread over the groups.
        self.slot_sizes = np.concatenate(
            [np.roll([len(part) for part in np.array_split(np.arange(s), C)], g) for g, s in enumerate(self.sizes)]
        )
        self.starts = np.concatenate([[0], np.cumsum(self.slot_sizes)])
        order = np.argsort(labels, kind="stable")
        groups_start = np.concatenate([[0], np.cumsum(self.sizes)])
        # orders[q]: entities in slot order, for each division into cells.
        self.orders = np.stack(
            [
                np.concatenate([rng.permutation(order[a:b]) for a, b in itertools.pairwise(groups_start)])
                for _ in range(halves.partitions)
            ]
        )

    def observed(self, sums: Array) -> Array:
        """Sums of each slot, (Q, G * C, F), of per-entity sums (E, F)."""
        return np.stack([self._reduce(sums[order]) for order in self.orders])

    def bootstrap(self, sums: Array, draws: int, rng: np.random.Generator) -> Iterator[Array]:
        """Slot sums of bootstrap samples, in batches (b, Q, G * C, F).

        Entities are drawn with replacement inside each group; a copy stays in the cell of its original, so
        that no entity is ever on both sides of a split.
        """
        size = self._batch(sums.shape[1])
        ordered = [np.ascontiguousarray(sums[order]) for order in self.orders]
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        for begin in range(0, draws, size):
            b = min(size, draws - begin)
            out = np.empty((len(self.orders), len(self.slot_sizes), b, sums.shape[1]), np.float32)
            weights = np.empty((b, self.entities), np.float32)
            for n, (a, z) in zip(self.sizes, itertools.pairwise(starts), strict=True):
                drawn = rng.integers(0, n, (b, n)) + (np.arange(b) * n)[:, None]
                weights[:, self.orders[0, a:z]] = np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n)
            self._refill(weights, rng)
            for q, order in enumerate(self.orders):
                mine = np.ascontiguousarray(weights[:, order])
                for s, (a, z) in enumerate(itertools.pairwise(self.starts)):
                    np.matmul(mine[:, a:z], ordered[q][a:z], out=out[q, s])
            yield out.transpose(2, 0, 1, 3)

    def _refill(self, weights: Array, rng: np.random.Generator) -> None:
        """Replace samples that leave a group out of one part of a split (few entities) by others that do not."""
        filled = np.ones(len(weights), bool)
        for order in self.orders:
            slots = np.add.reduceat(weights[:, order], np.minimum(self.starts[:-1], self.entities - 1), axis=1)
            slots[:, self.slot_sizes == 0] = 0
            cells = slots.reshape(len(weights), self.groups, -1)
            for part in (self.halves.axis, self.halves.shown):
                filled &= (cells @ part.T > 0).all(axis=(1, 2))
        if not filled.any():
            weights[:] = 1
        elif not filled.all():
            weights[~filled] = weights[rng.choice(np.flatnonzero(filled), int((~filled).sum()))]

    def permuted(self, sums: Array, draws: int, rng: np.random.Generator) -> Iterator[Array]:
        """Slot sums after permuting the labels over entities, in batches (b, Q, G * C, F).

        Each permutation is uniformly random. Inside a batch, random blocks of entities (drawn without regard
        to labels, anew for each batch) move together, which makes the products several times smaller.
        """
        size = min(self._batch(sums.shape[1]), BATCH)
        block = BLOCK if self.slot_sizes.min() >= 4 * BLOCK else 1
        whole, single = np.divmod(self.slot_sizes, block)
        slots, C = len(self.slot_sizes), self.halves.cells
        blocks, singles = int(whole.sum()), int(single.sum())
        slot_of_block, slot_of_single = np.repeat(np.arange(slots), whole), np.repeat(np.arange(slots), single)
        for begin in range(0, draws, size):
            b = min(size, draws - begin)
            order = rng.permutation(self.entities)
            units = np.empty((blocks + singles, sums.shape[1]), np.float32)
            np.take(sums, order[:blocks], axis=0, out=units[:blocks])
            for k in range(1, block):
                units[:blocks] += sums[order[k * blocks : (k + 1) * blocks]]
            units[blocks:] = sums[order[block * blocks :]]
            out = np.empty((b, len(self.orders), slots, sums.shape[1]), np.float32)
            one_hot = np.empty((b, slots, blocks + singles), np.float32)
            unit = np.arange(blocks + singles)
            place = np.concatenate(
                [
                    rng.permuted(np.tile(slot_of_block, (b, 1)), axis=1),
                    rng.permuted(np.tile(slot_of_single, (b, 1)), axis=1) if singles else np.empty((b, 0), int),
                ],
                axis=1,
            )
            for q in range(len(self.orders)):
                if q:  # the same labels, other cells: units of one group change places among its slots
                    place = self._reshuffled(place, blocks, C, rng)
                one_hot[:] = 0
                one_hot[np.arange(b)[:, None], place, unit] = 1
                if len(self.orders) == 1:
                    np.matmul(one_hot.reshape(b * slots, -1), units, out=out.reshape(b * slots, -1))
                else:
                    out[:, q] = (one_hot.reshape(b * slots, -1) @ units).reshape(b, slots, -1)
            yield out

    def _reshuffled(self, place: Array, blocks: int, C: int, rng: np.random.Generator) -> Array:
        out = place.copy()
        for row in out:
            for part in (row[:blocks], row[blocks:]):
                for g in range(self.groups):
                    mine = np.flatnonzero(part // C == g)
                    part[mine] = part[rng.permutation(mine)]
        return out

    def _reduce(self, ordered: Array) -> Array:
        out = np.zeros((len(self.slot_sizes), ordered.shape[1]), np.float32)
        for s, (a, z) in enumerate(itertools.pairwise(self.starts)):
            if z > a:
                ordered[a:z].sum(axis=0, out=out[s])
        return out

    def _batch(self, features: int) -> int:
        """Resamples at a time, so that their sums take at most 64 MiB."""
        one = len(self.orders) * len(self.slot_sizes) * features * 4
        return max(1, 64 * 2**20 // one)
