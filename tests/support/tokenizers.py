"""Tiny tokenizers, trained in a second without any download.

The kinds are byte-level BPE with and without BOS, Metaspace as in SentencePiece, lowercasing WordPiece with special
tokens on both sides, and a pure Python tokenizer without offsets.
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
    """Return byte-level BPE as in GPT-2 and SmolLM2: the space belongs to the next word, no BOS."""
    return PreTrainedTokenizerFast(tokenizer_object=_bpe(size), eos_token="<|end|>")


def byte_level_with_bos(size: int = 400) -> Any:
    """Return byte-level BPE with a BOS token before every prompt, as in Llama 3 and Gemma."""
    backend = _bpe(size)
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", backend.token_to_id("<|bos|>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|end|>")


def metaspace(size: int = 200) -> Any:
    """Return a tokenizer as SentencePiece trains them: spaces become ▁, one more and BOS precede the text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size + len(special), special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS * 2, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def wordpiece(size: int = 200, *, special: bool = True) -> Any:
    """Return WordPiece without case, accents and spaces; `special` adds tokens on both sides, as in BERT."""
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
    """Return the four fast tokenizers by name."""
    return {
        "byte_level": byte_level(),
        "byte_level_with_bos": byte_level_with_bos(),
        "metaspace": metaspace(),
        "wordpiece": wordpiece(),
    }


def pure_python() -> Any:
    """Return a character tokenizer in pure Python, which has no offsets."""
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


def byte_level_with_unused_bos(size: int = 400) -> Any:
    """Return byte-level BPE that has a BOS token and does not add it, as in GPT-2 and SmolLM2."""
    return PreTrainedTokenizerFast(tokenizer_object=_bpe(size), bos_token="<|bos|>", eos_token="<|end|>")


def byte_level_with_eos(size: int = 400) -> Any:
    """Return byte-level BPE that has a BOS token and adds only an EOS token, behind every prompt, as in OLMo."""
    backend = _bpe(size)
    backend.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", backend.token_to_id("<|end|>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|end|>")


def byte_level_with_eos_and_bos(size: int = 400) -> Any:
    """Return byte-level BPE that adds <s> in front of every prompt, as in Llama; </s> ends a text and is not added."""
    backend = _bpe(size)
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
