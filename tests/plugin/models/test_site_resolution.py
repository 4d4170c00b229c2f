"""The dry run makes one pass where the result is unambiguous, else two, with equal sites from both."""

from typing import Any

import pytest
import torch

from stratalens.plugin.models import site_resolution
from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.models.site_resolution import resolve
from support.models import BRIDGES, ON_39, TwoLayers, bridge, hooked_transformer, run_two_layers

IDS = torch.arange(1, 9)
INSIDE = ("resid_pre", "resid_post", "attn_out", "mlp_out", "mlp_post", "z", "q", "k", "v")
KINDS = [*BRIDGES, *(["hooked"] if ON_39 else [])]


def passes(model: Any) -> tuple[list[int], Any]:
    """Return a list that collects the lengths of further passes, and the handle of the hook that counts them."""
    lengths: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("input"))
        lengths.append(ids.shape[1])

    return lengths, model.register_forward_pre_hook(count, with_kwargs=True)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_and_two_passes_give_equal_sites(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hooked_transformer() if kind == "hooked" else bridge(kind)
    adapter = adapt(model)
    lengths, handle = passes(model)
    once = resolve(adapter, INSIDE, None, IDS)
    assert lengths == [5]
    dry_run_result = adapter.dry_run_result
    monkeypatch.setattr(site_resolution, "_DISTINCT_LENGTHS", ())
    twice = resolve(adapter, INSIDE, None, IDS)
    assert lengths == [5, 3, 4]
    handle.remove()
    assert once == twice
    assert dry_run_result is not None


def test_a_length_that_is_also_another_size_is_ambiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bridge("llama")  # 4 heads: q is (batch, position, head, d_head)
    monkeypatch.setattr(site_resolution, "_SIZES", ())
    monkeypatch.setattr(site_resolution, "_DISTINCT_LENGTHS", (4,))
    lengths, handle = passes(model)
    selection = resolve(adapt(model), ("q",), None, IDS)
    handle.remove()
    assert lengths == [4, 3, 4]
    assert selection.sites[0].feature_shape == (4, 8)


def test_sites_outside_blocks_and_other_models_need_two_passes() -> None:
    model = bridge("gpt2")
    lengths, handle = passes(model)
    resolve(adapt(model), ("resid_post", "ln_final"), None, IDS)
    handle.remove()
    assert lengths == [3, 4]
    own = TwoLayers()
    lengths, handle = passes(own)
    resolve(adapt(own, run_two_layers), ("layers.{layer}.hook_state",), None, IDS)
    handle.remove()
    assert lengths == [3, 4]
