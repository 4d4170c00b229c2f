"""Read the workload of every method of recording: the same prompts, token ids, batches, padding and weights.

This module needs only NumPy and the standard library, so that every environment can import it. Requested values always
have the same order, whatever a method stores on the disk: row by row of the table, and within a row position by
position. The three settings are the last token, two named positions (the last token and the last token of the person's
name), and all tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {"last": "last token", "two": "two positions", "all": "all tokens"}
POSITIONS = {"last": ("last",), "two": ("last", "entity_last"), "all": "all"}


class Workload:
    """One folder: `prompts.csv`, `workload.json`, `ids.npy` (row, token), and the model in `../model`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, folder.parent / "model"
        self.facts: dict[str, Any] = json.loads((folder / "workload.json").read_text())
        self.ids = np.load(folder / "ids.npy")
        self.lengths = np.array(self.facts["lengths"])
        self.batch_size: int = self.facts["batch_size"]
        self.layers: int = self.facts["layers"]
        self.width: int = self.facts["width"]
        self.prompts: list[str] = self.facts["prompts"]

    @cached_property
    def index(self) -> dict[str, list[np.ndarray]]:
        """Requested token indices of every row, by setting."""
        two = np.array(self.facts["two"])
        return {
            "last": list((self.lengths - 1)[:, None]),
            "two": list(two),
            "all": [np.arange(n) for n in self.lengths],
        }

    def block_size(self, setting: str) -> int:
        """Return the rows of a block, which are committed, sorted by length and padded together."""
        return int(self.facts["block_size"][setting])

    def batches(self, setting: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (rows, ids, mask) of every forward pass; ids and mask are int64 (rows, tokens), padded on the right."""
        for rows, pad_to in self.facts["batches"][setting]:
            rows = np.array(rows)
            mask = (np.arange(pad_to) < self.lengths[rows][:, None]).astype(np.int64)
            yield rows, np.ascontiguousarray(self.ids[rows, :pad_to]), mask

    def order(self, setting: str) -> list[int]:
        """Return the rows in the order of the batches."""
        return [int(row) for rows, _ in self.facts["batches"][setting] for row in rows]

    def wanted(self, setting: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the row in the batch and the token of every requested value of a batch."""
        index = [self.index[setting][r] for r in rows]
        return np.repeat(np.arange(len(rows)), [len(i) for i in index]), np.concatenate(index)

    def starts(self, setting: str) -> np.ndarray:
        """Return the start of every row among all requested values, and the total at the end."""
        return np.concatenate([[0], np.cumsum([len(i) for i in self.index[setting]])])

    def places(self, setting: str, rows: np.ndarray) -> np.ndarray:
        """Return the indices of a batch's values among all requested values."""
        starts = self.starts(setting)
        return np.concatenate([np.arange(starts[r], starts[r + 1]) for r in rows])

    def total(self, setting: str) -> int:
        """Return the number of requested values (vectors of one layer)."""
        return int(self.starts(setting)[-1])
