"""Resampled sums where entities have rows in several groups, with the methods of `resampling.Slots`.

The entity stays the unit: all of its rows lie on one side of a split, a bootstrap sample draws it with all of its rows,
and a permutation hands it the labels of another entity.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse

from stratalens.analyses.centroids.resampling import BATCH_BYTES, Halves
from stratalens.analyses.data.array_types import Array, Codes
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
        self.entities = int(units.max()) + 1
        self.slots = self._divide(codes, rng)

    def observed(self, table: Array) -> Array:
        """Slot sums (Q, G * C, features) of a table of rows (rows, features)."""
        weights = np.ones((1, len(self.units)), np.float32)
        return self._sums(self.slots[None], weights, table)[0]

    def bootstrap(self, table: Array, draws: int, rng: np.random.Generator) -> Iterator[Array]:
        """Slot sums of bootstrap samples, in batches (b, Q, G * C, features).

        Entities are drawn with replacement among those with rows in the same groups; rare sets of groups are drawn
        together. A copy stays in the cell of its original.
        """
        strata = entity_strata(self.codes, self.units)
        sizes = np.bincount(strata)
        strata = np.where(sizes[strata] < self.halves.cells, len(sizes), strata)
        weights = bootstrap_weights(strata, draws, int(rng.integers(2**31)))
        for start in range(0, draws, size := self._batch_size(table)):
            of_rows = weights[start : start + size][:, self.units]
            slots = np.broadcast_to(self.slots, (len(of_rows), *self.slots.shape))
            yield self._sums(slots, of_rows, table)

    def permuted(self, table: Array, draws: int, rng: np.random.Generator) -> Iterator[Array]:
        """Slot sums after `shuffled_labels` moved the labels between entities, in batches (b, Q, G * C, features).

        Each permutation divides the entities into cells anew, by the new labels, as the observed ones were divided.
        """
        one_fold = np.zeros(len(self.units), np.int64)
        for start in range(0, draws, size := self._batch_size(table)):
            slots = []
            for _ in range(min(size, draws - start)):
                labels = shuffled_labels(self.codes[:, None] + 1, one_fold, self.units, int(rng.integers(2**31)))
                slots.append(self._divide(labels[:, 0] - 1, rng))
            yield self._sums(np.stack(slots), np.ones((len(slots), len(self.units)), np.float32), table)

    def _divide(self, codes: Codes, rng: np.random.Generator) -> Codes:
        """Slot of each row in every division of the entities into cells: int64 array of shape (Q, rows).

        Entities with rows in the same groups are dealt to the cells in turn.
        """
        order = np.argsort(entity_strata(codes, self.units), kind="stable")
        strata = entity_strata(codes, self.units)[order]
        cells = self.halves.cells
        out = np.empty((self.halves.partitions, len(codes)), np.int64)
        for division in out:
            for _ in range(MOST_TRIES):
                cell = np.empty(self.entities, np.int64)
                shuffled = order[np.lexsort((rng.random(self.entities), strata))]
                cell[shuffled] = (int(rng.integers(cells)) + np.arange(self.entities)) % cells
                division[:] = codes * cells + cell[self.units]
                rows = np.bincount(division, minlength=self.groups * cells).reshape(self.groups, cells)
                if all((rows @ side.T > 0).all() for side in (self.halves.axis, self.halves.shown)):
                    break
        return out

    def _sums(self, slots: Array, weights: Array, table: Array) -> Array:
        """Weighted sums by slot, float32 of shape (b, Q, G * C, features).

        Args:
            slots: int64 array of shape (b, Q, rows).
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
        return max(1, BATCH_BYTES // (self.halves.partitions * self.groups * self.halves.cells * table.shape[1] * 4))
