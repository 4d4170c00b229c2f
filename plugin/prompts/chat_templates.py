"""Conversations rendered by a chat template, with the characters of every turn's content.

A second rendering has marks around the contents: characters of a private use area, inside the white space at the ends
of a content. Without its marks it must be equal to the first rendering. The marks are then the exact edges, however
the template trims, rewrites, joins or reorders the contents. Some templates read a content, for example to remove the
reasoning before `</think>`. There a search for the first mark that stays finds the edge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from stratalens.store.errors import InputError, quote

Message = Mapping[str, Any]
Span = tuple[int, int]
Render = Callable[[Sequence[Message]], str]

_FIRST_MARK = 0xF0000  # plane 15 of Unicode, for private use
_LAST_MARK = 0xFFFFD


@dataclass(frozen=True)
class RenderedChat:
    """The text of one conversation, and where its turns are in it.

    Attributes:
        text: the conversation as the template writes it, special tokens included.
        contents: for each message the characters [start, end) of its content; None without content.
        calls: for each message the characters of each tool call, from the name of the function to the end of its
            arguments.
    """

    text: str
    contents: list[Span | None]
    calls: list[list[Span]]


def render_chat(messages: Sequence[Message], render: Render, subject: str) -> RenderedChat:
    """Render a conversation, and find the content of every message in the text.

    The span of a content is the content as the template writes it: without the white space that the template removes,
    and without a part that it leaves out. If the template writes a content twice, the span is its last occurrence.

    Args:
        messages: the conversation: mappings with `role`, `content` and whatever else the template reads.
        render: returns the text of a conversation; `template_renderer` makes it from a tokenizer.
        subject: name of the conversation, for messages.

    Raises:
        InputError: the template fails, or leaves out a content or a tool call.

    Example:
        >>> render = lambda chat: "".join(f"<{m['role']}> {m['content'].strip()}\\n" for m in chat)
        >>> render_chat([{"role": "user", "content": " Hi "}, {"role": "bot", "content": "<user> Hi"}], render, "chat")
        RenderedChat(text='<user> Hi\\n<bot> <user> Hi\\n', contents=[(7, 9), (16, 25)], calls=[[], []])
    """
    chat = _Chat(list(messages), render, subject, render(messages))
    contents: list[Span | None] = []
    calls: list[list[Span]] = []
    common = _mark_all(chat)
    for turn, message in enumerate(chat.messages):
        span = _content_span(chat, turn, common)
        contents.append(span if span is None else _with_white_space(chat, turn, span))
        calls.append([_call_span(chat, turn, number, common) for number in range(len(_tool_calls(message)))])
    return RenderedChat(chat.text, contents, calls)


@dataclass
class _Chat:
    """A conversation with its text, and the rendering of changed copies."""

    messages: list[Message]
    render: Render
    subject: str
    text: str
    marks: list[str] = field(init=False)

    def __post_init__(self) -> None:
        used = set(re.findall(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]", self.text))
        free = (chr(code) for code in range(_FIRST_MARK, _LAST_MARK) if chr(code) not in used)
        wanted = 2 + sum(2 + 2 * len(_tool_calls(message)) for message in self.messages)
        self.marks = list(islice(free, wanted))
        if len(self.marks) < wanted:
            raise InputError(
                f"{self.subject}: {len(self.messages)} turns are more than the {_LAST_MARK - _FIRST_MARK} "
                "marks allow. Split the conversation"
            )

    def places(self, messages: Sequence[Message], marks: Sequence[str]) -> dict[str, list[int]] | None:
        """Render a copy with marks: the places of each mark in the text; None if the rest is not the text."""
        try:
            marked = self.render(messages)
        except InputError:  # a content that the template accepts only without marks
            return None
        places: dict[str, list[int]] = {}
        pieces: list[str] = []
        start = length = 0
        for match in re.finditer(f"[{''.join(marks)}]", marked):
            pieces.append(marked[start : match.start()])
            length += len(pieces[-1])
            places.setdefault(match.group(), []).append(length)
            start = match.end()
        pieces.append(marked[start:])
        return places if "".join(pieces) == self.text else None

    def with_message(self, turn: int, message: Message) -> list[Message]:
        """Return the conversation with another message."""
        return [*self.messages[:turn], message, *self.messages[turn + 1 :]]

    def name(self, turn: int) -> str:
        """Name a turn in a message to the user."""
        return f"turn {turn} (role {quote(self.messages[turn].get('role'), 40)})"


def _tool_calls(message: Message) -> list[Any]:
    calls = message.get("tool_calls")
    return list(calls) if isinstance(calls, list | tuple) else []


def _text_parts(message: Message) -> list[tuple[int | None, str]]:
    """List the texts of a content that are not blank: the content itself (None), or its text parts by number."""
    content = message.get("content")
    if isinstance(content, str):
        return [(None, content)] if content.strip() else []
    parts = list(content) if isinstance(content, list | tuple) else []
    texts = [(number, part.get("text")) for number, part in enumerate(parts) if isinstance(part, Mapping)]
    return [(number, text) for number, text in texts if isinstance(text, str) and text.strip()]


def _with_text(message: Message, part: int | None, text: str) -> Message:
    """Return a message with another text as its content, or as one part of it."""
    if part is None:
        return {**message, "content": text}
    parts = list(message["content"])
    parts[part] = {**parts[part], "text": text}
    return {**message, "content": parts}


def _insert(message: Message, part: int | None, text: str, place: int, mark: str) -> Message:
    """Return a message with a mark at a place of one text, counted from the first character that is no white space."""
    at = len(text) - len(text.lstrip()) + place
    return _with_text(message, part, text[:at] + mark + text[at:])


def _mark_content(message: Message, first: str, last: str) -> Message:
    parts = _text_parts(message)
    if parts:
        part, text = parts[-1]
        message = _insert(message, part, text, len(text.strip()), last)
        part, text = _text_parts(message)[0]
        message = _insert(message, part, text, 0, first)
    return message


def _mark_call(message: Message, number: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Message:
    """Return a message with a changed function in one tool call: {"function": {...}}, or the function itself."""
    calls = _tool_calls(message)
    call = dict(calls[number])
    nested = isinstance(call.get("function"), Mapping)
    function = change(dict(call["function"] if nested else call))
    calls[number] = {**call, "function": function} if nested else function
    return {**message, "tool_calls": calls}


def _marks_of(chat: _Chat, turn: int) -> tuple[str, ...]:
    start = 2 + sum(2 + 2 * len(_tool_calls(message)) for message in chat.messages[:turn])
    return tuple(chat.marks[start : start + 2 + 2 * len(_tool_calls(chat.messages[turn]))])


def _mark_turn(chat: _Chat, turn: int) -> Message:
    """Return a message with marks around its content and around the function names of its tool calls."""
    marks = _marks_of(chat, turn)
    message = _mark_content(chat.messages[turn], *marks[:2])
    for number in range(len(_tool_calls(message))):
        first, last = marks[2 + 2 * number : 4 + 2 * number]

        def enclose(function: dict[str, Any], first: str = first, last: str = last) -> dict[str, Any]:
            name = function.get("name")
            return {**function, "name": first + name + last} if isinstance(name, str) else function

        message = _mark_call(message, number, enclose)
    return message


def _mark_all(chat: _Chat) -> dict[str, list[int]] | None:
    """Mark all turns in one rendering; None if the template reads a content, so that the text changes."""
    return chat.places([_mark_turn(chat, turn) for turn in range(len(chat.messages))], chat.marks)


def _places_of_turn(chat: _Chat, turn: int, common: dict[str, list[int]] | None) -> dict[str, list[int]]:
    """Return the places of the marks of one turn; {} if the text changes even with these marks alone."""
    if common is not None:
        return common
    return chat.places(chat.with_message(turn, _mark_turn(chat, turn)), chat.marks) or {}


def _content_span(chat: _Chat, turn: int, common: dict[str, list[int]] | None) -> Span | None:
    parts = _text_parts(chat.messages[turn])
    if not parts:
        return None
    places = _places_of_turn(chat, turn, common)
    first, last = _marks_of(chat, turn)[:2]
    start, end = (places.get(mark, [-1])[-1] for mark in (first, last))
    if start < 0:
        start = _edge(chat, turn, *parts[0], from_start=True)
    if end < 0:
        end = _edge(chat, turn, *parts[-1], from_start=False)
    if 0 <= start < end:
        return start, end
    raise InputError(
        f"{chat.subject}: the chat template leaves out the content of {chat.name(turn)}: "
        f"{quote(parts[0][1], 60)}. Remove this turn, or put its text into a turn that the template writes, such as "
        "the first user turn"
    )


def _edge(chat: _Chat, turn: int, part: int | None, text: str, *, from_start: bool) -> int:
    """Find the first place of a content that the template keeps, or the last one: its place in the text, else -1.

    A template that leaves out a part of a content, such as the reasoning before `</think>`, leaves out all marks in
    front of a place, and keeps those behind it. The search halves the content.
    """
    mark = chat.marks[0]
    message = chat.messages[turn]

    def place(at: int) -> int:
        places = chat.places(chat.with_message(turn, _insert(message, part, text, at, mark)), [mark])
        return -1 if not places else places[mark][-1]

    core = text.strip()
    length = len(core)
    kept_at, left_out = (length, -1) if from_start else (0, length + 1)
    edge = place(kept_at)
    if edge < 0:
        return -1
    while abs(kept_at - left_out) > 1:
        middle = (kept_at + left_out) // 2
        there = place(middle)
        if there < 0:
            left_out = middle
        else:
            kept_at, edge = middle, there
    before, after = core[:kept_at], core[kept_at:]
    if from_start:  # the template reads this part, so that a mark changes the text, but it writes all of it
        return edge - len(before) if chat.text.endswith(before, 0, edge) else edge
    return edge + len(after) if chat.text.startswith(after, edge) else edge


def _with_white_space(chat: _Chat, turn: int, span: Span) -> Span:
    """Add the white space around a content where the template writes it."""
    parts = _text_parts(chat.messages[turn])
    start, end = span
    part, text = parts[0]
    space = text[: len(text) - len(text.lstrip())]
    if space and chat.text[:start].endswith(space) and not _is_trimmed(chat, turn, part, text.lstrip()):
        start -= len(space)
    part, text = parts[-1]
    space = text[len(text.rstrip()) :]
    if space and chat.text.startswith(space, end) and not _is_trimmed(chat, turn, part, text.rstrip()):
        end += len(space)
    return start, end


def _is_trimmed(chat: _Chat, turn: int, part: int | None, text: str) -> bool:
    """Return whether the text of the conversation is the same with the trimmed content."""
    message = _with_text(chat.messages[turn], part, text)
    return chat.places(chat.with_message(turn, message), chat.marks[:1]) is not None


def _call_span(chat: _Chat, turn: int, number: int, common: dict[str, list[int]] | None) -> Span:
    """Find a tool call: from the name of its function to the end of its arguments.

    If the template does not write the arguments as one JSON object, the span is the name alone.
    """
    marks = _marks_of(chat, turn)[2 + 2 * number : 4 + 2 * number]
    places = _places_of_turn(chat, turn, common)
    start, end = (places.get(mark, [-1])[-1] for mark in marks)
    if start < 0 or end < 0:
        raise InputError(
            f"{chat.subject}: the chat template leaves out a tool call of {chat.name(turn)}: "
            f"{quote(_tool_calls(chat.messages[turn])[number], 80)}. Pass chat_template= with a template for tools, or "
            "write the call as the content of the turn"
        )
    arguments = _arguments_span(chat, turn, number)
    return (start, end) if arguments is None else (min(start, arguments[0]), max(end, arguments[1]))


def _arguments_span(chat: _Chat, turn: int, number: int) -> Span | None:
    """Find the arguments of a tool call in the text; None if they are not there as one JSON value.

    Other arguments take their place, `{mark: mark}` or `"mark mark"`. The text before and after them stays the same.
    """
    first, last = chat.marks[:2]
    values: list[Any] = []

    def replace(function: dict[str, Any]) -> dict[str, Any]:
        values.append(function.get("arguments"))
        other: Any = {first: last} if isinstance(values[0], Mapping) else f"{first}{values[0]}{last}"
        return {**function, "arguments": other}

    try:
        marked = chat.render(chat.with_message(turn, _mark_call(chat.messages[turn], number, replace)))
    except InputError:
        return None
    if marked.count(first) != 1 or marked.count(last) != 1:
        return None
    before, after = marked[: marked.index(first)], marked[marked.index(last) + 1 :]
    if isinstance(values[0], Mapping):
        before, after = re.sub(r'\{\s*"$', "", before), re.sub(r'^"\s*\}', "", after)
    span = len(before), len(chat.text) - len(after)
    if not (chat.text.startswith(before) and chat.text.endswith(after)) or span[0] >= span[1]:
        return None
    if not isinstance(values[0], Mapping):
        return span
    try:
        return span if json.loads(chat.text[slice(*span)]) == values[0] else None
    except ValueError:
        return None
