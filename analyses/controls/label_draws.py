"""Labels drawn at random given the statistics, by swaps between entities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratalens.analyses.data.array_types import Codes, Doubles, Signs

STEPS = 50  # sweeps of random swaps between two draws, as Berrett et al. (2020) advise


@dataclass(frozen=True)
class LabelUnits:
    """Units that labels move between: whole entities, and single rows of entities with rows of both classes.

    Attributes:
        unit: int64 array of shape (n,), unit of each row; -1 = outside the pair.
        label: int8 array of shape (units,), +1 or -1.
        stratum: int64 array of shape (units,), labels move inside a stratum: the entities of one fold and of one size
            class, or the rows of one entity.
    """

    unit: Codes
    label: Signs
    stratum: Codes

    @staticmethod
    def of(sign: Signs, fold: Codes, entity: Codes, block: Codes | None = None) -> LabelUnits:
        """Find the units of one pair.

        Args:
            sign: int8 array of shape (n,): +1, -1, or 0 outside the pair.
            fold: int64 array of shape (n,).
            entity: int64 array of shape (n,).
            block: int64 array of shape (n,), rows that labels do not move between, such as training and test rows.
        """
        rows = np.flatnonzero(sign)
        block = np.zeros(len(sign), dtype=np.int64) if block is None else block
        _, own = np.unique(entity[rows], return_inverse=True)
        own = own.ravel()
        count, total = np.bincount(own), np.bincount(own, sign[rows])
        torn = (np.abs(total) != count)[own]
        # Torn entities keep their numbers of labels: their rows exchange labels with each other alone.
        key = np.where(torn, len(count) + np.arange(len(rows)), own)
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        unit = np.full(len(sign), -1, dtype=np.int64)
        unit[rows] = inverse.ravel()
        folds = int(fold.max(initial=0)) + 1
        stratum = np.where(torn[first], folds + own[first], fold[rows][first])
        stratum = stratum * (int(block.max(initial=0)) + 1) + block[rows][first]
        return LabelUnits(unit, sign[rows][first], stratum.astype(np.int64))

    def mean(self, values: Doubles) -> Doubles:
        """Average the rows of each unit, array of shape (units, columns)."""
        rows = self.unit >= 0
        total = np.zeros((len(self.label), values.shape[1]))
        np.add.at(total, self.unit[rows], values[rows])
        return total / np.bincount(self.unit[rows], minlength=len(self.label))[:, None]

    def first_rows(self) -> Codes:
        """Index of the first row of each unit."""
        rows = np.flatnonzero(self.unit >= 0)
        _, first = np.unique(self.unit[rows], return_index=True)
        return np.asarray(rows[first], dtype=np.int64)

    def signs(self, label: Signs) -> Signs:
        """Give every row the label of its unit: int8 array of shape (n,)."""
        return np.where(self.unit >= 0, label[self.unit], 0).astype(np.int8)


def draw_labels(units: LabelUnits, log_odds: Doubles, draws: int, seed: int | list[int]) -> Signs:
    """Draw labels from their distribution given the statistics and given the number of each label in each stratum.

    The parallel pairwise sampler of the conditional permutation test (Berrett, Wang, Barber and Samworth, 2020): pairs
    of units of different labels swap them with probability o / (1 + o), where o is the odds ratio of the two. All
    draws start from one common state, so that the labels of the data and the draws are exchangeable if the log odds
    are right.

    Args:
        units: units of one pair.
        log_odds: float64 array of shape (units,), of the positive label.
        draws: number of draws.
        seed: of the swaps.

    Returns:
        int8 array of shape (draws, units).
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((np.arange(len(units.label)), units.stratum))
    sizes = np.unique(units.stratum, return_counts=True)[1]
    common = _swap(units.label[None], log_odds, order, sizes, rng)
    return _swap(np.repeat(common, draws, axis=0), log_odds, order, sizes, rng)


def _swap(label: Signs, log_odds: Doubles, order: Codes, sizes: Codes, rng: np.random.Generator) -> Signs:
    """Run the sampler on several states (draws, units) at once."""
    label = label.copy()
    draws = np.arange(len(label))[:, None]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for _ in range(STEPS):
        left, right = [], []
        for start, size in zip(starts, sizes, strict=False):
            shuffled = order[start : start + size][rng.permuted(np.tile(np.arange(size), (len(label), 1)), axis=1)]
            left.append(shuffled[:, : size // 2])
            right.append(shuffled[:, size // 2 : 2 * (size // 2)])
        i, j = np.concatenate(left, axis=1), np.concatenate(right, axis=1)
        a, b = label[draws, i], label[draws, j]
        # After the swap, j has the label of i: odds of (j has a) over (i has a).
        gain = (log_odds[j] - log_odds[i]) * (a.astype(np.float64) - b) / 2
        swap = rng.random(gain.shape) < 1 / (1 + np.exp(-np.clip(gain, -500, 500)))
        label[draws, i], label[draws, j] = np.where(swap, b, a), np.where(swap, a, b)
    return label
