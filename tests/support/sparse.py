"""Stores that are far larger than their space on disk: pages of zeros become holes of sparse files.

Only the last stage and layer contain values. Their first feature orders the groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

from stratalens.store.format.schema import site_variable
from stratalens.store.storage.disk import DiskOperations
from stratalens.store.writing.create import create
from stratalens.store.writing.writer import ActivationWriter

WINDOW = 1 << 20


@contextmanager
def holes() -> Iterator[None]:
    """Make the writer skip zeros, which leaves holes in its files."""

    def write(self: DiskOperations, descriptor: int, data: memoryview) -> int:
        view = np.frombuffer(data, dtype=np.uint8)
        for start in range(0, len(view), WINDOW):
            window = view[start : start + WINDOW]
            if window.any():
                os.write(descriptor, window.data)
            else:
                os.ftruncate(descriptor, os.lseek(descriptor, len(window), os.SEEK_CUR))
        return len(view)

    with mock.patch.object(DiskOperations, "write", write):
        yield


def sparse_store(path: Path, stages: int, layers: int, rows: int, d_model: int) -> Path:
    """Write a store of `stages * layers * rows * d_model * 4` bytes with the stages after the first as groups."""
    names = ["untrained", *(f"s{i}" for i in range(1, stages))]
    groups = np.array(names[1:], dtype=object)[np.arange(rows) % (stages - 1)]
    ids = np.array([f"r{i:06d}" for i in range(rows)], dtype=object)
    site = site_variable("resid_post", ["d_model"], [d_model], "float32", "blocks.{layer}.hook_out")
    store = create(
        path,
        entities={"entity": ids, "entity_id": ids, "prompt": ids, "trained_stage": groups},
        layers=range(layers),
        tokens=["last"],
        variables=[site],
        provenance={"model": "zeros", "tokenizer_fingerprint": "t0", "token_ids_digest": "d0"},
    )
    with holes(), ActivationWriter(store) as writer:
        for order, name in enumerate(names):
            with writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
                for block in stage.pending():
                    buffer = stage.buffer(block)
                    values = np.zeros((layers, len(block.rows), 1, d_model), dtype=np.float32)
                    if order == stages - 1:
                        values[-1, :, 0, 0] = np.asarray(block.rows) % (stages - 1) + 0.01 * (
                            np.asarray(block.rows) % 7
                        )
                        values[-1, :, 0, 1] = np.asarray(block.rows) % 11
                    buffer.write("resid_post", block.rows, values)
                    stage.submit(buffer)
    return path
