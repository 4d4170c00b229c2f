"""Recording restores the model: hooks, flags, modes and results, also after an error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.hook_points import HookPoint

from stratalens.plugin.capture.recorder import Recorder
from stratalens.plugin.capture.run import capture
from stratalens.plugin.capture.store import create_store
from stratalens.store.errors import MismatchError
from support.models import bridge, table


def state(model: Any) -> dict[str, Any]:
    points = [m for m in model.modules() if isinstance(m, HookPoint)]
    modules = list(model.original_model.modules())
    return {
        "hooks": [(len(p.fwd_hooks), len(p.bwd_hooks), len(p._forward_hooks)) for p in points],
        "module hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in [*model.modules(), *modules]],
        "training": [m.training for m in [*model.modules(), *modules]],
        "requires_grad": [p.requires_grad for p in modules[0].parameters()],
        "grad": torch.is_grad_enabled(),
        "flags": {k: v for k, v in vars(model.cfg).items() if k.startswith("use_")},
    }


def used(kind: str) -> Any:
    """A bridge that has run before, because its first forward pass adds hooks of TransformerLens."""
    model = bridge(kind)
    model(torch.arange(4)[None])
    return model


def prepared() -> Any:
    """A bridge with hooks of the user, one of its blocks in training mode."""
    model = used("gpt2")
    model.hook_dict["blocks.1.hook_out"].add_hook(lambda tensor, hook: tensor * 1.5)
    model.hook_dict["blocks.0.hook_out"].add_hook(lambda tensor, hook: None, is_permanent=True)
    model.original_model.transformer.h[2].train()
    return model


def test_after_a_capture(tmp_path: Path) -> None:
    model = prepared()
    before = state(model)
    ids = torch.arange(12).reshape(2, 6)
    model.original_model.eval()
    with torch.no_grad():
        logits = model(ids)
    model.original_model.transformer.h[2].train()
    ds = capture(model, table(4), tmp_path / "run.zarr", sites=("resid_post", "z", "ln_final"))
    assert state(model) == before
    model.original_model.eval()
    with torch.no_grad():
        assert torch.equal(model(ids), logits)
        # the user's own intervention was active during the capture
        model.hook_dict["blocks.1.hook_out"].remove_hooks()
        assert not torch.equal(model(ids), logits)
    assert ds.recorded.values.all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_a_failure_in_the_forward_pass(tmp_path: Path, error: type[BaseException]) -> None:
    model = prepared()
    before = state(model)
    calls = []

    def failing(tensor: Any, hook: Any) -> None:
        calls.append(1)
        if len(calls) > 6:  # the dry runs succeed
            raise error("stop here")

    model.hook_dict["blocks.2.hook_in"].add_hook(failing)
    with pytest.raises(error, match="stop here"):
        capture(model, table(8), tmp_path / "run.zarr", batch_size=1)
    model.hook_dict["blocks.2.hook_in"].remove_hooks()
    assert state(model) == before
    with pytest.raises(MismatchError, match="user_hooks differs"):
        capture(model, table(8), tmp_path / "run.zarr")
    model.hook_dict["blocks.2.hook_in"].add_hook(lambda tensor, hook: None)
    done = capture(model, table(8), tmp_path / "run.zarr")  # the lock is free, the stage resumes
    assert done.recorded.values.all()


def test_the_forward_pass_is_not_changed_inside_a_recorder(tmp_path: Path) -> None:
    model, prompts = used("llama"), table(4)
    ids, mask = (torch.from_numpy(a) for a in prompts.tokenize(model.tokenizer).batch(range(4), 40))
    expected = model(ids, attention_mask=mask)
    before = state(model)
    model.train()
    with create_store(tmp_path / "run.zarr", prompts, model) as store, Recorder(model, store, stage="s") as rec:
        rec.batch(range(4))
        logits = model(ids, attention_mask=mask)
        assert torch.equal(logits, expected)
        assert model.training
        assert torch.is_grad_enabled()
        logits.sum().backward()
    assert model.original_model.model.embed_tokens.weight.grad is not None
    model.eval()
    assert state(model) == before


def test_an_exception_inside_the_recorder_takes_the_hooks_off(tmp_path: Path) -> None:
    model, prompts = used("llama"), table(4)
    before = state(model)
    with create_store(tmp_path / "run.zarr", prompts, model) as store:
        with pytest.raises(ZeroDivisionError), Recorder(model, store, stage="s"):
            _ = 1 / 0
        assert state(model) == before
        with Recorder(model, store, stage="s") as rec:
            assert rec.pending_rows().tolist() == [0, 1, 2, 3]
            ids, mask = (torch.from_numpy(a) for a in store.spec.tokenized.batch(range(4), 40))
            rec.batch(range(4))
            model(ids, attention_mask=mask)
