"""A sparse autoencoder in the place of a hook point is part of the fingerprint and of the processing flags.

SAELens replaces a HookPoint by a wrapper. Version 6 keeps the autoencoder in the `__dict__` of the wrapper, earlier
versions put the autoencoder itself there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

import stratalens as sl
from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.store.errors import MismatchError
from support import models

OPTIONS: dict[str, Any] = {"statistics": False, "check": False, "allow_same_weights": True}


class Autoencoder(nn.Module):
    """A sparse autoencoder of a residual stream."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.encoder = nn.Parameter(torch.randn(width, 4 * width, generator=generator) / width**0.5)
        self.hook_sae_acts_post = HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        return self.hook_sae_acts_post(torch.relu(x @ self.encoder)) @ self.encoder.T


class Wrapper(nn.Module):
    """A wrapper as in SAELens 6: PyTorch does not list the autoencoder inside."""

    def __init__(self, autoencoder: Autoencoder, use_error_term: bool = False) -> None:
        super().__init__()
        self.__dict__["_sae"] = autoencoder
        self.hook_sae_acts_post = autoencoder.hook_sae_acts_post
        self.use_error_term = use_error_term

    def forward(self, x: Tensor) -> Tensor:
        out = self.__dict__["_sae"](x)
        return out + (x - out).detach() if self.use_error_term else out


def splice(model: Any, module: nn.Module) -> Any:
    """Put a module in the place of a hook point of a model, as SAELens does."""
    place = "hook_resid_post" if type(model).__name__ == "HookedTransformer" else "hook_out"
    if isinstance(model, models.TwoLayers):
        model.layers[0]["hook_state"] = module
    else:
        setattr(model.blocks[0], place, module)
    if hasattr(model, "clear_hook_registry"):
        model.clear_hook_registry()
    model.setup() if not hasattr(model, "original_model") else None
    return model


def own_model() -> models.TwoLayers:
    return models.TwoLayers()


MAKERS: dict[str, Any] = {"own": own_model}
if models.ON_39:
    MAKERS["hooked"] = models.hooked_transformer
WIDTHS = {"own": 12, "hooked": 32, "bridge": 32}


@pytest.mark.parametrize("wrap", [Wrapper, lambda autoencoder: autoencoder], ids=["wrapper", "itself"])
@pytest.mark.parametrize("kind", [*MAKERS, "bridge"])
def test_a_spliced_module_is_part_of_fingerprint_and_flags(kind: str, wrap: Any) -> None:
    make = MAKERS.get(kind, lambda: models.bridge("gpt2"))
    plain = adapt(make())
    spliced = [adapt(splice(make(), wrap(Autoencoder(WIDTHS[kind], seed)))) for seed in (0, 0, 1)]
    assert "spliced" not in plain.processing
    assert len(spliced[0].processing["spliced"]) >= 1
    fingerprints = [weights_fingerprint(adapter) for adapter in (plain, *spliced)]
    assert fingerprints[1] == fingerprints[2]
    assert len(set(fingerprints)) == 3


def test_stages_with_and_without_it_do_not_share_a_store(tmp_path: Path) -> None:
    options = {**OPTIONS, "forward": models.run_two_layers, "tokenizer": models.tokenizer()}
    options |= {"sites": "layers.1.hook_state"}
    table, path = models.table(3), tmp_path / "run.zarr"
    plain, spliced = models.TwoLayers(), splice(models.TwoLayers(), Wrapper(Autoencoder(12)))
    with pytest.raises(MismatchError, match=r"processing flags differ.*Wrapper"):
        sl.capture({"a": plain, "b": spliced}, table, path, **options)
    with pytest.raises(MismatchError, match="processing differs"):  # in a later call too
        sl.capture({"c": spliced}, table, path, **options)
    exact = splice(models.TwoLayers(), Wrapper(Autoencoder(12), use_error_term=True))
    with pytest.raises(MismatchError, match=r"'use_error_term': False.*'use_error_term': True"):
        sl.capture({"a": spliced, "b": exact}, table, tmp_path / "b.zarr", **options)


def test_its_activations_are_recorded(tmp_path: Path) -> None:
    autoencoder = Autoencoder(12)
    model = splice(models.TwoLayers(), Wrapper(autoencoder))
    options = {**OPTIONS, "forward": models.run_two_layers, "tokenizer": models.tokenizer()}
    ds = sl.capture(
        model, models.table(1), tmp_path / "run.zarr", sites="layers.0.hook_state.hook_sae_acts_post", **options
    )
    ids = torch.tensor([models.tokenizer()(models.table(1).prompts[0]).input_ids])
    seen: list[Tensor] = []
    autoencoder.hook_sae_acts_post.add_hook(lambda x, hook: seen.append(x))
    model(ids, torch.ones_like(ids))
    np.testing.assert_array_equal(ds.state_sae_acts_post.values[0, 0, 0, 0], seen[0][0, -1].detach())
