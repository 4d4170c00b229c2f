"""Tables of conversations: spans of the turns, token ids, what templates do to contents, and refusals."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import stratalens as sl
from stratalens.plugin.prompts.positions import resolve
from stratalens.store.errors import InputError, TokenWarning
from support.chats import CHAT, LABELLED, WITHOUT_SYSTEM, chat_tokenizer, read_labels
from support.tokenizers import byte_level

DATE = {"date_string": "26 Jul 2024"}
CALL = {
    "type": "function",
    "id": "abcdef123",
    "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}},
}
TOOLS = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "abcdef123"},
    {"role": "assistant", "content": "It rains."},
]


def from_chat(name, chat, **options):
    return sl.PromptTable.from_chats([chat], chat_tokenizer(name), **options)


def texts(table, row=0):
    return {name: table.prompts[row][start:end] for name, ((start, end), *_) in table.spans.items()}


@pytest.mark.parametrize(
    ("name", "labelled", "first"),
    [*((n, text, 0) for n, text in LABELLED.items()), *((n, text, 1) for n, text in WITHOUT_SYSTEM.items())],
)
def test_spans_are_those_labelled_by_hand(name, labelled, first):
    table = from_chat(name, CHAT[first:], template_options=DATE)
    prompt, spans = read_labels(labelled)
    assert table.prompts == [prompt]
    turns = {turn - first: span for turn, span in spans.items()}
    assert {n: tuple(table.spans[f"turn{n}"][0].tolist()) for n in range(len(CHAT) - first)} == turns
    roles = {"user": 3, "assistant": 2} | ({"system": 0} if first == 0 else {})
    assert {role: tuple(table.spans[role][0].tolist()) for role in roles} == {r: spans[t] for r, t in roles.items()}
    assert set(table.spans) == {*roles, *(f"turn{n}" for n in turns)}


@pytest.mark.parametrize("name", ["llama-2", "llama-3", "qwen2.5", "deepseek-r1", "falcon"])
def test_token_ids_are_those_of_the_template_alone(name):
    """No BOS token is added to the one that the template writes, or where it writes none."""
    tokenizer = chat_tokenizer(name)
    table = sl.PromptTable.from_chats([CHAT, CHAT[:2]], tokenizer)
    tokens = table.tokenize(tokenizer)
    for chat, row in zip([CHAT, CHAT[:2]], tokens.ids, strict=True):
        assert row.tolist() == tokenizer.apply_chat_template(chat, return_dict=False)
    assert tokens.rule == "tokenizer(prompt, add_special_tokens=False)"
    positions = resolve(("user_first", "user_last", "turn0_last"), table, tokens)
    for row, (first, last, _) in enumerate(positions.index.tolist()):
        covered = tokenizer.decode(tokens.ids[row][first : last + 1])
        start, end = table.spans["user"][row]
        assert table.prompts[row][start:end].strip() in covered


@pytest.mark.parametrize(("name", "has_bos"), [("llama-3", True), ("qwen2.5", False)])
def test_prepend_bos_gives_one_bos_or_none(name, has_bos):
    tokenizer = chat_tokenizer(name)
    table = sl.PromptTable.from_chats([CHAT, CHAT[1:]], tokenizer)
    plain, with_bos, without = (table.tokenize(tokenizer, prepend_bos=bos) for bos in (None, True, False))
    bos = tokenizer.bos_token_id
    for row in range(2):
        body = without.ids[row].tolist()
        assert bos not in body
        assert with_bos.ids[row].tolist() == [bos, *body]
        assert plain.ids[row].tolist() == (with_bos if has_bos else without).ids[row].tolist()
        assert len(with_bos.offsets[row]) == len(with_bos.ids[row])
    assert not len(plain.repeated_special)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_saved_table_has_the_same_ids_and_positions(suffix, tmp_path):
    tokenizer = chat_tokenizer("llama-3")
    table = sl.PromptTable.from_chats([CHAT, CHAT[:2]], tokenizer, labels={"kind": ["long", "short"]})
    frame, file = table.frame, tmp_path / f"chats.{suffix}"
    if suffix == "jsonl":
        frame.to_json(file, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_csv(file, index=False) if suffix == "csv" else frame.to_parquet(file)
    again = sl.PromptTable.read(file)
    assert again.tokenize(tokenizer).digest == table.tokenize(tokenizer).digest
    assert {name: span.tolist() for name, span in again.spans.items()} == {
        name: span.tolist() for name, span in table.spans.items()
    }
    assert again.labels()["kind"].tolist() == ["long", "short"]
    with pytest.raises(InputError, match="add_special_tokens"):
        sl.PromptTable.from_dataframe(frame.assign(add_special_tokens=[True, False]))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("qwen2.5", 'weather", "arguments": {"city": "Oslo", "days": 2}'),
        ("qwen3", 'weather", "arguments": {"city": "Oslo", "days": 2}'),
        ("llama-3.1", 'weather", "parameters": {"city": "Oslo", "days": 2}'),
        ("mistral-nemo", 'weather", "arguments": {"city": "Oslo", "days": 2}'),
        ("deepseek-r1", 'weather\n```json\n{"city": "Oslo", "days": 2}'),
    ],
)
@pytest.mark.parametrize("content", ["", None])
def test_tool_calls_stay_and_have_positions(name, call, content):
    function = CALL["function"]
    if name == "deepseek-r1":  # takes arguments as text
        function = {**function, "arguments": json.dumps(function["arguments"])}
    chat = [TOOLS[0], {**TOOLS[1], "content": content, "tool_calls": [{**CALL, "function": function}]}, *TOOLS[2:]]
    table = from_chat(name, chat, template_options=DATE)
    spans = texts(table)
    assert spans["tool_call"] == spans["turn1"] == call
    assert (spans["tool"], spans["assistant"], spans["user"]) == ("rain", "It rains.", "Weather in Oslo?")


def test_tools_and_options_reach_the_template():
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    for chat, options in (({"messages": TOOLS, "tools": tools}, {}), (TOOLS, {"tools": tools})):
        assert "<tools>" in from_chat("qwen2.5", chat, **options).prompts[0]
    table = from_chat("qwen3", CHAT, add_generation_prompt=True, template_options={"enable_thinking": False})
    assert table.prompts[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    open_turn = from_chat("chatml", CHAT[:3], continue_final_message=True)
    assert open_turn.prompts[0].endswith(texts(open_turn)["assistant"])
    assert texts(open_turn)["assistant"] == "I am the user. "


@pytest.mark.parametrize(
    ("name", "chat", "kept"),
    [
        # a template that removes the reasoning: the span is what it leaves
        ("deepseek-r1", [*CHAT[:2], {"role": "assistant", "content": "<think>a>b</think>four"}, CHAT[3]], "four"),
        ("qwen3", [*CHAT[:2], {"role": "assistant", "content": "<think>\nsum\n</think>\n\nfour"}, CHAT[3]], "four"),
        # one that reads it and writes all of it
        ("qwen3", [CHAT[1], {"role": "assistant", "content": "<think>\nsum\n</think>\n\nfour"}], None),
        # contents that are words of the template, or empty, or the same twice
        ("chatml", [{"role": "user", "content": "user"}, {"role": "assistant", "content": "assistant"}], None),
        ("llama-3", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}], None),
        ("gemma-3", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\n bcd \t"}], "bcd"),
        (
            "chatml",
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\U000f0000b\U000f0001 "}],
            None,
        ),
    ],
)
def test_a_span_is_what_the_template_leaves_of_the_content(name, chat, kept):
    table = from_chat(name, chat)
    assert texts(table)["assistant"] == (kept or chat[-1 if kept is None else 2]["content"])
    start = table.spans["assistant"][0, 0]
    assert table.prompts[0].rindex(texts(table)["assistant"], 0, table.spans["assistant"][0, 1]) == start


def test_a_qwen_tool_response_in_a_user_turn_has_its_whole_span():
    content = "<tool_response>\nrain\n</tool_response>"
    chat = [*CHAT[:3], {"role": "user", "content": content}]
    assert texts(from_chat("qwen3", chat))["user"] == content


def test_contents_of_parts_and_turns_without_content():
    parts = [{"type": "text", "text": " Hi "}, {"type": "image"}, {"type": "text", "text": "there"}]
    table = sl.PromptTable.from_chats(
        [
            [{"role": "user", "content": parts}],
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
        ],
        chat_tokenizer("gemma-3"),
    )
    assert texts(table)["user"] == "Hi<start_of_image>there"
    assert sorted(table.spans) == ["turn0", "user"]  # the empty turn has no span
    assert table.spans["turn0"].min() >= 0


def test_ten_turns_are_in_order_and_short_chats_miss_the_late_ones():
    long = [{"role": ("user", "assistant")[i % 2], "content": f"text {i}"} for i in range(12)]
    table = sl.PromptTable.from_chats(
        iter([long, long[:3]]), chat_tokenizer("zephyr"), labels=pd.DataFrame({"n": [1, 2]})
    )
    assert list(table.spans) == ["user", "assistant", *(f"turn{i}" for i in range(12))]
    assert texts(table, 0)["turn11"] == "text 11"
    assert table.spans["turn3"][1].tolist() == [-1, -1]
    assert table.labels()["n"].tolist() == [1, 2]
    tokens = table.tokenize(chat_tokenizer("zephyr"))
    with pytest.raises(InputError, match="row 1: no turn11"):
        resolve(("turn11_last",), table, tokens)
    assert (resolve(("turn11_last",), table, tokens, "nan").index[:, 0] >= 0).tolist() == [True, False]


def test_a_template_with_the_date_of_today_warns():
    with pytest.warns(TokenWarning, match="today's date"):
        from_chat("granite-3", CHAT[1:])
    from_chat("granite-3", CHAT)
    from_chat("llama-3.1", CHAT, template_options=DATE)


REFUSALS = {
    "no template": (lambda: sl.PromptTable.from_chats([CHAT], byte_level()), "no chat template"),
    "not a tokenizer": (lambda: sl.PromptTable.from_chats([CHAT], "gpt2"), "not a Hugging Face tokenizer"),
    "no conversations": (lambda: sl.PromptTable.from_chats([], chat_tokenizer("chatml")), "no conversations"),
    "one conversation": (lambda: sl.PromptTable.from_chats(CHAT, chat_tokenizer("chatml")), "pass [messages]"),
    "a text": (lambda: sl.PromptTable.from_chats("Hi", chat_tokenizer("chatml")), "not str"),
    "an empty conversation": (lambda: from_chat("chatml", []), "conversation 0 is empty"),
    "a message without a role": (lambda: from_chat("chatml", [{"content": "a"}]), "conversation 0, turn 0"),
    "tool calls of another type": (
        lambda: from_chat("qwen2.5", [CHAT[1], {"role": "assistant", "tool_calls": ["f()"]}]),
        "tool_calls is ['f()']",
    ),
    "a template that is no Jinja": (
        lambda: from_chat("chatml", CHAT, chat_template="{% if"),
        "the chat template fails",
    ),
    "a system turn that the template refuses": (lambda: from_chat("gemma", CHAT), "System role not supported"),
    "turns that do not alternate": (lambda: from_chat("llama-2", [CHAT[1], CHAT[1]]), "roles must alternate"),
    "a role that the template leaves out": (
        lambda: from_chat("zephyr", TOOLS[:1] + TOOLS[2:]),
        "leaves out the content of turn 1 (role 'tool')",
    ),
    "a system turn that the template leaves out": (lambda: from_chat("olmo", CHAT), "turn 0 (role 'system')"),
    "a tool call that the template leaves out": (lambda: from_chat("zephyr", TOOLS[:2]), "leaves out a tool call"),
    "labels of another length": (lambda: from_chat("chatml", CHAT, labels={"a": [1, 2]}), "2 values, but there are 1"),
    "labels with the name of a span": (
        lambda: from_chat("chatml", CHAT, labels={"user_start": [1]}),
        "'user_start' has the name of a column",
    ),
    "BOS in some rows": (
        lambda: sl.PromptTable.from_dataframe(
            pd.DataFrame({"prompt": ["<s>a", "b"], "add_special_tokens": [False, False]})
        ).tokenize(chat_tokenizer("chatml"), prepend_bos=False),
        "row 0 of 2 start with a BOS token",
    ),
    "chats as prompts": (lambda: sl.PromptTable.from_dataframe(pd.DataFrame({"prompt": [CHAT]})), "from_chats"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_with_the_remedy(case):
    call, message = REFUSALS[case]
    with pytest.raises(InputError, match=re.escape(message)):
        call()


def test_a_file_of_chats_needs_a_tokenizer(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": chat, "kind": "a"}) + "\n" for chat in (CHAT, CHAT[:2])))
    with pytest.raises(InputError, match=r"messages.*tokenizer="):
        sl.PromptTable.read(file)
    table = sl.PromptTable.read(file, tokenizer=lambda: chat_tokenizer("chatml"), add_generation_prompt=True)
    assert np.array_equal(table.spans["user"][:, 1] > 0, [True, True])
    assert table.label_names == ("add_special_tokens", "kind")
    assert table.prompts[1].endswith("<|im_start|>assistant\n")
    pd.read_json(file, lines=True).to_parquet(tmp_path / "chats.parquet")
    again = sl.PromptTable.read(
        tmp_path / "chats.parquet", tokenizer=chat_tokenizer("chatml"), add_generation_prompt=True
    )
    assert again.prompts == table.prompts
