"""Invalid requests, models, sites and layers are refused with a remedy, and nothing is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stratalens.plugin.capture.run import capture
from stratalens.store.errors import InputError
from support.models import TwoLayers, bridge, hf_model, run_two_layers, table, tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    return bridge("gpt2")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"sites": "resid_pst"}, "did you mean 'resid_post'"),
        ({"sites": ("resid_post", "blocks.0.attn.hook_zz")}, "did you mean"),
        ({"sites": ()}, "no sites given"),
        ({"sites": ("resid_post", "blocks.1.hook_resid_post")}, "twice"),
        ({"sites": "blocks.{layer}.attn.hook_pattern"}, "no position axis"),
        ({"sites": "blocks.{layer}.hook_mlp_in"}, r"model\.set_use_hook_mlp_in\(True\)"),
        ({"sites": "result"}, r"set_use_attn_result\(True\)"),
        ({"sites": "blocks.1.attn.hook_q_input"}, r"set_use_split_qkv_input\(True\)"),
        ({"sites": "blocks.1.attn.qkv.hook_out"}, "did not fire"),
        ({"sites": "embed.hook_in"}, "torch.int64"),
        ({"sites": "blocks.7.hook_resid_post"}, "no block 7"),
        ({"sites": "blocks.2.hook_resid_post", "layers": [0]}, "not among layers"),
        ({"layers": [0, 3]}, "blocks 0 to 2"),
        ({"layers": [1, -2]}, "twice"),
        ({"layers": []}, "layers is empty"),
        ({"layers": ["a"]}, "block indices"),
        ({"dtype": "float8"}, "float16"),
        ({"statistics": ("l2", "entropi")}, "did you mean 'entropy'"),
        ({"statistics": ("answer_loss",)}, "column 'answer'"),
        ({"positions": ("lost",)}, "last"),
        ({"nonfinite": "maybe"}, "keep"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_requests(model: Any, tmp_path: Path, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        capture(model, table(3), tmp_path / "run.zarr", **request_)
    assert not (tmp_path / "run.zarr" / "resid_post").exists() or "batch_size" in request_


def test_gated_sites_fire_after_their_setter(tmp_path: Path) -> None:
    opened = bridge("gpt2")
    opened.set_use_hook_mlp_in(True)
    opened.set_use_attn_result(True)
    ds = capture(
        opened, table(3), tmp_path / "run.zarr", sites=("result", "blocks.{layer}.hook_mlp_in"), statistics=False
    )
    assert ds.result.dims[-2:] == ("head", "d_model")
    assert ds.mlp_in.dims[-1] == "d_model"


def test_a_layer_in_the_name(model: Any, tmp_path: Path) -> None:
    sites = ("blocks.2.hook_resid_post", "blocks.0.hook_mlp_out", "hook_embed")
    ds = capture(model, table(3), tmp_path / "run.zarr", sites=sites, statistics=False)
    assert ds.layer.values.tolist() == [0, 2]
    assert {"resid_post", "mlp_out", "embed"} <= set(ds)
    assert ds.resid_post.attrs["hook"] == "blocks.{layer}.hook_resid_post"


def test_sites_behind_the_head_and_early_stops(model: Any, tmp_path: Path) -> None:
    ds = capture(model, table(3), tmp_path / "a.zarr", sites="hook_unembed", statistics=False, check=False)
    assert np.isfinite(ds.unembed.values).all()
    passes = []
    handle = model.original_model.transformer.h[2].register_forward_hook(lambda m, i, o: passes.append(1))
    early = capture(model, table(3), tmp_path / "b.zarr", layers=[0], statistics=False, check=False).load()
    dry_runs = len(passes)
    late = capture(model, table(3), tmp_path / "c.zarr", statistics=False, check=False).load()
    handle.remove()
    assert len(passes) - dry_runs > dry_runs  # only the dry runs went beyond block 0
    np.testing.assert_array_equal(early.resid_post.values[:, 0], late.resid_post.values[:, 0])


def test_models_without_hooks(tmp_path: Path) -> None:
    for wrong in (nn.Linear(2, 2), hf_model("llama")):
        with pytest.raises(InputError, match="boot_transformers"):
            capture(wrong, table(3), tmp_path / "run.zarr", tokenizer=tokenizer())
    with pytest.raises(InputError, match="not a hooked model"):
        capture({"a": lambda: 3}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match=r"stage 'a' is of type int\. Pass a model, a function"):
        capture({"a": 3}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="tokenizer"):
        capture(TwoLayers(), table(3), tmp_path / "run.zarr", forward=run_two_layers)
    with pytest.raises(InputError, match="but the forward pass of this TwoLayers returns no tensor"):
        capture(
            TwoLayers(),
            table(3),
            tmp_path / "run.zarr",
            sites="embed",
            tokenizer=tokenizer(),
            statistics=("loss",),
            forward=lambda m, i, k: None if m(i, k) is None else "nothing",
        )
    with pytest.raises(InputError, match="no position axis"):
        capture(
            TwoLayers(),
            table(3),
            tmp_path / "run.zarr",
            sites="hook_total",
            tokenizer=tokenizer(),
            forward=run_two_layers,
        )
    assert not (tmp_path / "run.zarr").exists()


def test_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    short = bridge("gpt2", n_positions=12)
    with pytest.raises(InputError, match="context of 12 tokens"):
        capture(short, table(5), tmp_path / "run.zarr")


def test_the_models_own_dtype(tmp_path: Path) -> None:
    ds = capture(bridge("llama", dtype=torch.bfloat16), table(3), tmp_path / "a.zarr", statistics=("l2", "loss"))
    assert ds.resid_post.attrs.get("dtype", "bfloat16") == "bfloat16"
    assert np.isfinite(ds.loss.values).all()
    expected = np.linalg.norm(ds.resid_post.values.astype(np.float64), axis=-1)
    np.testing.assert_allclose(ds.resid_post_l2.values, expected, rtol=1e-5)
