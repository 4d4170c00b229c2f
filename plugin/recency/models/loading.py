"""The model that a study starts from: SmolLM2 of the package index, a folder, or a hub name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stratalens.recency.models.smollm import load_smollm2
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def quiet_bars() -> Iterator[None]:
    """No progress bars of transformers inside; as they were afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


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
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_bars():
            config = AutoConfig.from_pretrained(name)
            total = int(config.num_hidden_layers)
            if layers is not None:
                if not 1 <= layers <= total:
                    raise InputError(f"layers={layers}: {name} has {total} blocks; give 1 to {total}")
                config.num_hidden_layers = layers
            model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise InputError(
            f"No model could be loaded from {name!r}: {error}. Give 'smollm2', a folder with config.json and "
            "safetensors weights, or the name of a model on the hub."
        ) from error
    model.train(False)
    return model, tokenizer
