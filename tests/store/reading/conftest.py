"""Stores of all float dtypes, which the tests of reading share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.stores import make_store


@pytest.fixture(scope="module")
def stores(module_path: Path) -> dict[str, Path]:
    root = module_path
    return {
        dtype: make_store(
            root / f"{dtype}.zarr",
            3,
            [1, 3, 5],
            23,
            tuple(range(-7, 0)) if dtype == "float16" else ("last", "-2", "-3"),
            5,
            dtype,
            block_size=7,
            skip={"s1": [0, 9]},
            prompts_per_entity=2,
        )
        for dtype in ("float32", "float16", "bfloat16")
    }
