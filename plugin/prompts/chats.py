"""Prompt tables of conversations: the chat template writes the prompt, and every turn gets a span."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from stratalens.plugin.prompts.chat_templates import Message, Render, RenderedChat, Span, render_chat
from stratalens.plugin.prompts.columns import Labels, with_labels
from stratalens.plugin.prompts.tokenization import check_tokenizer
from stratalens.store.errors import InputError, TokenWarning, quote

_DATE_FORMAT = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1""")


def chat_frame(
    conversations: Iterable[Any],
    tokenizer: Any,
    *,
    labels: Labels | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return the columns of a prompt table of conversations; arguments are those of `PromptTable.from_chats`.

    Returns:
        prompt, add_special_tokens (False), `<span>_start` and `<span>_end` of every span (missing where a conversation
        does not have it), then the labels. One row for each conversation.

    Raises:
        InputError: there is no template, it fails, or it leaves out a turn; or a conversation is not valid.
    """
    check_tokenizer(tokenizer)
    template = _template_of(tokenizer, chat_template)
    options: dict[str, Any] = {**(template_options or {}), "add_generation_prompt": add_generation_prompt}
    options |= {"continue_final_message": continue_final_message, "chat_template": chat_template}
    prompts: list[str] = []
    spans: dict[str, dict[int, Span]] = {}
    for row, conversation in enumerate(_listed(conversations)):
        subject = f"conversation {row}"
        messages, own_tools = _messages_of(conversation, subject)
        render = _template_renderer(tokenizer, {**options, "tools": own_tools or tools}, subject)
        chat = render_chat(messages, render, subject)
        prompts.append(chat.text)
        for name, span in turn_spans(messages, chat).items():
            spans.setdefault(name, {})[row] = span
    if not prompts:
        raise InputError(
            "from_chats: there are no conversations; pass a list of lists of {'role': ..., 'content': ...}"
        )
    _warn_about_date(template, prompts)
    columns: dict[str, Any] = {"prompt": pd.Series(prompts, dtype=object)}
    columns["add_special_tokens"] = np.zeros(len(prompts), dtype=bool)
    for name in sorted(spans, key=_span_order):
        columns |= _span_columns(name, spans[name], len(prompts))
    return pd.DataFrame(with_labels(columns, labels, len(prompts), "from_chats", "conversations"))


def turn_spans(messages: Sequence[Message], chat: RenderedChat) -> dict[str, Span]:
    """Name the spans of one conversation.

    Returns:
        `turn<n>` for message n, counted from 0, and for each role the same as its last turn. A turn without content has
        the span of its tool calls. `tool_call` is the last tool call. Turns without content and tool calls have none.

    Example:
        >>> messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
        >>> turn_spans(messages, RenderedChat("<a><b>", [(1, 2), (4, 5)], [[], []]))
        {'turn0': (1, 2), 'user': (4, 5), 'turn1': (4, 5)}
    """
    spans: dict[str, Span] = {}
    for turn, (message, span, calls) in enumerate(zip(messages, chat.contents, chat.calls, strict=True)):
        if calls:
            spans["tool_call"] = calls[-1]
            span = span or (min(calls)[0], max(end for _, end in calls))
        if span is not None:
            spans[f"turn{turn}"] = spans[str(message["role"])] = span
        else:
            spans.pop(str(message["role"]), None)
    return spans


def _span_order(name: str) -> tuple[int, int]:
    """Sort the roles in front of the turns, and turn10 after turn9."""
    number = re.fullmatch(r"turn([0-9]+)", name)
    return (1, int(number[1])) if number else (0, 0)


def _span_columns(name: str, spans: Mapping[int, Span], rows: int) -> dict[str, Any]:
    values = np.full((rows, 2), -1, dtype=np.int64)
    for row, span in spans.items():
        values[row] = span
    missing = values[:, 0] < 0
    return {
        f"{name}_{edge}": pd.Series(pd.arrays.IntegerArray(values[:, i].copy(), missing.copy()))
        for i, edge in enumerate(("start", "end"))
    }


def _listed(conversations: Any) -> Iterable[Any]:
    """Return an iterable of conversations; refuse one conversation in place of a list of them."""
    if isinstance(conversations, str | bytes | Mapping) or not isinstance(conversations, Iterable):
        raise InputError(
            f"from_chats takes a list of conversations, not {type(conversations).__name__}; each is a list of "
            "messages: [[{'role': 'user', 'content': '...'}], ...]"
        )
    first = conversations[0] if isinstance(conversations, list | tuple) and conversations else None
    if isinstance(first, Mapping) and "role" in first:
        raise InputError("from_chats takes a list of conversations, and this is one conversation; pass [messages]")
    return conversations


def _messages_of(conversation: Any, subject: str) -> tuple[list[Message], Sequence[Any] | None]:
    """Return the messages of a conversation, and its own tools.

    Raises:
        InputError: the conversation is empty, or a message has no role or another type.
    """
    tools = None
    if isinstance(conversation, Mapping) and "messages" in conversation:
        tools = plain(conversation.get("tools"))
        conversation = conversation["messages"]
    messages = plain(conversation)
    if not isinstance(messages, list):
        raise InputError(
            f"{subject} is {type(conversation).__name__}, not a list of messages {{'role': 'user', 'content': '...'}}"
        )
    if not messages:
        raise InputError(f"{subject} is empty; drop it, or give it a message {{'role': 'user', 'content': '...'}}")
    for turn, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(
                f"{subject}, turn {turn}: {quote(message, 80)} is not a message {{'role': 'user', 'content': '...'}}"
            )
        calls = message.get("tool_calls")
        if calls and not (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)):
            raise InputError(
                f"{subject}, turn {turn}: tool_calls is {quote(calls, 80)}, not a list of "
                "{'type': 'function', 'function': {'name': '...', 'arguments': {...}}}"
            )
    return messages, tools


def plain(value: Any) -> Any:
    """Return lists and dicts in place of the arrays and mappings of a parquet file."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    return value


def _template_of(tokenizer: Any, chat_template: str | None) -> str:
    """Return the text of the chat template that will be used.

    Raises:
        InputError: there is none.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get(chat_template or "default", chat_template)
    elif chat_template is not None:
        template = chat_template
    if not template:
        raise InputError(
            "from_chats: the tokenizer has no chat template, as those of base models; pass the tokenizer of the chat "
            "model, or its template as chat_template="
        )
    return str(template)


def _template_renderer(tokenizer: Any, options: Mapping[str, Any], subject: str) -> Render:
    """Return a function that writes a conversation as text with the chat template of a tokenizer."""

    def render(messages: Sequence[Message]) -> str:
        try:
            return str(tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, **options))
        except Exception as error:  # a template is a program of its author: it raises what it likes
            roles = ", ".join(str(message["role"]) for message in messages[:12])
            raise InputError(
                f"{subject}: the chat template fails: {' '.join(str(error).split()) or type(error).__name__}. The "
                f"roles are {roles}. Change the conversation, for example put a system text into the first user turn, "
                "or pass another template as chat_template="
            ) from error

    return render


def _warn_about_date(template: str, prompts: Sequence[str]) -> None:
    """Warn if the template has written the date of today, so that tomorrow's prompts are other ones."""
    for match in _DATE_FORMAT.finditer(template):
        today = datetime.now().strftime(match[2])
        if any(today in prompt for prompt in prompts[:8]):
            warnings.warn(
                f"from_chats: the chat template writes today's date, {today!r}, into the prompts, so another day gives "
                "other prompts, which a store of today refuses. Pass the date that the template takes, for example "
                "template_options={'date_string': '26 Jul 2024'}, or save table.frame as a parquet file and read it "
                "again.",
                TokenWarning,
                stacklevel=4,
            )
            return
