"""Models inside a wrapper: the message names the attribute to pass, and passing it records what the model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stratalens as sl
from stratalens.store.errors import InputError
from support import models


class Policy(nn.Module):
    """A module of the user's around a model."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.language_model, self.value_head = language_model, nn.Linear(32, 1)


WRAPPERS: dict[str, tuple[Any, str]] = {
    "DataParallel": (
        nn.DataParallel,
        r"DataParallel wraps a hooked model\. Pass model\.module, or accelerator\.unwrap",
    ),
    "compile": (
        lambda m: torch.compile(m, backend="eager"),
        r"OptimizedModule wraps a hooked model\. Pass model\._orig_mod:",
    ),
    "both": (lambda m: nn.DataParallel(torch.compile(m, backend="eager")), r"Pass model\.module\._orig_mod"),
    "policy": (Policy, r"Policy wraps a hooked model\. Pass model\.language_model:"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ["llama", "own"])
def test_the_attribute_to_pass_is_named(tmp_path: Path, kind: str, wrapper: str) -> None:
    wrap, message = WRAPPERS[wrapper]
    model = models.TwoLayers() if kind == "own" else models.bridge(kind)
    for call in (lambda m: sl.capture(m, models.table(3), tmp_path / "run.zarr"), sl.check):
        with pytest.raises(InputError, match=message):
            call(wrap(model))


def test_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(models.bridge("gpt2"))
        with pytest.raises(InputError, match=r"DistributedDataParallel wraps a hooked model\. Pass model\.module"):
            sl.capture(model, models.table(3), tmp_path / "run.zarr")
        ds = sl.capture(model.module, models.table(3), tmp_path / "run.zarr")
    finally:
        torch.distributed.destroy_process_group()
    expected = sl.capture(models.bridge("gpt2"), models.table(3), tmp_path / "b.zarr")
    np.testing.assert_array_equal(ds.resid_post.values, expected.resid_post.values)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
def test_peft_has_to_be_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(models.hf_model("llama"), lora)
    with pytest.raises(InputError, match=r"hf_model=model\.merge_and_unload\(\).*have to be merged"):
        sl.capture(model, models.table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match=r"hf_model=model\.module\.merge_and_unload\(\)"):
        sl.capture(nn.DataParallel(model), models.table(3), tmp_path / "run.zarr")


def test_plain_models_and_other_objects(tmp_path: Path) -> None:
    plain = models.hf_model("neox")
    for model, message in (
        (plain, r"hf_model=model, tokenizer"),
        (nn.DataParallel(plain), r"hf_model=model\.module, tokenizer"),
        (nn.Linear(2, 2), r"Linear has no TransformerLens hooks"),
    ):
        with pytest.raises(InputError, match=message):
            sl.capture(model, models.table(3), tmp_path / "run.zarr")


def test_a_model_prepared_by_accelerate_is_the_model(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.unwrap_model(accelerator.prepare(models.bridge("neox")))
    ds = sl.capture(model, models.table(3), tmp_path / "run.zarr")
    expected = sl.capture(models.bridge("neox"), models.table(3), tmp_path / "b.zarr")
    np.testing.assert_array_equal(ds.resid_post.values, expected.resid_post.values)
