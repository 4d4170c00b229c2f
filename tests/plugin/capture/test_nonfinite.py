"""Activations that are NaN, infinite, or beyond the range of the storage dtype."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import stratalens as sl
from stratalens.store.errors import NonFiniteError
from support import models

OPTIONS: dict[str, Any] = {"nonfinite": "keep", "statistics": False, "check": False}


def add(model: Any, layer: int, value: float, feature: int = 3, row: int | None = None) -> None:
    """Put a value at one feature of resid_post of a block, in all rows of a batch or in one."""

    def change(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        x[slice(None) if row is None else row, :, feature] = value
        return x

    model.add_hook(f"blocks.{layer}.hook_resid_post", change)


@pytest.mark.parametrize("kind", ["llama", "neox"])
@pytest.mark.parametrize("other", [None, float("nan"), float("inf")])
def test_overflow_is_an_error_next_to_values_that_are_kept(tmp_path: Path, kind: str, other: float | None) -> None:
    model = models.bridge(kind)
    if other is not None:  # in an earlier layer, row and feature than the overflow
        add(model, 0, other, feature=0, row=0)
    else:
        add(model, 0, 1.0)
    add(model, 1, 1e6)
    message = r"layer 1, entity 'p\w+', token 'last', feature \[3\]: the activation is beyond the range of float16"
    with pytest.raises(NonFiniteError, match=message):
        sl.capture(model, models.table(4), tmp_path / "run.zarr", dtype="float16", **OPTIONS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_that_are_not_finite_are_kept(tmp_path: Path, dtype: str) -> None:
    model = models.bridge("gpt2")
    add(model, 2, float("nan"), feature=1)
    add(model, 2, float("-inf"), feature=2)
    ds = sl.capture(model, models.table(3), tmp_path / "run.zarr", dtype=dtype, layers=[2], **OPTIONS)
    values = ds.resid_post.values.astype(np.float32)
    assert np.isnan(values[..., 1]).all()
    assert np.isneginf(values[..., 2]).all()
    assert np.isfinite(np.delete(values, [1, 2], axis=-1)).all()


def test_float32_beyond_bfloat16(tmp_path: Path) -> None:
    """The largest numbers of float32 round to infinity in bfloat16."""
    model = models.bridge("gpt2")
    add(model, 2, float(torch.finfo(torch.float32).max))
    with pytest.raises(NonFiniteError, match="beyond the range of bfloat16"):
        sl.capture(model, models.table(3), tmp_path / "run.zarr", dtype="bfloat16", layers=[2], **OPTIONS)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_a_model_loaded_in_float16_should_be_loaded_in_bfloat16(tmp_path: Path, kind: str) -> None:
    model = models.bridge(kind, dtype=torch.float16)
    model.add_hook("blocks.1.hook_resid_post", lambda x, hook: x * 1e5)
    with pytest.raises(NonFiniteError, match=r"largest value is 65504: load it in bfloat16 .*Pass nonfinite='keep'"):
        sl.capture(model, models.table(3), tmp_path / "run.zarr", statistics=False, check=False)
    wide = models.bridge(kind, dtype=torch.bfloat16)
    add(wide, 1, float("inf"))
    with pytest.raises(NonFiniteError) as error:
        sl.capture(wide, models.table(3), tmp_path / "b.zarr", statistics=False, check=False)
    assert "float16" not in str(error.value).replace("bfloat16", "")


def test_the_position_is_named_where_all_are_recorded(tmp_path: Path) -> None:
    """Batches of short rows have no first columns; the label is still that of the token."""
    model = models.bridge("gpt2")
    prompts = [f"one two {i}" for i in range(4)] + [" ".join([f"word{i}"] * 9) for i in range(4)]
    table = sl.PromptTable.from_dataframe(
        pd.DataFrame({"prompt": prompts, "prompt_id": [f"p{i}" for i in range(8)], "entity_id": range(8)})
    )

    def change(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        x[:, 0, 0] = float("inf")
        return x

    model.add_hook("blocks.0.hook_resid_post", change)
    options: dict[str, Any] = {"positions": "all", "statistics": False, "check": False, "layers": [0]}
    with pytest.raises(NonFiniteError, match=r"feature \[0\]") as error:
        sl.capture(model, table, tmp_path / "run.zarr", **options)
    place = re.search(r"entity 'p(\d)', token (-\d+),", str(error.value))
    assert place is not None
    row = int(place.group(1))
    assert row < 4  # one of the short rows
    assert int(place.group(2)) == -len(models.tokenizer()(prompts[row]).input_ids)
