"""Reuse of a clean pass gives the results of whole passes, and is refused where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

import stratalens as sl
from support.models import ON_39, VOCABULARY, TwoLayers, bridge, hooked_transformer, run_two_layers, table, tokenizer

QUICK: dict[str, Any] = {"progress": False, "random": 2, "doses": (-4.0, 4.0)}
CACHED = "from the first changed token on"


def vectors(layers: tuple[int, ...], dims: tuple[str, ...], shape: tuple[int, ...]) -> xr.DataArray:
    x = np.random.default_rng(1).normal(size=(len(layers), *shape))
    return xr.DataArray(x, dims=("layer", *dims), coords={"layer": list(layers)})


def both(model: Any, prompts: Any, directions: Any, **options: Any) -> tuple[xr.Dataset, xr.Dataset]:
    fast, plain = (
        sl.intervene(model, prompts, directions, reuse=reuse, **(QUICK | options)) for reuse in ("auto", "nothing")
    )
    np.testing.assert_allclose(fast.outcome, plain.outcome, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(fast.null, plain.null, rtol=1e-4, atol=2e-5)
    assert float(abs(plain.outcome - plain.clean).max("entity").min()) > 1e-3  # every edit does something
    return fast, plain


@cache
def shared(kind: str) -> Any:
    return hooked_transformer() if kind == "hooked" else bridge(kind)


SITES = {
    "resid_pre": (("d_model",), (32,)),
    "mlp_out": (("d_model",), (32,)),
    "z": (("head", "d_head"), (4, 8)),
    "blocks.{layer}.attn.hook_v": (("kv_head", "d_head"), (2, 8)),
}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["llama", *(["hooked"] if ON_39 else [])])
def test_sites_inside_a_block(kind: str, site: str) -> None:
    directions = sl.directions(vectors((0, 1), *SITES[site]), site=site, name="axis")
    model = shared(kind)
    fast, _ = both(model, table(5, answers=True), directions, positions=("entity_last", "-1"))
    assert fast.attrs["computed_positions"] == CACHED
    assert fast.attrs["computed_difference"] < 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "neox", "gemma2", "opt", "cohere"])
def test_architectures(kind: str) -> None:
    directions = sl.directions(vectors((0, 1), ("d_model",), (32,)), site="resid_post", name="axis")
    fast, _ = both(shared(kind), table(6, answers=True), directions, kind="ablate", to=9.0, positions="last")
    assert fast.attrs["computed_positions"] == CACHED


def test_fewer_tokens_run_and_batches_do_not_matter() -> None:
    model, prompts = shared("llama"), table(6, answers=True)
    directions = sl.directions(vectors((0, 1), ("d_model",), (32,)), site="resid_post", name="axis")
    options = {**QUICK, "positions": "last", "random": 20}
    tokens: list[int] = []

    def count(value: Tensor, hook: Any) -> None:
        tokens.append(value.shape[0] * value.shape[1])

    outcomes, totals = [], []
    for own in ({"reuse": "nothing"}, {}, {"batch_size": 1}):
        tokens.clear()
        with hooked(model, "blocks.2.hook_out", count):
            outcomes.append(sl.intervene(model, prompts, directions, **options, **own).outcome)
        totals.append(sum(tokens))
    assert totals[1] < 0.6 * totals[0]  # with the check, and answers of up to twenty tokens
    np.testing.assert_allclose(outcomes[1], outcomes[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outcomes[2], outcomes[0], rtol=1e-5, atol=1e-5)


def test_interchange_takes_the_source_of_each_row(tmp_path: Any) -> None:
    model, prompts = shared("llama"), table(5, answers=True)
    ds = sl.capture({"a": model, "b": bridge("llama", 4)}, prompts, tmp_path / "run.zarr", progress=False)
    directions = sl.directions(vectors((0, 1), ("d_model",), (32,)), site="resid_post", name="axis")
    options = {"kind": "patch", "source": ds, "source_stage": "b", "source_rows": [3, 0, 1, 2, 4]}
    fast, _ = both(model, prompts, directions, positions="last", **options)
    assert fast.attrs["computed_positions"] == CACHED


@contextmanager
def hooked(model: Any, name: str, function: Any) -> Iterator[None]:
    with model.hooks(fwd_hooks=[(name, function)]):
        yield


def test_a_hook_that_counts_positions_is_noticed() -> None:
    model, prompts = shared("llama"), table(6, answers=True)
    directions = sl.directions(vectors((0, 1), ("d_model",), (32,)), site="resid_post", name="axis")

    def second_token(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, 1] += 5.0  # the second of the sequence, or of what is left of it
        return value

    with hooked(model, "blocks.2.hook_mlp_out", second_token):
        fast, plain = both(model, prompts, directions, positions="last")
    assert fast.attrs["computed_positions"] == "all positions"
    assert fast.attrs["computed"] == "blocks above the intervention"
    np.testing.assert_array_equal(fast.outcome, plain.outcome)

    def twice(value: Tensor, hook: Any) -> Tensor:
        return value * 1.5

    with hooked(model, "blocks.1.hook_out", twice):  # would be applied to what it has already changed
        fast, plain = both(model, prompts, directions, positions="last")
    assert fast.attrs["computed"] == "all blocks"
    np.testing.assert_array_equal(fast.outcome, plain.outcome)


def test_half_precision_keeps_whole_sequences() -> None:
    directions = sl.directions(vectors((0, 1), ("d_model",), (32,)), site="resid_post", name="axis")
    model = bridge("llama", dtype=torch.bfloat16)
    fast, plain = both(model, table(4, answers=True), directions, positions="last")
    assert fast.attrs["computed_positions"] == "all positions"
    np.testing.assert_array_equal(fast.outcome, plain.outcome)


class Blocks(HookedRootModule):
    """Called blocks in a list, as in most models of users."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.hook_state, self.calls = nn.Linear(12, 12), HookPoint(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            mean = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
            return self.hook_state(x + torch.tanh(self.map(mean)))

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.out = nn.Embedding(VOCABULARY, 12), nn.Linear(12, VOCABULARY)
            self.parts = nn.ModuleList(self.Block() for _ in range(3))
        self.setup()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for part in self.parts:
            x = part(x)
        return self.out(x)


def test_models_of_the_users_own() -> None:
    prompts, model = table(5, answers=True), Blocks().eval()
    directions = sl.directions(vectors((1, 2), ("d_model",), (12,)), site="parts.{layer}.hook_state", name="axis")
    options: dict[str, Any] = {"tokenizer": tokenizer(), "positions": "last"}
    fast, plain = both(model, prompts, directions, **options)
    assert fast.attrs["computed"] == "blocks above the intervention"
    assert fast.attrs["computed_positions"] == "all positions"
    np.testing.assert_array_equal(fast.outcome, plain.outcome)
    assert model.parts[0].calls < model.parts[2].calls
    directions = sl.directions(vectors((1,), ("d_model",), (12,)), site="layers.{layer}.hook_state", name="axis")
    fast, _ = both(TwoLayers(), prompts, directions, forward=run_two_layers, **options)
    assert fast.attrs["computed"] == "all blocks"
