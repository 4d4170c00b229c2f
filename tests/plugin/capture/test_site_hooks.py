"""Every site at every position equals the cache of TransformerLens's run_with_cache bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stratalens.plugin.capture.batching import length_buckets
from stratalens.plugin.capture.run import capture
from stratalens.plugin.models.sites import SHORT_NAMES
from stratalens.store.errors import NonFiniteError
from support.models import BRIDGES, ON_39, TwoLayers, bridge, hooked, run_two_layers, table, tokenizer

SITES = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "mlp_post",
    "z",
    "q",
    "k",
    "v",
    "embed",
    "ln_final",
)
FULL = ("blocks.{layer}.ln2.hook_scale", "blocks.0.mlp.hook_pre")
KINDS = [*BRIDGES, "compatibility", *(["hooked"] if ON_39 else [])]


def without(kind: str) -> set[str]:
    return {"resid_mid"} if kind == "neox" else set()  # parallel attention has no resid_mid


@pytest.fixture(scope="module", params=KINDS)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(kind, dataset of all tokens, {row: {site: array}} of run_with_cache at the same padding)."""
    kind = request.param
    model, prompts = hooked(kind), table(9)
    sites = [s for s in SITES if s not in without(kind)]
    path = tmp_path_factory.mktemp(kind) / "run.zarr"
    ds = capture(model, prompts, path, sites=[*sites, *FULL], layers=[0, 1, 2], positions="all", statistics=False)
    tokenized = prompts.tokenize(model.tokenizer)
    truth: dict[str, list[Any]] = {}
    for group in length_buckets(np.arange(9), tokenized.lengths):
        ids, mask = (torch.from_numpy(a) for a in tokenized.batch(group.rows, group.pad_to))
        with torch.no_grad():
            _, cache = model.run_with_cache(ids, attention_mask=mask)
        for hook in (h for h in cache if cache[h].shape[0] == len(ids)):  # rotary tables have no batch
            for line, row in enumerate(group.rows):
                truth.setdefault(hook, [None] * 9)[row] = cache[hook][line].numpy().copy()
    return kind, ds, truth, tokenized.lengths


@pytest.mark.parametrize("site", [*SITES, "ln2_scale", "mlp_pre"])
def test_every_site_at_every_position(recorded: Any, site: str) -> None:
    kind, ds, truth, lengths = recorded
    if site in without(kind):
        pytest.skip(f"{kind} has no {site}")
    hooks = [h for h in {**SHORT_NAMES, "ln2_scale": FULL[:1]}[site] if h.replace("{layer}", "0") in truth]
    array = ds[site].isel(stage=0)
    layers = range(3) if "{layer}" in hooks[0] else [None]
    for layer in layers:
        values = (array if layer is None else array.sel(layer=layer)).values
        for row, length in enumerate(lengths):
            expected = truth[hooks[0].replace("{layer}", str(layer))][row][:length]
            assert values[row, -length:].dtype == np.float32
            np.testing.assert_array_equal(values[row, -length:], expected)
            assert np.isnan(values[row, :-length]).all()


def test_dims_are_named_after_what_they_are(recorded: Any) -> None:
    kind, ds, _, _ = recorded
    assert ds.resid_post.dims == ("stage", "layer", "entity", "token", "d_model")
    assert ds.mlp_post.dims[-1] == "d_mlp"
    assert ds.z.dims[-2:] == ds.q.dims[-2:] == ("head", "d_head")
    assert ds.k.dims[-2:] == ds.v.dims[-2:] == ("kv_head", "d_head")
    assert ds.embed.dims == ds.ln_final.dims == ("stage", "entity", "token", "d_model")
    if kind in ("llama", "gemma2", "hooked"):
        assert (ds.sizes["head"], ds.sizes["kv_head"]) == (4, 2)


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    model, prompts = TwoLayers(), table(6)
    ds = capture(
        model,
        prompts,
        tmp_path / "run.zarr",
        sites=["layers.{layer}.hook_state", "embed"],
        positions=("last", "-3"),
        tokenizer=tokenizer(),
        forward=run_two_layers,
    )
    tokenized = prompts.tokenize(tokenizer())
    for group in length_buckets(np.arange(6), tokenized.lengths):
        ids, mask = (torch.from_numpy(a) for a in tokenized.batch(group.rows, group.pad_to))
        with torch.no_grad():
            logits, cache = model.run_with_cache(ids, mask)
        for line, row in enumerate(group.rows):
            for token, offset in enumerate((-1, -3)):
                place = tokenized.lengths[row] + offset
                for layer in range(2):
                    expected = cache[f"layers.{layer}.hook_state"][line, place].numpy()
                    np.testing.assert_array_equal(ds.state.values[0, layer, row, token], expected)
                expected = cache["hook_embed"][line, place].numpy()
                np.testing.assert_array_equal(ds.embed.values[0, row, token], expected)
                entropy = torch.distributions.Categorical(logits=logits[line, place].double()).entropy().item()
                assert ds.entropy.values[0, row, token] == pytest.approx(entropy, abs=1e-4)


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
        "sites": ("layers.{layer}.hook_state",),
        "tokenizer": tokenizer(),
        "forward": spoilt,
        "statistics": False,
        "check": False,  # it would refuse a row that is not like the others
    }
    with pytest.raises(NonFiniteError, match=r"stage 'model', site 'state', layer 0, entity 'p\w{12}', token 'last'"):
        capture(model, table(4), tmp_path / "a.zarr", **asked)
    unchecked = capture(model, table(4), tmp_path / "b.zarr", nonfinite="keep", **asked)
    assert unchecked.recorded.values.all()
    assert not np.isfinite(unchecked.state.values).all()


def test_float16_overflow_is_named_and_bfloat16_is_not_one(tmp_path: Path) -> None:
    large = bridge("llama")
    with torch.no_grad():
        large.original_model.model.layers[1].mlp.down_proj.weight.mul_(1e7)
    with pytest.raises(NonFiniteError, match=r"layer 1.*beyond the range of float16.*bfloat16"):
        capture(large, table(3), tmp_path / "a.zarr", dtype="float16", nonfinite="keep", statistics=False)
    wide = capture(large, table(3), tmp_path / "b.zarr", dtype="float32", statistics=False).resid_post.values
    half = capture(large, table(3), tmp_path / "c.zarr", dtype="bfloat16", statistics=False).resid_post.values
    np.testing.assert_array_equal(half, torch.from_numpy(wide).bfloat16().float().numpy())
