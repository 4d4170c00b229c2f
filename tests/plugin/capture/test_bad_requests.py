"""Wrong models, sites, layers, stages and values: what is said, and that nothing is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stratalens.plugin.capture.run import capture
from stratalens.plugin.stages.checkpoints import Checkpoint, LoraAdapter, Revision
from stratalens.plugin.stages.stage import check_stage_name
from stratalens.store.errors import InputError, NonFiniteError
from support.models import TwoLayers, bridge, hf_model, run_two_layers, save_checkpoint, table, tokenizer


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


def test_stages_without_names(tmp_path: Path) -> None:
    folder = str(save_checkpoint(tmp_path / "base"))
    with pytest.raises(InputError, match=r"stages is a list: .* mapping \{name: folder\}.*give \{'base': '.*base'\}"):
        capture([folder], table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="stages is a tuple"):
        capture((TwoLayers(), TwoLayers()), table(3), tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


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
    ds = capture(model, table(3), tmp_path / "a.zarr", sites="hook_unembed", statistics=False)
    assert np.isfinite(ds.unembed.values).all()
    passes = []
    handle = model.original_model.transformer.h[2].register_forward_hook(lambda m, i, o: passes.append(1))
    early = capture(model, table(3), tmp_path / "b.zarr", layers=[0], statistics=False).load()
    probed = len(passes)
    late = capture(model, table(3), tmp_path / "c.zarr", statistics=False).load()
    handle.remove()
    assert len(passes) - probed > probed  # only the probing passes went further than block 0
    np.testing.assert_array_equal(early.resid_post.values[:, 0], late.resid_post.values[:, 0])


def test_models_without_hooks(tmp_path: Path) -> None:
    for wrong in (nn.Linear(2, 2), hf_model("llama")):
        with pytest.raises(InputError, match="boot_transformers"):
            capture(wrong, table(3), tmp_path / "run.zarr", tokenizer=tokenizer())
    with pytest.raises(InputError, match="not a hooked model"):
        capture({"a": lambda: 3}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="from which no model"):
        capture({"a": 3}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="tokenizer"):
        capture(TwoLayers(), table(3), tmp_path / "run.zarr", forward=run_two_layers)
    with pytest.raises(InputError, match="does not return"):
        capture(
            TwoLayers(), table(3), tmp_path / "run.zarr", sites="embed", tokenizer=tokenizer(), statistics=("loss",),
            forward=lambda m, i, k: None if m(i, k) is None else "nothing",
        )  # fmt: skip
    with pytest.raises(InputError, match="no position axis"):
        capture(
            TwoLayers(), table(3), tmp_path / "run.zarr", sites="hook_total", tokenizer=tokenizer(),
            forward=run_two_layers,
        )  # fmt: skip
    assert not (tmp_path / "run.zarr").exists()


def test_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    short = bridge("gpt2", n_positions=12)
    with pytest.raises(InputError, match="context of 12 tokens"):
        capture(short, table(5), tmp_path / "run.zarr")


@pytest.mark.parametrize("name", ["", "  ", "..", ".", "a/b", "a\\b", "a\nb", "a\x00", " a", "a\u2028b", "x" * 300, 3])
def test_stage_names(name: Any) -> None:
    with pytest.raises(InputError, match="stage name"):
        check_stage_name(name)


def test_stage_names_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("was called")

    with pytest.raises(InputError, match="stage name"):
        capture({"fine": never, "../up": never}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="stages is empty"):
        capture({}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="does not exist"):
        capture({"fine": never, "gone": tmp_path / "gone"}, table(3), tmp_path / "run.zarr")


def test_checkpoint_folders(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "full")
    assert Checkpoint(folder).load(None, "cpu").cfg.n_layers == 3
    file = tmp_path / "file"
    file.write_text("x")
    empty = tmp_path / "empty"
    empty.mkdir()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    silent = save_checkpoint(tmp_path / "silent")
    for found in silent.glob("tokenizer*"):
        found.unlink()
    for source, message in (
        (file, "is a file"),
        (empty, "no config.json"),
        (pickled, "pickled weights are never loaded"),
        (silent, "holds no tokenizer"),
        (LoraAdapter(empty), "adapter_config.json"),
    ):
        with pytest.raises(InputError, match=message):
            capture({"s": source}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="local path"):
        Revision(str(folder), "step1000")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers in the old way
def test_adapters(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = save_checkpoint(tmp_path / "base")
    tuned = get_peft_model(hf_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    tuned.save_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload()
    stages = {"base": folder, "tuned": LoraAdapter(tmp_path / "adapter", base=folder)}
    ds = capture(stages, table(4), tmp_path / "run.zarr", statistics=False)
    ids, mask = (torch.from_numpy(a) for a in table(4).tokenize(tokenizer()).batch([2], 40))
    with torch.no_grad():
        states = merged(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    last = int(mask.sum()) - 1
    np.testing.assert_allclose(ds.resid_post.values[1, 0, 2, 0], states[1][0, last].numpy(), rtol=1e-3, atol=1e-4)
    assert not np.allclose(ds.resid_post.values[0, 0], ds.resid_post.values[1, 0])


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    model = TwoLayers()

    def spoilt(own: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hook = own.hook_dict["hook_embed"]
        if ids.shape[1] > 4:
            hook.add_hook(lambda x, hook: x.masked_fill(torch.arange(x.shape[0])[:, None, None] == 1, torch.inf))
        try:
            return own(ids, mask)
        finally:
            hook.remove_hooks()

    asked: dict[str, Any] = {
        "sites": ("layers.{layer}.hook_state",), "tokenizer": tokenizer(), "forward": spoilt, "statistics": False,
    }  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"stage 'model', site 'state', layer 0, entity 'r0000\d\d', token 'last'"):
        capture(model, table(4), tmp_path / "a.zarr", **asked)
    kept = capture(model, table(4), tmp_path / "b.zarr", nonfinite="keep", **asked)
    assert kept.recorded.values.all()
    assert not np.isfinite(kept.state.values).all()


def test_float16_overflow_is_named_and_bfloat16_is_not_one(tmp_path: Path) -> None:
    large = bridge("llama")
    with torch.no_grad():
        large.original_model.model.layers[1].mlp.down_proj.weight.mul_(1e7)
    with pytest.raises(NonFiniteError, match=r"layer 1.*beyond the range of float16.*bfloat16"):
        capture(large, table(3), tmp_path / "a.zarr", dtype="float16", nonfinite="keep", statistics=False)
    wide = capture(large, table(3), tmp_path / "b.zarr", dtype="float32", statistics=False).resid_post.values
    half = capture(large, table(3), tmp_path / "c.zarr", dtype="bfloat16", statistics=False).resid_post.values
    np.testing.assert_array_equal(half, torch.from_numpy(wide).bfloat16().float().numpy())


def test_the_models_own_dtype(tmp_path: Path) -> None:
    ds = capture(bridge("llama", dtype=torch.bfloat16), table(3), tmp_path / "a.zarr", statistics=("l2", "loss"))
    assert ds.resid_post.attrs.get("dtype", "bfloat16") == "bfloat16"
    assert np.isfinite(ds.loss.values).all()
    expected = np.linalg.norm(ds.resid_post.values.astype(np.float64), axis=-1)
    np.testing.assert_allclose(ds.resid_post_l2.values, expected, rtol=1e-5)


@pytest.mark.parametrize(("device", "message"), [("cuda", "sees no CUDA device"), ("warp", "none that PyTorch knows")])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(
    device: str, message: str, tmp_path: Path
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")

    def load() -> Any:
        raise AssertionError("loaded")

    with pytest.raises(InputError, match=message):
        capture({"a": load}, table(4), tmp_path / "run.zarr", device=device)
    assert not (tmp_path / "run.zarr").exists()
