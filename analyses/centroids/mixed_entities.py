"""Resampled sums where entities have rows in several groups, with the methods of `resampling.Slots`.

The entity stays the unit: all of its rows lie on one side of a split, a bootstrap sample draws it with all of its rows,
and a permutation hands it the labels of another entity.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
import scipy.sparse

from stratalens.analyses.centroids.jackknife import Jackknife
from stratalens.analyses.centroids.resampling import BATCH_BYTES, Halves
from stratalens.analyses.data.array_types import Array, Codes
from stratalens.analyses.data.cancellation import raise_if_cancelled
from stratalens.analyses.data.splits import entity_strata
from stratalens.analyses.data.targets import shuffled_labels
from stratalens.analyses.stats.bootstrap import bootstrap_weights

MOST_TRIES = 20  # divisions into cells that are tried until each side of every split has rows of every group


class MixedSlots:
    """Rows by slot (group, cell), where the cell is that of the entity and the group that of the row.

    Args:
        codes: int64 array of shape (rows,), group of each row, none negative.
        units: int64 array of shape (rows,), entity of each row, from 0 without gaps.
        groups: number of groups.
        halves: the splits.
        rng: random generator of the divisions into cells.
    """

    def __init__(self, codes: Codes, units: Codes, groups: int, halves: Halves, rng: np.random.Generator) -> None:
        self.codes, self.units, self.groups, self.halves = codes, units, groups, halves
        self.slots = divide(codes, units, groups, halves, rng)

    def observed(self, table: Array) -> Array:
        """Slot sums (Q, G * C, features) of a table of rows (rows, features)."""
        weights = np.ones((1, len(self.units)), np.float32)
        return np.asarray(self._sums(self.slots[None], weights, table)[0])

    def bootstrap(self, table: Array, draws: int, rng: np.random.Generator) -> Iterator[Array]:
        """Slot sums of bootstrap samples, in batches (b, Q, G * C, features).

        Entities are drawn with replacement among those with rows in the same groups; rare sets of groups are drawn
        together. A copy stays in the cell of its original.
        """
        strata = entity_strata(self.codes, self.units)
        sizes = np.bincount(strata)
        strata = np.where(sizes[strata] < self.halves.cells, len(sizes), strata)
        weights = bootstrap_weights(strata, draws, int(rng.integers(2**31)))
        return self.weighted(table, weights)

    def jackknife(self, replicates: int, rng: np.random.Generator) -> Jackknife:
        """Leave out entities with all of their rows, among those of the same groups, in about so many replicates."""
        entities = [len(np.unique(self.units[self.codes == g])) for g in range(self.groups)]
        share = 1.0 if min(entities) > self.halves.least else 0.5
        return Jackknife.of(entity_strata(self.codes, self.units), replicates, share, rng)

    def weighted(self, table: Array, weights: Array | Jackknife) -> Iterator[Array]:
        """Slot sums of weighted entities, in batches (b, Q, G * C, features), from weights (draws, entities)."""
        for start in range(0, len(weights), size := self._batch_size(table)):
            raise_if_cancelled()
            of_rows = weights[start : start + size][:, self.units]
            slots = np.broadcast_to(self.slots, (len(of_rows), *self.slots.shape))
            yield self._sums(slots, of_rows, table)

    def permuted(self, table: Array, draws: int, rng: np.random.Generator) -> Iterator[Array]:
        """Slot sums after `shuffled_labels` moved the labels between entities, in batches (b, Q, G * C, features).

        Each permutation divides the entities into cells again, by the new labels, as the observed ones were divided.
        All slabs of a call ask for the same permutations, which stay in memory if they are small.
        """
        seed, size = int(rng.integers(2**63)), self._batch_size(table)
        key = (self.codes.tobytes(), self.units.tobytes(), self.groups, self.halves.cells, self.halves.partitions)
        permute = partial(_permuted_slots.__wrapped__, *key, self.halves.axis.tobytes(), seed)
        small = draws * self.slots.size * 4 <= BATCH_BYTES
        in_memory = _permuted_slots(*permute.args, range(draws)) if small else None
        for start in range(0, draws, size):
            raise_if_cancelled()
            numbers = range(start, min(start + size, draws))
            slots = in_memory[start : numbers.stop] if in_memory is not None else permute(numbers)
            yield self._sums(slots, np.ones((len(slots), len(self.units)), np.float32), table)

    def _sums(self, slots: Array, weights: Array, table: Array) -> Array:
        """Weighted sums by slot, float32 of shape (b, Q, G * C, features).

        Args:
            slots: int32 array of shape (b, Q, rows).
            weights: float32 array of shape (b, rows).
            table: float32 array of shape (rows, features).
        """
        b, partitions, rows = slots.shape
        count = self.groups * self.halves.cells
        target = (np.arange(b * partitions)[:, None] * count + slots.reshape(-1, rows)).ravel()
        each = np.repeat(weights, partitions, axis=0).ravel()
        columns = np.tile(np.arange(rows), b * partitions)
        matrix = scipy.sparse.csr_array((each, (target, columns)), shape=(b * partitions * count, rows))
        return np.asarray(matrix @ table, np.float32).reshape(b, partitions, count, -1)

    def _batch_size(self, table: Array) -> int:
        """Resamples of a batch, so that their sums take at most BATCH_BYTES."""
        return max(1, BATCH_BYTES // (len(self.slots) * self.groups * self.halves.cells * int(table.shape[1]) * 4))


def divide(codes: Codes, units: Codes, groups: int, halves: Halves, rng: np.random.Generator) -> Array:
    """Slot of each row in every division of the entities into cells.

    Entities with rows in the same groups are dealt to the cells in turn.

    Args:
        codes: int64 array of shape (rows,), group of each row.
        units: int64 array of shape (rows,), entity of each row, from 0 without gaps.
        groups: number of groups.
        halves: the splits.
        rng: random generator.

    Returns:
        int32 array of shape (Q, rows).
    """
    strata, cells = entity_strata(codes, units), halves.cells
    out = np.empty((halves.partitions, len(codes)), np.int32)
    cell = np.empty(len(strata), np.int64)
    for division in out:
        for _ in range(MOST_TRIES):
            start = int(rng.integers(cells))
            cell[np.lexsort((rng.random(len(strata)), strata))] = (start + np.arange(len(strata))) % cells
            division[:] = codes * cells + cell[units]
            rows = np.bincount(division, minlength=groups * cells).reshape(groups, cells)
            if all((rows @ side.T > 0).all() for side in (halves.axis, halves.shown)):
                break
    return out


@lru_cache(maxsize=2)
def _permuted_slots(
    codes: bytes, units: bytes, groups: int, cells: int, partitions: int, axis: bytes, seed: int, numbers: range
) -> Array:
    """Slots of permutations by their numbers: int32 array of shape (numbers, Q, rows)."""
    code, unit = (np.frombuffer(labels, np.int64) for labels in (codes, units))
    halves = Halves(cells, partitions, np.frombuffer(axis, np.float64).reshape(-1, cells))
    one_fold = np.zeros(len(code), np.int64)
    out = np.empty((len(numbers), partitions, len(code)), np.int32)
    for slots, number in zip(out, numbers, strict=True):
        own_seed = np.random.SeedSequence([seed, number])
        labels = shuffled_labels(code[:, None] + 1, one_fold, unit, own_seed)[:, 0] - 1
        slots[:] = divide(labels, unit, groups, halves, np.random.default_rng(own_seed.spawn(1)[0]))
    out.flags.writeable = False
    return out
