"""A process that streams synthetic activations of several stages and sites into a store (no torch).

`python -m support.synthetic_writer PATH [--shared RANK SIZE]`; the crash tests kill it, and start it again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stratalens.store import open_store
from stratalens.store.format.schema import Variable, site_variable, statistic_variables
from stratalens.store.state.manifest import load
from stratalens.store.storage.base import Storage
from stratalens.store.storage.resolve import storage_at
from stratalens.store.writing.create import create
from stratalens.store.writing.writer import ActivationWriter
from support.stores import fill_randomly, make_labels

STAGES = ("s0", "s1", "s2")
ENTITIES = 22


def variables() -> list[Variable]:
    site = site_variable("resid_post", ["d_model"], [16], "bfloat16", "blocks.{layer}.hook_out")
    other = site_variable("embed", ["d_model"], [16], "float32", "embed.hook_out")
    return [site, other, *statistic_variables(site)[:1]]


def make(path: Path | str, storage: Storage | None = None) -> Any:
    return create(
        path,
        entities=make_labels(ENTITIES, STAGES),
        layers=range(3),
        tokens=("last", "-2"),
        variables=variables(),
        provenance={"model": "synthetic"},
        block_size=6,
        storage=storage,
    )


def stream(
    path: Path | str,
    storage: Storage | None = None,
    shared: tuple[int, int] | None = None,
    stages: Sequence[str] = STAGES,
) -> None:
    """Write the whole store, or its first stages; resume what an earlier call did not finish."""
    rank, size = shared or (0, 1)
    with ActivationWriter(make(path, storage), shared=shared is not None) as writer:
        for order, name in enumerate(stages):
            with writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
                for block in stage.pending(rank, size):
                    stage.submit(fill_randomly(stage.buffer(block), writer.store, seed=order))


def content(path: Path) -> dict[str, bytes]:
    """Return the bytes of every file except the history, the only file with times."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name != "history.jsonl"
    }


def data_files(path: Path) -> dict[str, bytes]:
    """Return the bytes of every file except JSON documents and the history."""
    return {k: v for k, v in content(path).items() if not k.endswith(".json")}


def unchanged(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Assert that every file is there with the same bytes."""
    assert {k: after[k] for k in before} == before


def committed_files(path: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of every committed data file; both change if a block is written again."""
    if not (path / "zarr.json").exists():
        return {}
    store = load(storage_at(path))
    files = {}
    for group, stage, block in np.argwhere(store.commits().present).tolist():
        for variable in store.groups[group]:
            facts = (path / store.layouts[variable.name].key(stage, block)).stat()
            files[f"{variable.name} {stage} {block}"] = (facts.st_ino, facts.st_mtime_ns)
    return files


def expected_values(store: Any, order: int) -> dict[str, np.ndarray]:
    """Return what `stream` writes at one stage, by variable, in storage dtype with dims (layer, entity, ...)."""
    from stratalens.store.writing.buffers import BlockBuffer, BlockMemory, RowBlock

    parts: dict[str, list[np.ndarray]] = {}
    for number in range(store.geometry.blocks):
        memory = BlockMemory(store.layouts, None)
        block = RowBlock(number, *store.geometry.rows(number), tuple(store.layouts))
        fill_randomly(BlockBuffer("x", block, memory, ["recorded"]), store, order)
        for name, image in memory.images.items():
            if name != "recorded":
                parts.setdefault(name, []).append(image.values[:, 0, : len(block)].copy())
    return {name: np.concatenate(arrays, axis=1) for name, arrays in parts.items()}


def never_shows_what_was_not_written(path: Path | str) -> None:
    """Assert that recorded rows have the written values and all other rows are missing."""
    store = load(storage_at(path))
    ds = open_store(path, dtype="bits", chunks=None)
    for stage in ds.stage.values.tolist():
        expected = expected_values(store, STAGES.index(stage))
        recorded = ds.recorded.sel(stage=stage).values
        for name in ("resid_post", "embed", "resid_post_l2"):
            values = ds[name].sel(stage=stage).transpose("entity", ...).values
            wanted = np.moveaxis(expected[name], 1, 0)
            wanted = wanted if "layer" in ds[name].dims else wanted[:, 0]
            np.testing.assert_array_equal(values[recorded], wanted[recorded])
            missing = values[~recorded]
            assert (missing == 0x7FC0).all() if missing.dtype == np.uint16 else np.isnan(missing).all()


if __name__ == "__main__":
    rest = sys.argv[2:]
    stream(sys.argv[1], shared=(int(rest[1]), int(rest[2])) if rest else None)
