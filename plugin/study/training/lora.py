"""LoRA in a study: one adapter, trained through all stages, on the untrained model next to it.

The checkpoint of a stage is the adapter alone: a few megabytes instead of
hundreds. Each stage still loads by itself, because its adapter holds the
changes of all stages so far to the untrained model. The adapter names that
model as "../untrained", so that a whole run can be moved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stratalens.plugin.progress import suppress_progress_bars
from stratalens.plugin.study.config.settings import UNTRAINED, LoraSettings
from stratalens.store.errors import InputError, suggest

ADAPTER_FILE = "adapter_config.json"


def is_adapter(model: Any) -> bool:
    """Return whether a model is a PEFT model around another one."""
    return hasattr(model, "peft_config")


def ensure_adapter(model: PreTrainedModel, settings: LoraSettings, seed: int, untrained: Path) -> PreTrainedModel:
    """Return the model with its adapter, or with a new one.

    Args:
        model: a model with or without an adapter.
        settings: settings of a new adapter.
        seed: seed of the weights of a new adapter.
        untrained: folder of the untrained model.

    Raises:
        InputError: peft is not installed, or a target names no module of the model.
    """
    if is_adapter(model):
        return model

    try:
        import peft
    except ImportError as error:
        raise InputError("train.method lora needs peft: pip install 'stratalens[lora]'") from error
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    convolved = [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]  # GPT-2's
    kinds = {name.rpartition(".")[2] for name in linear} - {"lm_head", "embed_out"}
    kinds |= {name.rpartition(".")[2] for name in convolved}
    for target in settings.targets or ():
        if not any(name == target or name.endswith("." + target) for name in (*linear, *convolved)):
            raise InputError(
                f"train.lora.targets: {target!r} is no linear module of this model; {suggest(target, sorted(kinds))}"
            )
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) if settings.targets else "all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=bool(convolved),
    )
    with torch.random.fork_rng(), suppress_peft_warning():
        torch.manual_seed(seed)
        return _set_base_path(peft.get_peft_model(model, config), untrained)


def load_stage(folder: Path, untrained: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer of a finished stage; an adapter is trainable.

    Args:
        folder: the checkpoint of the stage.
        untrained: folder of the untrained model.
    """
    adapted = (folder / ADAPTER_FILE).is_file()
    with suppress_progress_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(untrained if adapted else folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if adapted:
        from peft import PeftModel

        with suppress_peft_warning():
            model = _set_base_path(PeftModel.from_pretrained(model, str(folder), is_trainable=True), untrained)
    return model, tokenizer


def _set_base_path(model: Any, untrained: Path) -> PreTrainedModel:
    """Name the folder of the base model in the adapter.

    When peft saves an adapter, it compares vocabularies with the model at that path; elsewhere it would ask the hub.
    """
    model.peft_config["default"].base_model_name_or_path = str(untrained.resolve())
    return cast("PreTrainedModel", model)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write a whole model, or the adapter alone, as safetensors."""
    if not is_adapter(model):
        with suppress_progress_bars():
            model.save_pretrained(folder, safe_serialization=True)
        return
    adapter: Any = model
    config = adapter.peft_config["default"]
    base_path = config.base_model_name_or_path
    config.base_model_name_or_path = f"../{UNTRAINED}"
    try:
        with suppress_peft_warning():  # the untrained model holds the embedding already
            adapter.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    finally:
        config.base_model_name_or_path = base_path
    (folder / "README.md").unlink(missing_ok=True)  # an empty form


@contextmanager
def suppress_peft_warning() -> Iterator[None]:
    """Suppress the warning that peft reads a deprecated attribute of transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield
