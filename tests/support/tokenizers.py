"""Tiny real fast tokenizers, trained in a second, without any download.

What lives here: byte-level BPE without and with a BOS token, a
SentencePiece-like one (Metaspace), a lowercasing word-piece one with special
tokens on both sides, and a pure Python one without offsets. What does not:
models.
"""

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "Q: Who is Ann Smith?\nA: Ann Smith is a painter from Norway.",
    "Q: What does <|qzxkv|> mean?\nA: A village.",
    "The name of the river is Donau; it's 2,850 km long. The café in São Paulo was naïve.",
    "Who is Bob? Bob is the brother of Ann. What is the name of Bob?",
    "日本 の 首都 は 東京 です。 Ελλάδα. Москва. 🙂🙂",
)


def _bpe(size: int) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 2, trainer)
    return backend


def byte_level(size: int = 400) -> Any:
    """Byte-level BPE as GPT-2 and SmolLM2 have it: the space belongs to the next word, no BOS."""
    return PreTrainedTokenizerFast(tokenizer_object=_bpe(size), eos_token="<|end|>")


def byte_level_with_bos(size: int = 400) -> Any:
    """The same, with a BOS token in front of every prompt (as Llama 3 and Gemma have)."""
    backend = _bpe(size)
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", backend.token_to_id("<|bos|>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|end|>")


def metaspace(size: int = 200) -> Any:
    """SentencePiece-like: spaces become ▁, one is put in front of the text, BOS in front of all."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size + len(special), special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS * 2, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def wordpiece(size: int = 200, *, special: bool = True) -> Any:
    """Lowercases, strips accents and drops spaces; special tokens on both sides (as BERT has) unless told."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    backend.train_from_iterator(CORPUS * 2, trainer)
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]")


@cache
def all_fast() -> dict[str, Any]:
    """Every fast tokenizer of this file, by name."""
    return {
        "byte_level": byte_level(),
        "byte_level_with_bos": byte_level_with_bos(),
        "metaspace": metaspace(),
        "wordpiece": wordpiece(),
    }


def pure_python() -> Any:
    """A tokenizer of characters written in Python, which knows no offsets."""
    from transformers import PreTrainedTokenizer

    class Characters(PreTrainedTokenizer):  # type: ignore[misc]
        def __init__(self, **settings: Any) -> None:
            self.characters = {chr(code): code for code in range(128)}
            super().__init__(unk_token="?", **settings)

        @property
        def vocab_size(self) -> int:
            return len(self.characters)

        def get_vocab(self) -> dict[str, int]:
            return dict(self.characters)

        def _tokenize(self, text: str, **settings: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return self.characters.get(token, 63)

        def _convert_id_to_token(self, index: int) -> str:
            return chr(index)

    return Characters()
