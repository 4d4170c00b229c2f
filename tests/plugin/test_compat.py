"""Private interfaces of other libraries, each on the real library: a failure here names the one that has moved."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from stratalens.plugin import compat
from support.models import bridge, hf_model


def test_add_forward_hook_returns_the_handle_of_the_new_hook() -> None:
    point = bridge("gpt2").hook_dict["blocks.0.hook_resid_pre"]
    compat.add_forward_hook(point, lambda tensor, hook: None)
    handle = compat.add_forward_hook(point, lambda tensor, hook: None)
    assert handle is point.fwd_hooks[-1], "HookPoint.add_hook no longer appends its handle to HookPoint.fwd_hooks"
    assert hasattr(handle, "hook"), "the handle of HookPoint.add_hook has no field `hook`"
    assert hasattr(handle.hook, "remove"), "the handle of HookPoint.add_hook no longer wraps a handle of torch"


def test_remove_forward_hook_leaves_other_hooks() -> None:
    model = bridge("gpt2")
    point = model.hook_dict["blocks.0.hook_resid_pre"]
    calls: list[str] = []
    first = compat.add_forward_hook(point, lambda tensor, hook: calls.append("first"))
    compat.add_forward_hook(point, lambda tensor, hook: calls.append("second"))
    compat.remove_forward_hook(point, first)
    model(torch.tensor([[1, 2]]))
    assert calls == ["second"], "removing one hook of a HookPoint no longer removes that hook alone"
    assert len(point.fwd_hooks) == 1, "HookPoint.fwd_hooks still lists a hook that was removed"


def test_hook_function_is_the_one_that_the_caller_gave() -> None:
    point = bridge("gpt2").hook_dict["blocks.0.hook_resid_pre"]

    def of_the_caller(tensor: Any, hook: Any) -> None: ...

    point.add_hook(of_the_caller)
    hooks = compat.forward_hooks(point)
    message = "HookPoint.add_hook no longer wraps its function in a local function `full_hook` with a variable `hook`"
    assert [compat.hook_function(hook) for hook in hooks] == [of_the_caller], message
    assert compat.hook_function(of_the_caller) is of_the_caller


def test_forward_hooks_lists_both_kinds() -> None:
    module = torch.nn.Linear(2, 2)
    module.register_forward_hook(print)
    module.register_forward_pre_hook(repr)
    assert compat.forward_hooks(module) == [repr, print], "PyTorch no longer keeps hooks in `_forward_hooks`"


def test_in_backward_pass_is_true_in_hooks_of_gradients_alone() -> None:
    seen: list[bool] = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(compat.in_backward_pass()))
    assert not compat.in_backward_pass()
    (x * 2).sum().backward()
    assert seen == [True], "torch._C._current_graph_task_id no longer shows a backward pass"


def test_has_processed_weights_is_set_by_process_weights() -> None:
    model = bridge("gpt2")
    assert hasattr(model, "_weights_processed"), "TransformerBridge._weights_processed does not exist any more"
    assert not compat.has_processed_weights(model)
    model.process_weights()
    assert compat.has_processed_weights(model), "TransformerBridge.process_weights sets another flag now"


def test_unwrapped_names_are_those_of_the_model_itself() -> None:
    own = set(hf_model("llama").state_dict())
    names = set(bridge("llama").original_model.state_dict())
    assert any(map(compat.is_wrapped_name, names)), "TransformerBridge wraps modules under another name now"
    assert own <= {compat.unwrapped_name(name) for name in names}, "TransformerBridge changes names in another way now"


def test_remove_forward_wrapper_undoes_accelerate(tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, bf16=True)
    trainer = transformers.Trainer(hf_model("gpt2"), arguments)
    model = trainer.accelerator.prepare_model(trainer.model)
    assert {"forward", "_original_forward"} <= set(vars(model)), "Accelerate wraps `forward` under other names now"
    compat.remove_forward_wrapper(model)
    assert model.forward.__func__ is type(model).forward


def test_eager_attention_restores_the_implementation() -> None:
    model = hf_model("llama")
    before = model.config._attn_implementation
    assert before not in (None, "eager"), "config._attn_implementation no longer tells the implementation in use"
    with compat.eager_attention(model):
        assert model.config._attn_implementation == "eager", "set_attn_implementation sets another attribute now"
    assert model.config._attn_implementation == before


def test_shared_storage_is_shared() -> None:
    assert hasattr(torch.UntypedStorage, "_new_shared"), "torch.UntypedStorage._new_shared does not exist any more"
    storage = compat.shared_storage(24)
    assert storage.nbytes() == 24
    assert storage.is_shared(), "torch.UntypedStorage._new_shared no longer returns shared memory"


def test_cpu_has_avx512_bf16_agrees_with_the_public_answer() -> None:
    name = "_is_avx512_bf16_supported"
    assert hasattr(torch.cpu, name), f"torch.cpu.{name} does not exist any more; take torch.cpu.get_capabilities"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    assert compat.cpu_has_avx512_bf16() == capabilities.get("avx512_bf16", compat.cpu_has_avx512_bf16())


def test_hide_gguf_progress_hides_the_bar_and_restores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    assert hasattr(module, "tqdm"), "transformers.modeling_gguf_pytorch_utils draws its bar in another way now"
    progress_bar = module.tqdm
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with compat.hide_gguf_progress():
        assert list(module.tqdm(range(3), desc="hidden")) == [0, 1, 2]
    assert screen.getvalue() == ""
    assert module.tqdm is progress_bar
