"""Inside one file: exact bfloat16, and rows of checked chunks without their neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratalens.store import open_store
from stratalens.store.reading import chunks
from stratalens.store.storage.local import ReadHandle


def test_widening_is_exact_for_every_bit_pattern() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    out = np.empty(bits.shape, dtype=np.float32)
    chunks.bfloat16_to_float32(bits, out)
    np.testing.assert_array_equal(out.view(np.uint32), bits.astype(np.uint32) << 16)  # also for NaNs


@pytest.mark.parametrize("gap", [0, 100, 1 << 12])
@pytest.mark.parametrize("verify", [False, True])
def test_scattered_rows_are_read_alone(
    stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch, gap: int, verify: bool
) -> None:
    """Selected rows of checked chunks are read without the others, for any gap and any number of layers a read."""
    monkeypatch.setattr(ReadHandle, "gap", gap)
    monkeypatch.setattr(chunks, "READ_BYTES", 200)
    dice = np.random.default_rng(0)
    counted: list[int] = []
    pieces = ReadHandle.read_pieces

    def counting(self: ReadHandle, memory: np.ndarray, wanted: Any) -> bool:
        counted.append(len(wanted))
        return pieces(self, memory, wanted)

    monkeypatch.setattr(ReadHandle, "read_pieces", counting)
    for path in stores.values():
        site = open_store(path, chunks=None, verify=verify).resid_post
        whole = site.values
        before = len(counted)
        for _ in range(30):
            rows = dice.integers(0, 23, dice.integers(1, 5))
            tokens = dice.permutation(whole.shape[3])[: dice.integers(1, 4)]
            layers = dice.permutation(3)[: dice.integers(1, 4)]
            values = site.isel(layer=layers, entity=rows, token=tokens).values
            np.testing.assert_array_equal(values, whole[:, layers][:, :, rows][:, :, :, tokens])
        assert len(counted) > before, "nothing was read row by row"
