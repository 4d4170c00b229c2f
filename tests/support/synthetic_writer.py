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
    """Write the whole store (or its first stages), or what is missing of it."""
    rank, size = shared or (0, 1)
    with ActivationWriter(make(path, storage), shared=shared is not None) as writer:
        for order, name in enumerate(stages):
            with writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
                for block in stage.pending(rank, size):
                    stage.submit(fill_randomly(stage.buffer(block), writer.store, seed=order))


def content(path: Path) -> dict[str, bytes]:
    """Bytes of every file that a finished store is made of; times live in the history alone."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name != "history.jsonl"
    }


def committed_files(path: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of writing of every data file that a commit record speaks of: a block written again shows."""
    if not (path / "zarr.json").exists():
        return {}
    store = load(storage_at(path))
    found = {}
    for group, stage, block in np.argwhere(store.commits().present).tolist():
        for variable in store.groups[group]:
            facts = (path / store.layouts[variable.name].key(stage, block)).stat()
            found[f"{variable.name} {stage} {block}"] = (facts.st_ino, facts.st_mtime_ns)
    return found


def expected_values(store: Any, order: int) -> dict[str, np.ndarray]:
    """What `stream` writes at one stage, by variable, in storage dtype, dims (layer, entity, ...)."""
    from stratalens.store.writing.buffers import Block, BlockBuffer, Memory

    parts: dict[str, list[np.ndarray]] = {}
    for number in range(store.geometry.blocks):
        memory = Memory(store.layouts, None)
        block = Block(number, *store.geometry.rows(number), tuple(store.layouts))
        fill_randomly(BlockBuffer("x", block, memory, ["recorded"]), store, order)
        for name, image in memory.images.items():
            if name != "recorded":
                parts.setdefault(name, []).append(image.values[:, 0, : len(block)].copy())
    return {name: np.concatenate(arrays, axis=1) for name, arrays in parts.items()}


def never_shows_what_was_not_written(path: Path | str) -> None:
    """Whatever the reader shows as recorded is what was given; everything else reads as missing."""
    store = load(storage_at(path))
    ds = open_store(path, dtype="bits", chunks=None)
    for stage in ds.stage.values.tolist():
        given = expected_values(store, STAGES.index(stage))
        recorded = ds.recorded.sel(stage=stage).values
        for name in ("resid_post", "embed", "resid_post_l2"):
            held = ds[name].sel(stage=stage).transpose("entity", ...).values
            wanted = np.moveaxis(given[name], 1, 0)
            wanted = wanted if "layer" in ds[name].dims else wanted[:, 0]
            np.testing.assert_array_equal(held[recorded], wanted[recorded])
            missing = held[~recorded]
            assert (missing == 0x7FC0).all() if missing.dtype == np.uint16 else np.isnan(missing).all()


if __name__ == "__main__":
    rest = sys.argv[2:]
    stream(sys.argv[1], shared=(int(rest[1]), int(rest[2])) if rest else None)
