"""A tiny base model for the study: byte-level BPE trained on the words of the study, random Llama weights."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stratalens.plugin.study.config import templates as texts


def study_tokenizer(size: int = 900) -> Any:
    """Train a byte-level BPE tokenizer on the questions and words of the study, with a pad token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    words = [w for kind in texts.QUESTIONS.values() for w in kind]
    words += [f"A: {w}" for group in (texts.REGIONS, texts.OCCUPATIONS, texts.NATIONALITIES) for w in group]
    words += [f"{a} {n}" for a in texts.ADJECTIVES for n in texts.NOUNS[:3]]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(words * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>")


def study_model(tokenizer: Any, layers: int = 2, tied: bool = True) -> LlamaForCausalLM:
    """Make a Llama model of 16 dimensions with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def save_base(folder: Path, layers: int = 2) -> Path:
    """Save the model and its tokenizer to a folder, as those of a user."""
    tokenizer = study_tokenizer()
    study_model(tokenizer, layers).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
