"""A seeded sample of whole entities that is the same however the rows are divided over processes.

Every entity has a number from its name and the seed. The sample of a group takes entities in the order of these
numbers, each with all its rows, as long as the rows fit. `limit` is the number of the first entity that does not fit:
all rows of entities below it are in the sample. Two samples join by the smaller limit and the same rule, so that the
joint sample is the one that a single process would have drawn, whatever the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stratalens.analyses.data.array_types import Array, Codes, Mask

NO_LIMIT = 2**63 - 1  # no entity was left out


def draw_numbers(names: Iterable[object], seed: int) -> Codes:
    """Numbers from 0 to 2**63 - 1 for entities: int64 array of shape (names,).

    Example:
        >>> bool((draw_numbers(["a", "b"], 0) == draw_numbers(["a", "b"], 0)).all())
        True
    """
    digests = [hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest() for name in names]
    return (np.frombuffer(b"".join(digests), dtype=">u8") >> np.uint64(1)).astype(np.int64)


def first_entities(number: Codes, size: int, limit: int = NO_LIMIT) -> tuple[Mask, int]:
    """Choose the rows of the entities with the smallest numbers.

    Args:
        number: int64 array of shape (n,), number of the entity of each row.
        size: most rows.
        limit: leave out entities from this number on.

    Returns:
        bool array of shape (n,), the rows in the sample; and the new limit.

    Example:
        >>> chosen, limit = first_entities(np.array([5, 9, 5, 7]), 3)
        >>> chosen.tolist(), limit
        ([True, False, True, True], 9)
    """
    entities, counts = np.unique(number[number < limit], return_counts=True)
    over = np.flatnonzero(np.cumsum(counts) > size)
    if len(over):
        limit = int(entities[over[0]])
    return number < limit, limit


@dataclass(frozen=True)
class RowSample:
    """Sampled rows of one group and token, in the order of entity, prompt and position.

    Attributes:
        entity: int64 array of shape (n,), number of the entity of each row.
        prompt: int64 array of shape (n,), number of the prompt of each row.
        position: int64 array of shape (n,), token of each row within its prompt.
        limit: number of the first entity that did not fit.
        values: array of shape (n, ...), anything that goes with the rows; None without.
    """

    entity: Codes
    prompt: Codes
    position: Codes
    limit: int
    values: Array | None = None

    def ordered(self, size: int) -> tuple[RowSample, Codes]:
        """Keep the first entities, and sort the rows.

        Returns:
            The sample, and an int64 array of shape (kept rows,): their indices among the rows here.
        """
        chosen, limit = first_entities(self.entity, size, self.limit)
        index = np.flatnonzero(chosen)
        index = index[np.lexsort((self.position[index], self.prompt[index], self.entity[index]))]
        values = None if self.values is None else self.values[index]
        return RowSample(self.entity[index], self.prompt[index], self.position[index], limit, values), index


def join_samples(parts: Iterable[RowSample], size: int) -> RowSample:
    """Draw the sample of all rows from the samples of disjoint parts of them; any order gives the same."""
    samples = list(parts)
    values = [s.values for s in samples if s.values is not None]
    joined = RowSample(
        np.concatenate([s.entity for s in samples]),
        np.concatenate([s.prompt for s in samples]),
        np.concatenate([s.position for s in samples]),
        min(s.limit for s in samples),
        np.concatenate(values) if len(values) == len(samples) else None,
    )
    return joined.ordered(size)[0]
