"""Names of sites in the store: several stacks of blocks, hooks that end in their index, two blocks by full names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

import stratalens as sl
from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.models.sites import name_sites
from support import models

OPTIONS: dict[str, Any] = {"tokenizer": models.tokenizer(), "statistics": ("l2", "mean"), "check": False}


class Stacks(HookedRootModule):
    """A chain of token embeddings through stacks of hook points; every hook adds its own number."""

    def __init__(self, stacks: dict[str, int], ending: str = "hook_resid_post") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(models.VOCABULARY, 8)
        self.ending = ending
        for stack, blocks in stacks.items():
            points = [HookPoint() if not ending else nn.ModuleDict({ending: HookPoint()}) for _ in range(blocks)]
            self.add_module(stack, nn.ModuleList(points))
        self.stacks = list(stacks)
        self.setup()

    def forward(self, ids: Tensor) -> Tensor:
        x, number = self.embed(ids), 0
        for stack in self.stacks:
            for block in getattr(self, stack):
                number += 1
                x = (block[self.ending] if self.ending else block)(x + number)
        return x


def embedded(model: Stacks, rows: int) -> np.ndarray:
    """Return the embedding of the last token of the first rows of the table."""
    tokenizer = models.tokenizer()
    last = [tokenizer(prompt).input_ids[-1] for prompt in models.table(rows).prompts]
    return model.embed.weight[last].detach().numpy()


def test_sites_of_two_stacks_have_two_names(tmp_path: Path) -> None:
    model = Stacks({"encoder": 2, "decoder": 2})
    sites = ["encoder.0.hook_resid_post", "decoder.1.hook_resid_post"]
    ds = sl.capture(model, models.table(3), tmp_path / "run.zarr", sites=sites, **OPTIONS)
    assert {"encoder_resid_post", "decoder_resid_post", "decoder_resid_post_l2"} <= set(ds)
    assert ds.layer.values.tolist() == [0, 1]
    start = embedded(model, 3)
    for name, added in (("encoder_resid_post", (1, 3)), ("decoder_resid_post", (6, 10))):
        for layer, number in enumerate(added):
            np.testing.assert_allclose(ds[name].values[0, layer, :, 0], start + number, rtol=1e-5)


@pytest.mark.parametrize(
    ("stacks", "names"),
    [
        ({"encoder_blocks": 2, "decoder_blocks": 1}, {"encoder_resid_post", "decoder_resid_post"}),
        ({"blocks": 2, "vision_layers": 1}, {"resid_post", "vision_resid_post"}),
        ({"a_blocks": 1, "a_layers": 1}, {"a_blocks_resid_post", "a_layers_resid_post"}),
        ({"layers": 1, "h": 1}, {"layers_resid_post", "h_resid_post"}),
    ],
)
def test_the_name_of_the_stack_is_short(stacks: dict[str, int], names: set[str]) -> None:
    hooks = [f"{stack}.{{layer}}.hook_resid_post" for stack in stacks]
    assert set(name_sites(adapt(Stacks(stacks)), hooks).values()) == names


@pytest.mark.parametrize(("stack", "name"), [("h", "h"), ("hook_state", "state"), ("loss", "loss_site")])
def test_a_hook_that_ends_in_its_index(tmp_path: Path, stack: str, name: str) -> None:
    """It has the name of its stack, except where this is the name of a statistic of the output."""
    model = Stacks({stack: 3}, ending="")
    ds = sl.capture(model, models.table(3), tmp_path / "run.zarr", sites=f"{stack}.{{layer}}", **OPTIONS)
    assert ds[name].dims == ("stage", "layer", "entity", "token", f"{name}_dim")
    assert ds[name].shape == (1, 3, 3, 1, 8)


def test_two_sites_of_one_block_with_one_plain_name() -> None:
    adapter = adapt(models.bridge("gpt2"))
    hooks = ["blocks.{layer}.mlp.hook_out", "blocks.{layer}.hook_mlp_out", "blocks.{layer}.attn.hook_in"]
    assert list(name_sites(adapter, hooks).values()) == ["mlp_hook_out", "mlp_out", "attn_in"]


def test_a_store_keeps_the_names_that_it_has(tmp_path: Path) -> None:
    model = Stacks({"h": 2}, ending="")
    path = tmp_path / "run.zarr"
    adapter = adapt(model)
    assert name_sites(adapter, ["h.{layer}"], {"h.{layer}": "h_{layer}"}) == {"h.{layer}": "h_{layer}"}
    sl.capture(model, models.table(3), path, sites="h.{layer}", **OPTIONS)
    again = sl.capture(
        {"model": model, "later": lambda: Stacks({"h": 2}, ending="")},
        models.table(3),
        path,
        sites="h.{layer}",
        allow_same_weights=True,
        **OPTIONS,
    )
    assert bool(again.recorded.all())


def test_a_second_stage_with_a_site_named_as_a_short_name(tmp_path: Path) -> None:
    """The name `resid_post` here belongs to a hook that is not TransformerLens' own."""
    stages = {"a": Stacks({"layers": 2}), "b": Stacks({"layers": 2})}
    options = {**OPTIONS, "sites": "layers.{layer}.hook_resid_post", "allow_same_weights": True}
    ds = sl.capture(stages, models.table(3), tmp_path / "run.zarr", **options)
    assert ds.resid_post.shape == (2, 2, 3, 1, 8)
    np.testing.assert_array_equal(ds.resid_post[0].values, ds.resid_post[1].values)


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_two_blocks_by_full_names_are_two_layers(tmp_path: Path, kind: str) -> None:
    model, table = models.bridge(kind), models.table(3)
    options = {**OPTIONS, "statistics": False}
    sites = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    ds = sl.capture(model, table, tmp_path / "full.zarr", sites=sites, **options)
    short = sl.capture(model, table, tmp_path / "short.zarr", layers=[0, 2], **options)
    assert ds.layer.values.tolist() == [0, 2]
    np.testing.assert_array_equal(ds.resid_post.values, short.resid_post.values)
    with pytest.raises(sl.errors.InputError, match=r"Pass sites=\['resid_post'\], layers=\[1\]"):
        sl.capture(model, table, tmp_path / "b.zarr", sites=["resid_post", "blocks.1.hook_resid_post"], **options)
    with pytest.raises(sl.errors.InputError, match="requested twice"):
        sl.capture(model, table, tmp_path / "b.zarr", sites=[sites[0], sites[0]], **options)


@pytest.mark.skipif(not models.ON_39, reason="HookedEncoderDecoder exists in TransformerLens 3.9 only")
def test_hooked_encoder_decoder(tmp_path: Path) -> None:
    import transformer_lens

    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 48, "n_ctx": 64}
    special = {"act_fn": "relu", "d_vocab": models.VOCABULARY, "normalization_type": "RMS", "device": "cpu"}
    special |= {"relative_attention_max_distance": 16, "relative_attention_num_buckets": 8}
    config = transformer_lens.HookedTransformerConfig(**sizes, **special)
    model: Any = transformer_lens.HookedEncoderDecoder(config, tokenizer=models.tokenizer())
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.normal_(std=0.2)

    def run(model: Any, ids: Tensor, mask: Tensor) -> Any:
        return model(ids, ids, one_zero_attention_mask=mask)

    sites = ["encoder.0.hook_resid_post", "decoder.1.hook_resid_post", "decoder.1.hook_resid_mid_cross"]
    ds = sl.capture(model, models.table(1), tmp_path / "run.zarr", sites=sites, forward=run, **OPTIONS)
    ids = torch.tensor([models.tokenizer()(models.table(1).prompts[0]).input_ids])
    _, cache = model.run_with_cache(ids, ids, one_zero_attention_mask=torch.ones_like(ids))
    for name, hook in zip(("encoder_resid_post", "decoder_resid_post", "decoder_resid_mid_cross"), sites, strict=True):
        for layer in (0, 1):
            expected = cache[hook.replace("r.0.", f"r.{layer}.").replace("r.1.", f"r.{layer}.")][0, -1]
            np.testing.assert_array_equal(ds[name].values[0, layer, 0, 0], expected.detach().numpy())
