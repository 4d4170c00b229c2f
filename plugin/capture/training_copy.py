"""A hooked copy of a model in training: adapters merged, a classifier without its head, everything else refused."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn

from stratalens.plugin.compat import mark_headless, remove_forward_wrapper
from stratalens.plugin.stages.checkpoints import boot
from stratalens.store.errors import InputError


def hooked_copy(model: nn.Module, tokenizer_folder: str, tokenizer: Any = None) -> nn.Module:
    """Copy the current weights of a model in training into a separate hooked model.

    Args:
        model: a Hugging Face model, also inside DataParallel, DistributedDataParallel or PEFT.
        tokenizer_folder: folder of the tokenizer.
        tokenizer: a tokenizer that cannot be read from a folder; None = that of the folder.

    Raises:
        InputError: the weights are sharded over processes, an adapter cannot be merged, the model puts virtual tokens
            before each prompt, or TransformerLens has no hooks for the architecture.
    """
    inner = getattr(model, "module", model)  # without the wrapper of DataParallel or DistributedDataParallel
    inner = getattr(inner, "_orig_mod", inner)  # without that of torch.compile
    for name, parameter in inner.named_parameters():
        if type(parameter.data) is not torch.Tensor or (parameter.numel() == 0 and parameter.ndim == 1):
            raise InputError(
                f"parameter {name!r} is sharded over processes, so no process has the whole model to record. "
                "Save checkpoints instead and record them with stratalens.capture."
            )
    _check_adapter(inner)
    twin: Any = copy.deepcopy(inner)
    remove_forward_wrapper(twin)
    if hasattr(twin, "merge_and_unload"):  # adapters such as LoRA: merge them into the weights
        twin = twin.merge_and_unload()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    twin.train(False)
    name = str(getattr(twin.config, "name_or_path", "") or type(twin).__name__)
    if twin.get_output_embeddings() is None:
        twin = _with_output_layer(twin)
    hooked: Any = boot(twin, tokenizer_folder, tokenizer, None)
    hooked.cfg.model_name = name
    return cast(nn.Module, hooked)


def _check_adapter(model: Any) -> None:
    """Refuse PEFT models whose adapter is not a change of the weights."""
    if not hasattr(model, "peft_config"):
        return
    for name in model.active_adapters:
        config = model.peft_config[name]
        method = getattr(config.peft_type, "value", config.peft_type)
        if config.is_prompt_learning:
            raise InputError(
                f"the model is trained with {method}: it puts {config.num_virtual_tokens} virtual tokens before each "
                "prompt, and they have no text. RecordingCallback records tokens of the prompt table alone, so it "
                "cannot record this model. Train with an adapter that changes weights, such as LoRA."
            )
    if not hasattr(model, "merge_and_unload"):
        method = getattr(model.peft_config[model.active_adapters[0]].peft_type, "value", "this PEFT method")
        raise InputError(
            f"the model is trained with {method}, which cannot be merged into the weights. RecordingCallback records "
            "merged weights. Train with an adapter that can be merged, such as LoRA."
        )


def _with_output_layer(model: Any) -> nn.Module:
    """Put the base of a model without an output layer, such as a classifier, into its language model class.

    TransformerLens hooks language models only. The new output layer is zero and marked as absent, so that nothing is
    recorded of it.

    Raises:
        InputError: there is no language model with this base.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    auto: Any = AutoModelForCausalLM
    kind, config = type(model), copy.deepcopy(model.config)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # encoders advise a decoder
    try:
        with torch.device("meta"):  # takes no memory and draws no random numbers
            language_model: Any = auto.from_config(config, dtype=model.dtype)
    except ValueError as error:
        raise InputError(
            f"{kind.__name__} has no output layer, and transformers has no causal language model of its kind, which "
            "TransformerLens needs. Save checkpoints instead and record them with your own hook points."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    base = model.base_model
    if type(language_model) is kind:  # it has one after all
        return cast(nn.Module, model)
    if type(language_model.base_model) is not type(base):
        raise InputError(
            f"{kind.__name__} has no output layer, and its base {type(base).__name__} is not that of "
            f"{type(language_model).__name__}, which TransformerLens needs."
        )
    setattr(language_model, language_model.base_model_prefix, base)
    device = next(base.parameters()).device
    for child in language_model.children():
        if child is not base:
            child.to_empty(device=device)
            for tensor in (*child.parameters(), *child.buffers()):
                tensor.detach().zero_()
    for parameter in language_model.parameters():
        parameter.requires_grad_(False)
    language_model.train(False)
    mark_headless(language_model)
    return cast(nn.Module, language_model)
