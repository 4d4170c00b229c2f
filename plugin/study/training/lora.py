"""LoRA in the study: one adapter, trained on through all stages, on the untrained model beside it.

A stage's checkpoint is the adapter alone, not a whole model: a few megabytes
instead of hundreds, and each stage still loads by itself, because the adapter
says what all stages up to it have changed in the untrained model. It names
that model as "../untrained", so that a run can be moved as a whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stratalens.plugin.study.config.settings import UNTRAINED, LoraSettings
from stratalens.plugin.terminal import suppress_progress_bars
from stratalens.store.errors import InputError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ADAPTER_FILE = "adapter_config.json"


def is_adapter(model: Any) -> bool:
    """Whether a model is a PEFT model around another one."""
    return hasattr(model, "peft_config")


def current_or_new(model: PreTrainedModel, settings: LoraSettings, seed: int, untrained: Path) -> PreTrainedModel:
    """The model with the adapter that it has, or with a new one whose weights follow from the seed.

    Raises:
        InputError: peft is not installed, or a target names no module of the model.
    """
    if is_adapter(model):
        return model
    import torch

    try:
        import peft
    except ImportError as error:
        raise InputError("train.method lora needs peft: pip install 'stratalens[lora]'") from error
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    kinds = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head", "embed_out"})
    convolved = [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]  # GPT-2's
    kinds = sorted({*kinds, *(name.rpartition(".")[2] for name in convolved)})
    for target in settings.targets or ():
        if not any(name == target or name.endswith("." + target) for name in (*linear, *convolved)):
            raise InputError(
                f"train.lora.targets: {target!r} is no linear module of this model; {suggest(target, kinds)}"
            )
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) if settings.targets else "all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=bool(convolved),
    )
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(seed)
        return _based_on(peft.get_peft_model(model, config), untrained)


def load_stage(folder: Path, untrained: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a finished stage; an adapter comes ready to be trained on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapted = (folder / ADAPTER_FILE).is_file()
    with suppress_progress_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(untrained if adapted else folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if adapted:
        from peft import PeftModel

        with quiet_peft():
            model = _based_on(PeftModel.from_pretrained(model, str(folder), is_trainable=True), untrained)
    return model, tokenizer


def _based_on(model: Any, untrained: Path) -> PreTrainedModel:
    """Named after the very folder while it trains: peft looks there, else on the hub, whether the vocabulary is new."""
    model.peft_config["default"].base_model_name_or_path = str(untrained.resolve())
    return cast("PreTrainedModel", model)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write a whole model, or the adapter alone, as safetensors."""
    if not is_adapter(model):
        with suppress_progress_bars():
            model.save_pretrained(folder, safe_serialization=True)
        return
    adapter: Any = model
    named = adapter.peft_config["default"]
    held = named.base_model_name_or_path
    named.base_model_name_or_path = f"../{UNTRAINED}"
    try:
        with quiet_peft():  # the embedding is in the untrained model already
            adapter.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    finally:
        named.base_model_name_or_path = held
    (folder / "README.md").unlink(missing_ok=True)  # an empty form


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning of peft about how it asks transformers for something that is going out of use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield
