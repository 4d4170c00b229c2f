"""A store with several blocks, its shared copy, and what the tests of shared stores read from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from stratalens.store import ActivationWriter, open_store
from stratalens.store.format.schema import site_variable
from stratalens.store.interop.push import push_store
from stratalens.store.writing.create import create
from support import synthetic_writer
from support.stores import fill_randomly, make_labels
from support.synthetic_writer import STAGES

WIDTH, ROWS, BLOCK = 512, 480, 96


def make_shared_stores(root: Path) -> None:
    """Write a store as it was recorded (old.zarr) and its shared copy (new.zarr).

    The same of a small store (small.zarr, small-new.zarr) and of a compressed one (zstd.zarr, zstd-new.zarr).
    """
    site = site_variable("resid_post", ["d_model"], [WIDTH], "bfloat16", "blocks.{layer}.hook_out")
    shape: dict[str, Any] = {"layers": range(4), "tokens": ["last"], "variables": [site], "block_size": BLOCK}
    with ActivationWriter(create(root / "old.zarr", entities=make_labels(ROWS, STAGES), **shape)) as writer:
        for order, name in enumerate(STAGES):
            add_stage(writer, name, order)
    push_store(root / "old.zarr", root / "new.zarr")
    synthetic_writer.stream(root / "small.zarr")
    push_store(root / "small.zarr", root / "small-new.zarr")
    shape |= {"compression": "zstd", "block_size": 10, "layers": range(3)}
    with ActivationWriter(create(root / "zstd.zarr", entities=make_labels(22, STAGES), **shape)) as writer:
        for order, name in enumerate(STAGES):
            add_stage(writer, name, order)
    push_store(root / "zstd.zarr", root / "zstd-new.zarr")


def add_stage(writer: ActivationWriter, name: str, order: int, seed: int | None = None) -> None:
    """Record a whole stage with random values."""
    with writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
        for block in stage.pending():
            stage.submit(fill_randomly(stage.buffer(block), writer.store, order if seed is None else seed))


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def create_small(path: Path | str) -> Any:
    """Create the small store without values."""
    return synthetic_writer.make(path)  # type: ignore[arg-type]


def first_slab(url: str | Path) -> np.ndarray:
    """Open a store and read one layer of one stage."""
    values: np.ndarray = open_store(url).resid_post.sel(stage="s1", layer=2).values
    return values
