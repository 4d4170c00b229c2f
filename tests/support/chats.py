"""Chat templates of published formats, and one conversation labelled by hand in each of them.

The templates in `chat_templates/` are written for these tests. Each gives the text of the published format of its name,
and does to a conversation what the published template does: trim, rewrite, move, refuse or add a system turn.
"""
# ruff: noqa: RUF001 - DeepSeek's special tokens have a full-width bar

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from support.tokenizers import byte_level_with_eos_and_bos

FOLDER = Path(__file__).parent / "chat_templates"

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " user\n"},
    {"role": "assistant", "content": "I am the user. "},
    {"role": "user", "content": "user: Hi\n\nthere"},
]

_CHATML = (
    "<|im_start|>system\n⟦0Be brief.⟧<|im_end|>\n<|im_start|>user\n⟦1 user\n⟧<|im_end|>\n"
    "<|im_start|>assistant\n⟦2I am the user. ⟧<|im_end|>\n<|im_start|>user\n⟦3user: Hi\n\nthere⟧<|im_end|>\n"
)
_LLAMA_3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n⟦1user⟧<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦2I am the user.⟧<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n⟦3user: Hi\n\nthere⟧<|eot_id|>"
)
_GEMMA = (
    "⟦1user⟧<end_of_turn>\n<start_of_turn>model\n⟦2I am the user.⟧<end_of_turn>\n"
    "<start_of_turn>user\n⟦3user: Hi\n\nthere⟧<end_of_turn>\n"
)

# The conversation as each template writes it, labelled by hand: ⟦n...⟧ is the content of turn n.
LABELLED = {
    "llama-2": "<s>[INST] <<SYS>>\n⟦0Be brief.⟧\n<</SYS>>\n\n⟦1 user⟧ [/INST] ⟦2I am the user.⟧ </s>"
    "<s>[INST] ⟦3user: Hi\n\nthere⟧ [/INST]",
    "llama-3": f"<s><|start_header_id|>system<|end_header_id|>\n\n⟦0Be brief.⟧<|eot_id|>{_LLAMA_3}",
    "llama-3.1": "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    f"Today Date: 26 Jul 2024\n\n⟦0Be brief.⟧<|eot_id|>{_LLAMA_3}",
    "chatml": _CHATML,
    "qwen2.5": _CHATML,
    "qwen3": _CHATML,
    "smollm2": _CHATML,
    "mistral-nemo": "<s>[INST]⟦1 user\n⟧[/INST]⟦2I am the user. ⟧</s>[INST]⟦0Be brief.⟧\n\n⟦3user: Hi\n\nthere⟧[/INST]",
    "gemma-3": f"<s><start_of_turn>user\n⟦0Be brief.⟧\n\n{_GEMMA}",
    "phi-3": "<|system|>\n⟦0Be brief.⟧<|end|>\n<|user|>\n⟦1 user\n⟧<|end|>\n<|assistant|>\n⟦2I am the user. ⟧<|end|>\n"
    "<|user|>\n⟦3user: Hi\n\nthere⟧<|end|>\n</s>",
    "zephyr": "<|system|>\n⟦0Be brief.⟧</s>\n<|user|>\n⟦1 user\n⟧</s>\n<|assistant|>\n⟦2I am the user. ⟧</s>\n"
    "<|user|>\n⟦3user: Hi\n\nthere⟧</s>\n",
    "deepseek-r1": "<s>⟦0Be brief.⟧<｜User｜>⟦1 user\n⟧<｜Assistant｜>⟦2I am the user. ⟧<｜end▁of▁sentence｜>"
    "<｜User｜>⟦3user: Hi\n\nthere⟧",
    "command-r": "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>⟦0Be brief.⟧<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>⟦1user⟧<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦2I am the user.⟧<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>⟦3user: Hi\n\nthere⟧<|END_OF_TURN_TOKEN|>",
    "falcon": "⟦0Be brief.⟧\nUser: ⟦1user⟧\nFalcon: ⟦2I am the user.⟧\nUser: ⟦3user: Hi\nthere⟧",
    "olmo-2": "<s><|system|>\n⟦0Be brief.⟧\n<|user|>\n⟦1 user\n⟧\n<|assistant|>\n⟦2I am the user. ⟧</s>\n"
    "<|user|>\n⟦3user: Hi\n\nthere⟧\n",
    "granite-3": "<|start_of_role|>system<|end_of_role|>⟦0Be brief.⟧<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>⟦1 user\n⟧<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>⟦2I am the user. ⟧<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>⟦3user: Hi\n\nthere⟧<|end_of_text|>\n",
    "vicuna": "<s>⟦0Be brief.⟧\n\nUSER: ⟦1user⟧\nASSISTANT: ⟦2I am the user.⟧</s>\nUSER: ⟦3user: Hi\n\nthere⟧\n",
}

# The same without the system turn, for templates that refuse it, leave it out, or add one of their own.
WITHOUT_SYSTEM = {
    "mistral-7b": "<s>[INST] ⟦1 user\n⟧ [/INST]⟦2I am the user. ⟧</s> [INST] ⟦3user: Hi\n\nthere⟧ [/INST]",
    "gemma": f"<s><start_of_turn>user\n{_GEMMA}",
    "olmo": "</s><|user|>\n⟦1 user\n⟧\n<|assistant|>\n⟦2I am the user. ⟧</s>\n<|user|>\n⟦3user: Hi\n\nthere⟧",
    "qwen2.5": _CHATML.replace("⟦0Be brief.⟧", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "smollm2": _CHATML.replace("⟦0Be brief.⟧", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
}


def template(name: str) -> str:
    """Return the text of a chat template."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def chat_tokenizer(name: str) -> Any:
    """Return a byte-level tokenizer that adds <s> in front, with a chat template."""
    tokenizer = byte_level_with_eos_and_bos()
    tokenizer.chat_template = template(name)
    return tokenizer


def read_labels(labelled: str) -> tuple[str, dict[int, tuple[int, int]]]:
    """Return a text without its labels, and the characters of each labelled turn."""
    text, spans, start = "", {}, 0
    for match in re.finditer(r"⟦(\d)(.*?)⟧", labelled, re.DOTALL):
        text += labelled[start : match.start()]
        spans[int(match[1])] = (len(text), len(text) + len(match[2]))
        text += match[2]
        start = match.end()
    return text + labelled[start:], spans
