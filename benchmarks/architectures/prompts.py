"""Four prompts of different lengths, and a tokenizer trained on them, with or without BOS."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from tempfile import mkdtemp
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import stratalens as sl

ROWS = {
    "prompt": ["Who is Ann?", "Rain fell on the old mill again.", "Bob", "Two plus two is"],
    "entity": ["Ann", "mill", "Bob", "two"],
}
SPECIAL = ("<|end|>", "<|bos|>")  # ids 0 and 1


def table() -> Any:
    """Return the prompts as a PromptTable."""
    import pandas as pd

    return sl.PromptTable.from_dataframe(pd.DataFrame(ROWS))


@cache
def tokenizer(bos: bool) -> Any:
    """Return a byte-level tokenizer of at most 300 ids; `bos` puts a BOS token in front of every prompt.

    It is loaded from a folder, because TransformerLens looks for the name that this gives it.
    """
    folder = mkdtemp()  # TransformerLens reads it again at every start
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _train(bos).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _train(bos: bool) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(ROWS["prompt"], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|end|>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
