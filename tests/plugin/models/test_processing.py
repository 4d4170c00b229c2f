"""Stages whose weights TransformerLens processed in different ways do not share a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stratalens as sl
from stratalens.plugin.models.adapters import adapt
from stratalens.store.errors import MismatchError
from support import models

FLAGS = {
    "fold_value_biases": "value_biases_folded",
    "refactor_factored_attn_matrices": "attention_refactored",
    "fold_ln": "norms_folded",
}
OFF = {
    "fold_ln": False,
    "center_writing_weights": False,
    "center_unembed": False,
    "fold_value_biases": False,
    "refactor_factored_attn_matrices": False,
}


def processed_bridge(kind: str, seed: int = 0, **flags: bool) -> Any:
    model = models.bridge(kind, seed)
    model.enable_compatibility_mode(disable_warnings=True, **{**OFF, **flags})
    return model


def processed_hooked_transformer(seed: int = 0, **flags: bool) -> Any:
    """Return a HookedTransformer with random biases and standard position embeddings, processed with some flags."""
    special = {"positional_embedding_type": "standard", "rotary_dim": None, "n_key_value_heads": None}
    model = models.hooked_transformer(seed, **special, normalization_type="LN", gated_mlp=False)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.ndim < 3:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.load_and_process_state_dict(model.state_dict(), **{**OFF, **flags})
    return model


MAKERS: dict[str, Callable[..., Any]] = {
    "gpt2": lambda seed, **flags: processed_bridge("gpt2", seed, **flags),
    "neox": lambda seed, **flags: processed_bridge("neox", seed, **flags),
}
if models.ON_39:
    MAKERS["hooked"] = processed_hooked_transformer


@pytest.mark.parametrize("flag", sorted(FLAGS))
@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_stage_that_was_processed_in_another_way_is_refused(tmp_path: Path, kind: str, flag: str) -> None:
    if kind == "neox" and flag == "refactor_factored_attn_matrices":
        pytest.skip("TransformerLens cannot refactor attention with rotary embeddings")
    make, table, path = MAKERS[kind], models.table(3), tmp_path / "run.zarr"
    options: dict[str, Any] = {"statistics": False, "check": False, "sites": ("resid_post", "v")}
    plain, processed = make(0), make(1, **{flag: True})
    assert adapt(plain).processing[FLAGS[flag]] is False
    assert adapt(processed).processing[FLAGS[flag]] is True
    with pytest.raises(MismatchError, match=rf"processing flags differ.*'{FLAGS[flag]}': False.*'{FLAGS[flag]}': True"):
        sl.capture({"a": plain, "b": processed}, table, path, **options)
    sl.capture({"a": make(2, **{flag: True}), "b": processed}, table, tmp_path / "b.zarr", **options)
    with pytest.raises(MismatchError, match="processing"):  # the store refuses it in a later call too
        sl.capture({"b": processed}, table, path, **options)


def test_biases_of_zero_say_nothing(tmp_path: Path) -> None:
    """A new model has biases of zero, which training changes: its stages share a store, and the next flag counts."""
    stages = {"step0": processed_bridge("gpt2", 0), "step1": processed_bridge("gpt2", 1)}
    with torch.no_grad():
        for block in stages["step0"].original_model.transformer.h:
            for module in block.modules():
                if getattr(module, "bias", None) is not None and isinstance(module.bias, torch.nn.Parameter):
                    module.bias.zero_()
    stages["folded"] = processed_bridge("gpt2", 2, fold_value_biases=True)
    table = models.table(3)
    with pytest.raises(MismatchError, match="stage 'folded': processing flags differ"):
        sl.capture(stages, table, tmp_path / "run.zarr", statistics=False, check=False)


def test_models_without_biases_share_a_store_with_or_without_the_flag(tmp_path: Path) -> None:
    stages = {"a": processed_bridge("llama", 0), "b": processed_bridge("llama", 1, fold_value_biases=True)}
    ds = sl.capture(stages, models.table(3), tmp_path / "run.zarr", statistics=False, check=False)
    assert bool(ds.recorded.all())


def test_a_store_of_an_earlier_version_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its provenance has fewer flags. Those that it has still count."""
    from stratalens.plugin.models import adapters

    measured = adapters.measured_processing
    table, path = models.table(3), tmp_path / "run.zarr"
    options: dict[str, Any] = {"statistics": False, "check": False}
    with monkeypatch.context() as earlier:
        earlier.setattr(
            adapters,
            "measured_processing",
            lambda model: {
                k: v for k, v in measured(model).items() if k not in ("value_biases_folded", "attention_refactored")
            },
        )
        sl.capture({"a": processed_bridge("gpt2", 0)}, table, path, **options)
    stages = {"a": processed_bridge("gpt2", 0), "b": processed_bridge("gpt2", 1)}
    ds = sl.capture(stages, table, path, **options)
    assert ds.stage.values.tolist() == ["a", "b"]
    with pytest.raises(MismatchError, match="processing"):
        sl.capture({"c": processed_bridge("gpt2", 2, fold_ln=True)}, table, path, **options)
