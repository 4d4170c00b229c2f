"""PromptTable: the prompts that are recorded, with their labels, checked before anything runs.

What lives here: what the columns of a prompt table mean and which tables are
refused. What does not: file formats (`table_files.py`), the rules for one
column (`columns.py`), tokenisation (`tokens.py`) and token positions
(`positions.py`).
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import as_text, check_names, label_values, name_rows
from stratalens.plugin.prompts.files import read_frame
from stratalens.plugin.prompts.spans import entity_spans, span_columns
from stratalens.plugin.prompts.tokenization import TokenizedPrompts, tokenize
from stratalens.store.errors import InputError, suggest

__all__ = ["PromptTable", "TokenizedPrompts"]


SPECIAL = ("prompt", "prompt_id", "entity", "entity_id", "answer")


class PromptTable:
    """Prompts to be recorded, one row each, with labels; immutable and valid once made.

    Columns: `prompt` (required); `prompt_id` (unique name of the row, default
    r000000, r000001, ...); `entity` (text that occurs in the prompt, for the
    positions entity_first and entity_last; '' or missing where a row has none,
    for which `entity_id` is needed); `entity_id` (what rows are grouped by,
    default the row's entity; without either column every prompt counts as an
    entity of its own); `answer` (run behind the prompt for `answer_loss`);
    `<name>_start` and `<name>_end` (characters [start, end) of the prompt, for
    the positions `<name>_first` and `<name>_last`; both missing where a row has
    no such span); every other column is a label and keeps its dtype.

    An entity that occurs several times in its prompt is taken at its last
    occurrence as a whole word (the model has read most about it there), or at
    its last occurrence at all. `entity_start` and `entity_end` name another.

    >>> import pandas as pd
    >>> table = PromptTable.from_dataframe(
    ...     pd.DataFrame({"prompt": ["Who is Ann?", "Who is Bo?"], "entity": ["Ann", "Bo"], "group": [1, 2]})
    ... )
    >>> len(table), table.label_names, table.spans["entity"].tolist()
    (2, ('group',), [[7, 10], [7, 9]])
    >>> table.labels()["entity"].tolist()
    ['r000000', 'r000001']
    """

    def __init__(self, frame: pd.DataFrame, source: str = "prompt table") -> None:
        self.source = source
        columns = _checked_columns(frame, source)
        prompts = as_text(columns["prompt"], source, required=True)
        blank = [row for row, text in enumerate(prompts.tolist()) if not text.strip()]
        if blank:
            raise InputError(f"{source}: the prompt of {name_rows(blank)} is empty; fill or drop these rows")
        given = {name: as_text(columns[name], source, required=False) for name in SPECIAL if name in columns}
        ids = _prompt_ids(columns, len(prompts), source)
        entities = given.get("entity")
        spans, used = span_columns(columns, prompts, source)
        if entities is not None:
            spans["entity"] = entity_spans(prompts, entities, spans.get("entity"), source)
        self.spans: Mapping[str, NDArray[np.int64]] = spans
        """Character spans [start, end) by name, int64 of shape (rows, 2), -1 where a row has none."""
        content: dict[str, NDArray[Any]] = {"prompt": prompts, "prompt_id": ids}
        if entities is not None:
            content["entity"] = entities
        content["entity_id"] = _entity_ids(columns, entities, ids, source)
        self.names_entities: bool = "entity_id" in columns or bool(entities is not None and any(entities.tolist()))
        """Whether the table says which rows are about the same thing; otherwise each is about a thing of its own."""
        self.warned_about_entities = False
        """Whether a capture has warned that the table does not name entities; it warns once for each table."""
        if "answer" in given:
            content["answer"] = given["answer"]
        self.label_names: tuple[str, ...] = tuple(n for n in columns if n not in SPECIAL and n not in used)
        """Columns that are labels, in the table's order."""
        content.update({name: label_values(columns[name], source) for name in self.label_names})
        self._content = content

    @classmethod
    def from_dataframe(cls, frame: pd.DataFrame) -> PromptTable:
        """A table from a pandas frame; its index is ignored, rows are counted from 0.

        Raises:
            InputError: what is wrong, in which rows, and what mends it.
        """
        if not isinstance(frame, pd.DataFrame):
            raise InputError(
                f"from_dataframe takes a pandas DataFrame, not {type(frame).__name__}: "
                "PromptTable.from_dataframe(pd.DataFrame({'prompt': [...]})), or PromptTable.read(path)"
            )
        return cls(frame)

    @classmethod
    def read(cls, path: str | Path) -> PromptTable:
        """A table from a csv, tsv, jsonl or parquet file (UTF-8).

        In csv files only an empty field is missing: NA, null and None are text.

        Raises:
            InputError: what is wrong, in which line or row, and what mends it.
        """
        return cls(read_frame(path), source=str(path))

    def __len__(self) -> int:
        return len(self._content["prompt"])

    @property
    def prompts(self) -> list[str]:
        """The prompts' text, by row."""
        return [str(text) for text in self._content["prompt"]]

    @property
    def frame(self) -> pd.DataFrame:
        """A copy as a pandas frame: every column normalised, spans as `<name>_start`, `<name>_end`."""
        columns = dict(self._content)
        for name, span in self.spans.items():
            columns[f"{name}_start"], columns[f"{name}_end"] = span[:, 0], span[:, 1]
        return pd.DataFrame({name: pd.Series(values) for name, values in columns.items()})

    def labels(self) -> dict[str, NDArray[Any]]:
        """Coordinates of the store's entity dim, each of shape (rows,).

        'entity' (the prompt_id), 'entity_id', 'prompt', where given
        'entity_text' and 'answer', then every label. Text is an object array
        of str; other labels keep their dtype.
        """
        content = self._content
        coords = {"entity": content["prompt_id"], "entity_id": content["entity_id"], "prompt": content["prompt"]}
        if "entity" in content:
            coords["entity_text"] = content["entity"]
        if "answer" in content:
            coords["answer"] = content["answer"]
        coords.update({name: content[name] for name in self.label_names})
        return {name: values.copy() for name, values in coords.items()}

    def tokenize(self, tokenizer: Any, *, max_length: int | None = None) -> TokenizedPrompts:
        """Token ids of all rows, with the tokenizer's own special tokens.

        Args:
            tokenizer: a Hugging Face tokenizer.
            max_length: the model's context length in tokens (prompt and answer).

        Raises:
            InputError: a prompt without tokens, or longer than the context.
        """
        answers = self._content.get("answer")
        texts = None if answers is None else [str(text) for text in answers]
        return tokenize(self.prompts, texts, tokenizer, max_length=max_length, source=self.source)

    def __repr__(self) -> str:
        entities = len(set(self._content["entity_id"].tolist()))
        labels = ", ".join(f"{name} ({self._dtype(name)})" for name in self.label_names) or "none"
        spans = ", ".join(self.spans) or "none"
        return f"PromptTable({len(self)} prompts about {entities} entities; labels: {labels}; spans: {spans})"

    def _repr_html_(self) -> str:
        # to_html escapes every cell and column name
        body = self.frame.head(5).to_html(index=False, max_cols=12, notebook=True)
        more = f"<p>{len(self) - 5} more rows</p>" if len(self) > 5 else ""
        return f"<p>{html.escape(repr(self))}</p>{body}{more}"

    def _dtype(self, name: str) -> str:
        dtype = self._content[name].dtype
        return "text" if dtype.hasobject else str(dtype)


def _checked_columns(frame: pd.DataFrame, source: str) -> dict[str, pd.Series[Any]]:
    names = list(frame.columns)
    if "prompt" not in names:
        found = suggest("prompt", [str(name) for name in names]) if names else "the table has no columns"
        raise InputError(
            f"{source}: no column 'prompt'; {found}. Rename the column that holds the prompts: "
            "df.rename(columns={...: 'prompt'})"
        )
    check_names(names, source)
    if not len(frame):
        raise InputError(f"{source}: the table has columns but no rows; nothing would be recorded")
    frame = frame.reset_index(drop=True)
    return {name: frame[name] for name in names}


def _prompt_ids(columns: Mapping[str, pd.Series[Any]], count: int, source: str) -> NDArray[Any]:
    if "prompt_id" not in columns:
        return np.array([f"r{row:06d}" for row in range(count)], dtype=object)
    ids = as_text(columns["prompt_id"], source, required=True)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(ids.tolist()):
        rows.setdefault(name, []).append(row)
    if "" in rows:
        raise InputError(f"{source}: prompt_id is empty in {name_rows(rows[''])}; name them, or drop the column")
    repeated = {name: where for name, where in rows.items() if len(where) > 1}
    if repeated:
        shown = "; ".join(f"{name!r} in {name_rows(where)}" for name, where in list(repeated.items())[:5])
        more = f"; and {len(repeated) - 5} more" if len(repeated) > 5 else ""
        raise InputError(
            f"{source}: prompt_id must be unique, but {shown}{more}; rename them, or drop the column to have the "
            "rows numbered (rows about the same thing share an entity_id, not a prompt_id)"
        )
    return ids


def _entity_ids(
    columns: Mapping[str, pd.Series[Any]], entities: NDArray[Any] | None, ids: NDArray[Any], source: str
) -> NDArray[Any]:
    if "entity_id" in columns:
        given = as_text(columns["entity_id"], source, required=True)
        blank = [row for row, name in enumerate(given.tolist()) if not name]
        if blank:
            raise InputError(
                f"{source}: entity_id is empty in {name_rows(blank)}; rows without one would count as one entity. "
                "Name each, or drop the column"
            )
        return given
    blank = [] if entities is None else [row for row, text in enumerate(entities.tolist()) if not text]
    if entities is None or len(blank) == len(ids):
        return ids.copy()
    if blank:
        raise InputError(
            f"{source}: {name_rows(blank)} {'has' if len(blank) == 1 else 'have'} no entity and others do: without a "
            "name, rows about the same thing would count as different ones and could be on both sides of a split. "
            "Give every row its entity, or add a column entity_id that says which rows belong together (the entity "
            "may then be missing)"
        )
    return np.array(entities, dtype=object)
