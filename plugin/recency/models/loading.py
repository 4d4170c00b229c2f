"""The model that a study starts from: SmolLM2 of the package index, a folder, or a hub name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stratalens.recency.models.bars import quiet_bars
from stratalens.recency.models.smollm import load_smollm2, load_smollm2_tokenizer, smollm2_config
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The base tokenizer alone.

    Raises:
        InputError: no such model.
    """
    if name == "smollm2":
        return load_smollm2_tokenizer()
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise _no_model(name, error) from error
    return tokenizer


def blank_base(name: str, layers: int | None = None) -> PreTrainedModel:
    """A model of the base's shape with random weights: as large and as slow, made without reading any.

    Raises:
        InputError: as `load_base`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = smollm2_config(layers) if name == "smollm2" else _config(name, layers)
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )
    model.train(False)
    return model


def load_base(name: str, layers: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in float32 and its tokenizer.

    Args:
        name: "smollm2", or whatever transformers' from_pretrained takes.
        layers: keep the first blocks only.

    Raises:
        InputError: no such model, or more layers than it has.
    """
    if name == "smollm2":
        return load_smollm2(layers)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = _config(name, layers)
    try:
        with quiet_bars():
            model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise _no_model(name, error) from error
    model.train(False)
    return model, tokenizer


def _config(name: str, layers: int | None) -> PretrainedConfig:
    """The model's configuration with so many blocks."""
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise _no_model(name, error) from error
    total = int(config.num_hidden_layers)
    if layers is not None:
        if not 1 <= layers <= total:
            raise InputError(f"layers={layers}: {name} has {total} blocks; give 1 to {total}")
        config.num_hidden_layers = layers
    return config


def _no_model(name: str, error: OSError) -> InputError:
    return InputError(
        f"No model could be loaded from {name!r}: {error}. Give 'smollm2', a folder with config.json and "
        "safetensors weights, or the name of a model on the hub."
    )
