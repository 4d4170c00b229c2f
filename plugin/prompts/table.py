"""PromptTable: the prompts to record and their labels, checked before a model runs."""

from __future__ import annotations

import copy
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratalens.plugin.prompts.chats import chat_frame
from stratalens.plugin.prompts.columns import (
    Labels,
    category_order,
    check_names,
    label_values,
    name_rows,
    text_values,
)
from stratalens.plugin.prompts.documents import document_frame
from stratalens.plugin.prompts.files import read_frame
from stratalens.plugin.prompts.place_rows import PlaceRows
from stratalens.plugin.prompts.prompt_ids import entity_ids, numbered_ids, prompt_ids
from stratalens.plugin.prompts.spans import entity_spans, span_columns
from stratalens.plugin.prompts.special_tokens import ADD_SPECIAL_TOKENS, adds_special_tokens
from stratalens.plugin.prompts.tokenization import TokenizedPrompts, tokenize
from stratalens.store.errors import InputError, suggest
from stratalens.store.names import check_distinct

SPECIAL = ("prompt", "prompt_id", "entity", "entity_id", "answer")


class PromptTable(PlaceRows):
    """Prompts to record, one per row, with labels; valid and immutable.

    The columns are:

    - prompt: text that the model reads. Required.
    - prompt_id: unique name of the row. Default: a hash of prompt, entity and entity_id,
      so rows of different tables have different names.
    - entity: text that occurs in the prompt, for the positions entity_first and
      entity_last. Rows without an entity ('' or missing) need an `entity_id`.
    - entity_id: group of the row. Default: the row's entity. Without either
      column every prompt counts as a separate entity.
    - answer: text that the model reads after the prompt, for `answer_loss`.
    - `<name>_start`, `<name>_end`: characters [start, end) of the prompt, for the
      positions `<name>_first` and `<name>_last`. Both are missing in rows
      without such a span.
    - any other: a label, which keeps its dtype.
    - add_special_tokens: a label that is False in every row if the prompts have all of their special tokens as text.
      The tokenizer then adds none. `from_chats` writes this column.

    If an entity occurs several times in its prompt, the span is its last occurrence
    as a whole word, because the model has read most about it there. Without one, it
    is the last occurrence. `entity_start` and `entity_end` choose another.

    Attributes:
        source: name of the table in messages.
        spans: name -> int64 array of shape (rows, 2), characters [start, end), -1 in rows
            without the span.
        names_entities: whether the table says which rows are about the same entity.
            Otherwise every row is about a separate one.
        label_names: columns that are labels, in the table's order.
        has_default_ids: whether the table has no `prompt_id`, so that its rows have the default names.
        add_special_tokens: whether the tokenizer adds its special tokens to the prompts.
        label_orders: for each label that is an ordered pandas Categorical, its categories in order, as text. The
            store keeps this order, and the analyses take it as the order of the groups.

    Example:
        >>> import pandas as pd
        >>> table = PromptTable.from_dataframe(
        ...     pd.DataFrame({"prompt": ["Who is Ann?", "Who is Bo?"], "entity": ["Ann", "Bo"], "group": [1, 2]})
        ... )
        >>> len(table), table.label_names, table.spans["entity"].tolist()
        (2, ('group',), [[7, 10], [7, 9]])
        >>> table.labels()["entity"].tolist()
        ['pb490dc5143aa', 'pb3f22b70924e']
    """

    def __init__(self, frame: pd.DataFrame, source: str = "prompt table") -> None:
        self.source = source
        columns = _check_columns(frame, source)
        prompts = text_values(columns["prompt"], source, required=True)
        blank = [row for row, text in enumerate(prompts.tolist()) if not text.strip()]
        if blank:
            raise InputError(f"{source}: the prompt of {name_rows(blank)} is empty; fill or drop these rows")
        texts = {name: text_values(columns[name], source, required=False) for name in SPECIAL if name in columns}
        row_ids = prompt_ids(columns, texts, source)
        self.has_default_ids: bool = "prompt_id" not in columns
        """Whether the table has no `prompt_id`, so that its rows have the default names."""
        self.warned_about_ids = False
        """Whether a capture has said that an older store names the rows by their numbers; it warns once."""
        entities = texts.get("entity")
        spans, used = span_columns(columns, prompts, source)
        if entities is not None:
            spans["entity"] = entity_spans(prompts, entities, spans.get("entity"), source)
        self.spans: Mapping[str, NDArray[np.int64]] = spans
        content: dict[str, NDArray[Any]] = {"prompt": prompts, "prompt_id": row_ids}
        if entities is not None:
            content["entity"] = entities
        content["entity_id"] = entity_ids(columns, entities, row_ids, source)
        self.names_entities: bool = "entity_id" in columns or bool(entities is not None and any(entities.tolist()))
        """Whether the table says which rows are about the same entity; otherwise each row counts as its own entity."""
        self.warned_about_entities = False
        """Whether a capture has looked for rows that may share an entity; it warns once for each table."""
        self.warned_about_special_tokens = False
        """Whether a capture has looked for prompts that repeat special tokens; it warns once for each table."""
        if "answer" in texts:
            content["answer"] = texts["answer"]
        self.label_names: tuple[str, ...] = tuple(n for n in columns if n not in SPECIAL and n not in used)
        content.update({name: label_values(columns[name], source) for name in self.label_names})
        orders = {name: category_order(columns[name]) for name in self.label_names}
        self.label_orders: Mapping[str, tuple[str, ...]] = {name: order for name, order in orders.items() if order}
        """Categories of each label that was an ordered categorical column, in order."""
        self.add_special_tokens: bool = adds_special_tokens(content.get(ADD_SPECIAL_TOKENS), source)
        """Whether the tokenizer adds its special tokens; False where a chat template has written them."""
        self._content = content

    @classmethod
    def from_dataframe(cls, frame: pd.DataFrame) -> PromptTable:
        """Make a table from a pandas DataFrame; its index is ignored and rows are counted from 0.

        Raises:
            InputError: the table is not valid; the message names the rows and the remedy.
        """
        if not isinstance(frame, pd.DataFrame):
            raise InputError(
                f"from_dataframe takes a pandas DataFrame, not {type(frame).__name__}: "
                "PromptTable.from_dataframe(pd.DataFrame({'prompt': [...]})), or PromptTable.read(path)"
            )
        return cls(frame)

    @classmethod
    def read(cls, path: str | Path, *, tokenizer: Any = None, **chat_options: Any) -> PromptTable:
        """Read a table from a csv, tsv, jsonl or parquet file in UTF-8.

        In csv files only an empty field is missing: NA, null and None are text.

        Args:
            path: the file. A jsonl or parquet file with a column `messages` and no column `prompt` is a table of chats;
                a column `tools` has the tools of each chat, and all other columns are labels.
            tokenizer: for a table of chats, as in `from_chats`: the tokenizer, or a function that returns it.
            chat_options: for a table of chats, further arguments of `from_chats`.

        Raises:
            InputError: the file or the table is not valid; the message names the line or row
                and the remedy.
        """
        frame = read_frame(path, fill=True)
        if "messages" not in frame or "prompt" in frame:
            return cls(frame, source=str(path))
        if tokenizer is None:
            raise InputError(
                f"{path}: the column 'messages' has chats, which need the chat template of a tokenizer; pass it: "
                "PromptTable.read(path, tokenizer=AutoTokenizer.from_pretrained(...))"
            )
        tokenizer = tokenizer if hasattr(tokenizer, "apply_chat_template") else tokenizer()
        chats = [name for name in ("messages", "tools") if name in frame]
        conversations: list[Any] = frame["messages"].tolist()
        if "tools" in chats:
            conversations = frame[chats].to_dict("records")
        columns = chat_frame(conversations, tokenizer, labels=frame.drop(columns=chats), **chat_options)
        return cls(columns, source=str(path))

    @classmethod
    def from_chats(
        cls,
        conversations: Iterable[Any],
        tokenizer: Any,
        *,
        labels: Labels | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Any] | None = None,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> PromptTable:
        """Make a table of conversations, one in a row; the tokenizer's chat template writes the prompts.

        The template writes all special tokens, so the tokenizer adds none: the ids are those of
        `tokenizer.apply_chat_template(messages)`. The column `add_special_tokens` says so, also in a saved table.

        The positions are `<role>_first` and `<role>_last` of the last turn of each role (`user_last`,
        `assistant_first`), `turn<n>_first` and `turn<n>_last` of message n counted from 0, and `tool_call_first` and
        `tool_call_last`. They are in the content, not in the special tokens around it, and follow what the template
        does to it. A system text that the template adds by itself is in the prompt and has no name. A turn that
        only calls tools has the positions of its calls.

        Args:
            conversations: a list or iterator of conversations. Each is a list of messages `{"role": ..., "content":
                ...}`, or `{"messages": [...], "tools": [...]}`.
            tokenizer: a Hugging Face tokenizer with a chat template.
            labels: other columns, one value for each conversation: labels, `prompt_id`, `entity`, `entity_id` and
                `answer`.
            add_generation_prompt: end with the tokens that start the turn of the assistant.
            continue_final_message: end within the last turn, without the tokens that close it.
            tools: tools of all conversations, as JSON schemas or functions.
            chat_template: another template, or the name of one of the tokenizer's.
            template_options: further arguments of the template, such as `{"enable_thinking": False}`.

        Raises:
            InputError: there is no template; it fails, for example at a role that it does not know; it leaves out a
                turn or a tool call; or a conversation is empty or not valid.

        Example:
            >>> class Tokenizer:
            ...     chat_template = "..."
            ...     convert_tokens_to_ids = __call__ = None
            ...     def apply_chat_template(self, messages, **options):
            ...         return "".join(f"<{m['role']}>{m['content'].strip()}</s>" for m in messages)
            >>> table = PromptTable.from_chats([[{"role": "user", "content": " Hi! "}]], Tokenizer())
            >>> table.prompts, table.spans["user"].tolist()
            (['<user>Hi!</s>'], [[6, 9]])
        """
        columns = chat_frame(
            conversations,
            tokenizer,
            labels=labels,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template=chat_template,
            template_options=template_options,
        )
        return cls(columns, source="chats")

    @classmethod
    def from_documents(
        cls,
        texts: Iterable[str],
        tokenizer: Any,
        *,
        window: int | None = None,
        stride: int | None = None,
        labels: Labels | None = None,
    ) -> PromptTable:
        """Make a table of long documents, cut into windows of tokens; one window in a row.

        A window starts and ends between words where it can, up to an eighth of its length earlier, so that its tokens
        are those of the document. It never has more than `window` tokens. Windows of one document have the same
        `entity_id`, so that no split separates them. Labels of the rows lead back into the document:

        - document, window: number of the document, and of the window in it.
        - document_offset: character of the document at which the prompt starts. With the characters of a token in the
          prompt (`table.tokenize(tokenizer).offsets`) it gives those in the document, exactly.
        - document_token: number of the first token of the window among those of the document.

        The span `new` is the part of a window that is not in the one before it. `within="new"` of the methods `at_...`
        takes no place twice.

        Args:
            texts: a list or iterator of documents. An iterator is read once, so the documents need not fit into memory
                together with the windows.
            tokenizer: a fast Hugging Face tokenizer.
            window: largest number of tokens of a window, with the special tokens that the tokenizer adds. None takes
                whole documents.
            stride: tokens from the start of a window to the start of the next. None starts where the last one ends.
            labels: other columns, one value for each document; `entity_id` groups documents.

        Raises:
            InputError: a document is empty, or without `window` longer than the context that the tokenizer names; or
                the stride leaves a gap.
        """
        return cls(document_frame(texts, tokenizer, window=window, stride=stride, labels=labels), source="documents")

    def __len__(self) -> int:
        return len(self._content["prompt"])

    @property
    def prompts(self) -> list[str]:
        """Text of the prompts, by row."""
        return [str(text) for text in self._content["prompt"]]

    @property
    def frame(self) -> pd.DataFrame:
        """A copy as a pandas DataFrame: normalised columns, spans as `<name>_start`, `<name>_end`."""
        columns = dict(self._content)
        for name, span in self.spans.items():
            columns[f"{name}_start"], columns[f"{name}_end"] = span[:, 0], span[:, 1]
        frame = pd.DataFrame({name: pd.Series(values) for name, values in columns.items()})
        for name, order in self.label_orders.items():
            frame[name] = _ordered(frame[name], order)
        return frame

    def labels(self) -> dict[str, NDArray[Any]]:
        """Return the coordinates of the store's entity dim.

        Returns:
            Copies of shape (rows,): 'entity' (the prompt_id), 'entity_id', 'prompt',
            'entity_text' and 'answer' if the table has these columns, then every label.
            Text is an object array of str; other labels keep their dtype.
        """
        content = self._content
        coords = {"entity": content["prompt_id"], "entity_id": content["entity_id"], "prompt": content["prompt"]}
        if "entity" in content:
            coords["entity_text"] = content["entity"]
        if "answer" in content:
            coords["answer"] = content["answer"]
        coords.update({name: content[name] for name in self.label_names})
        return {name: values.copy() for name, values in coords.items()}

    def repeated_prompts(self) -> NDArray[np.int64] | None:
        """Return the first row with the same prompt and answer, by row; None if all rows differ.

        Returns:
            int64 array of shape (rows,), or None.
        """
        first: dict[Any, int] = {}
        prompts, answers = self._content["prompt"].tolist(), self._content.get("answer")
        texts = prompts if answers is None else list(zip(prompts, answers.tolist(), strict=True))
        rows = np.array([first.setdefault(text, row) for row, text in enumerate(texts)], dtype=np.int64)
        return None if len(first) == len(rows) else rows

    def with_numbered_ids(self) -> PromptTable:
        """Return the same table with rows named by their numbers, r000000, r000001, ...

        Stores of older versions have these names where the table has no `prompt_id`.
        """
        other = copy.copy(self)
        content = dict(self._content)
        content["prompt_id"] = numbered_ids(len(self))
        if content["entity_id"].tolist() == self._content["prompt_id"].tolist():
            content["entity_id"] = content["prompt_id"].copy()
        other._content = content
        return other

    def tokenize(
        self,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        prepend_bos: bool | None = None,
        add_special_tokens: bool | None = None,
        answers: Sequence[str] | None = None,
        offsets: bool = True,
    ) -> TokenizedPrompts:
        """Tokenise all rows: the ids of a prompt are `tokenizer(prompt).input_ids`.

        Args:
            tokenizer: a Hugging Face tokenizer.
            max_length: the model's context length in tokens, for prompt and answer together.
            prepend_bos: True for one BOS token in front of every prompt, False for none, None for what the tokenizer
                adds.
            add_special_tokens: whether the tokenizer adds its special tokens; None for what the table says. Tables of
                chats say False, because the chat template has written them.
            answers: other answers than those of the table, one per row.
            offsets: whether to keep the characters of each token, which positions in the text need.

        Raises:
            InputError: a prompt without tokens, or longer than the context; or the tokenizer has no BOS token.
        """
        if answers is None and "answer" in self._content:
            answers = [str(text) for text in self._content["answer"]]
        return tokenize(
            self.prompts,
            answers,
            tokenizer,
            max_length=max_length,
            source=self.source,
            prepend_bos=prepend_bos,
            add_special_tokens=self.add_special_tokens if add_special_tokens is None else add_special_tokens,
            offsets=offsets,
        )

    def __repr__(self) -> str:
        entities = len(set(self._content["entity_id"].tolist()))
        labels = ", ".join(f"{name} ({self._dtype_name(name)})" for name in self.label_names) or "none"
        spans = ", ".join(self.spans) or "none"
        return f"PromptTable({len(self)} prompts about {entities} entities; labels: {labels}; spans: {spans})"

    def _repr_html_(self) -> str:
        # to_html escapes every cell and column name
        body = self.frame.head(5).to_html(index=False, max_cols=12, notebook=True)
        more = f"<p>{len(self) - 5} more rows</p>" if len(self) > 5 else ""
        return f"<p>{html.escape(repr(self))}</p>{body}{more}"

    def _dtype_name(self, name: str) -> str:
        dtype = self._content[name].dtype
        return "text" if dtype.hasobject else str(dtype)


def _ordered(labels: pd.Series[Any], order: Sequence[str]) -> pd.Series[Any]:
    """Return labels as an ordered categorical column of their own type."""
    value_of = {str(value): value for value in labels.tolist()}
    categories = [value_of.get(text, text) for text in order]
    if labels.dtype != object and any(text not in value_of for text in order):
        categories = pd.Series(order, dtype=object).astype(labels.dtype).tolist()  # a number that no row has
    return pd.Series(pd.Categorical(labels, categories=categories, ordered=True), index=labels.index)


def _check_columns(frame: pd.DataFrame, source: str) -> dict[str, pd.Series[Any]]:
    """Return the columns by name, with rows counted from 0.

    Raises:
        InputError: no column 'prompt', no rows, or an invalid column name.
    """
    names = list(frame.columns)
    check_distinct(names, "column", source)  # before ' prompt' is reported as a missing column
    if "prompt" not in names:
        hint = suggest("prompt", [str(name) for name in names]) if names else "the table has no columns"
        raise InputError(
            f"{source}: no column 'prompt'; {hint}. Rename the column that holds the prompts: "
            "df.rename(columns={...: 'prompt'})"
        )
    check_names(names, source)
    if not len(frame):
        raise InputError(f"{source}: the table has columns but no rows; nothing would be recorded")
    frame = frame.reset_index(drop=True)
    return {name: frame[name] for name in names}
