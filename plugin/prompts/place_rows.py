"""Methods of a prompt table that make one row of each place of one kind.

A row with several places becomes several rows with the same prompt. So each place has labels of its own, every analysis
works on places as on other rows, and splits by entity separate no prompt from itself. Captures run equal prompts once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import check_names
from stratalens.plugin.prompts.places import (
    Occurrence,
    Places,
    chosen_tokens,
    pattern_places,
    sentence_end_places,
    spans_of_tokens,
    token_offsets,
    token_places,
)
from stratalens.plugin.prompts.spans import check_span
from stratalens.store.errors import InputError, suggest


class PlaceRows:
    """The methods `at_...` of PromptTable.

    Attributes:
        source: name of the table in messages.
        spans: name -> int64 array of shape (rows, 2), characters [start, end), -1 in rows without the span.
        label_names: columns that are labels.
        has_default_ids: whether the rows have the default names.
        names_entities: whether the table says which rows are about the same entity.
        add_special_tokens: whether the tokenizer adds its special tokens to the prompts.
    """

    source: str
    spans: Mapping[str, NDArray[np.int64]]
    label_names: tuple[str, ...]
    has_default_ids: bool
    names_entities: bool
    add_special_tokens: bool
    _content: dict[str, NDArray[Any]]

    def at_pattern(
        self,
        pattern: str | re.Pattern[str],
        *,
        name: str = "match",
        group: int | str = 0,
        occurrence: Occurrence = "all",
        within: str | None = None,
        at_most: int | None = None,
        missing: Literal["raise", "drop"] = "raise",
    ) -> Self:
        r"""Return a table with one row for each match of a regular expression, for `<name>_first` and `<name>_last`.

        A row with several matches becomes several rows with the same prompt; `capture` runs it once. Each row has the
        labels `<name>_number` (from 0) and `<name>_text`, and the rows of a prompt have one `entity_id`.

        Args:
            pattern: the regular expression, compiled or not.
            name: name of the positions.
            group: group of the expression, by number or name; 0 is the whole match.
            occurrence: "all", or one match of a row: "first", "last" or a number from 0, negative from the end.
            within: name of a span; only matches inside it count, for example "assistant" in a table of chats.
            at_most: largest number of matches of a row; more are an error. None allows any.
            missing: "raise" refuses rows without a match, "drop" leaves them out.

        Raises:
            InputError: the expression is not valid, matches nothing, or more than `at_most` times.

        Example:
            >>> import pandas as pd
            >>> from stratalens import PromptTable
            >>> table = PromptTable.from_dataframe(pd.DataFrame({"prompt": ["2 + 31 =", "7 - 5 ="]}))
            >>> digits = table.at_pattern(r"\d+", name="number")
            >>> digits.labels()["number_text"].tolist(), digits.spans["number"].tolist()
            (['2', '31', '7', '5'], [[0, 1], [4, 6], [0, 1], [4, 5]])
        """
        places = pattern_places(self._content["prompt"].tolist(), pattern, group)
        return self._at(places, name, f"match of {pattern!r}", occurrence, within, at_most, missing)

    def at_spans(
        self,
        spans: Sequence[str] | Sequence[Sequence[tuple[int, int]]],
        *,
        name: str = "span",
        occurrence: Occurrence = "all",
        within: str | None = None,
        at_most: int | None = None,
        missing: Literal["raise", "drop"] = "raise",
    ) -> Self:
        """Return a table with one row for each span; arguments and result are those of `at_pattern`.

        Args:
            spans: names of spans of the table, such as ["turn1", "turn3"], or for each row a list of (start, end) in
                characters. Named spans also give the label `<name>_of`.
            name: name of the positions.
            occurrence: as for `at_pattern`.
            within: as for `at_pattern`.
            at_most: as for `at_pattern`.
            missing: as for `at_pattern`.

        Raises:
            InputError: an unknown span, a list of another length than the table, or a span outside its prompt.
        """
        prompts = self._content["prompt"]
        if spans and all(isinstance(span, str) for span in spans):
            places, subject = self._named_spans([str(span) for span in spans]), f"span of {', '.join(map(str, spans))}"
        elif len(spans) != len(prompts):
            raise InputError(f"{self.source}: spans has {len(spans)} lists, but the table has {len(prompts)} rows")
        else:
            listed: list[Any] = [list(row) for row in spans]
            places, subject = Places.of_rows(listed), f"span {name!r}"
            check_span(name, places.spans, prompts[places.rows], self.source, rows=places.rows)
        return self._at(places, name, subject, occurrence, within, at_most, missing)

    def at_every(
        self,
        every: int,
        tokenizer: Any,
        *,
        name: str = "every",
        start: int = 0,
        within: str | None = None,
        at_most: int | None = None,
    ) -> Self:
        """Return a table with one row for every n-th token of the prompts, for `<name>_last`; see `at_pattern`.

        Args:
            every: tokens from one place to the next.
            tokenizer: a fast Hugging Face tokenizer.
            name: name of the positions.
            start: number of the first token, from 0, without special tokens that the tokenizer adds.
            within: name of a span; only tokens inside it count.
            at_most: largest number of tokens of a row; more are an error.

        Raises:
            InputError: a number is not valid, or the tokenizer does not report characters.
        """
        places = token_places(self._content["prompt"].tolist(), tokenizer, every, start)
        return self._at(places, name, f"token number {start} + k * {every}", "all", within, at_most, "drop")

    def at_tokens(
        self,
        chosen: Sequence[Any],
        tokenizer: Any,
        *,
        name: str = "chosen",
        within: str | None = None,
        at_most: int | None = None,
        missing: Literal["raise", "drop"] = "drop",
    ) -> Self:
        """Return a table with one row for each chosen token, for `<name>_last`; see `at_pattern`.

        `stratalens.surprisal` gives the surprisal of each token, so that
        `table.at_tokens([row > 8 for row in surprisal], tokenizer)` takes the tokens above 8 nats.

        Args:
            chosen: for each row a bool array of shape (tokens,), along `table.tokenize(tokenizer).ids[row]`. Special
                tokens that the tokenizer adds are left out.
            tokenizer: a fast Hugging Face tokenizer.
            name: name of the positions.
            within: name of a span; only tokens inside it count.
            at_most: largest number of tokens of a row; more are an error.
            missing: "raise" refuses rows without a chosen token, "drop" leaves them out.

        Raises:
            InputError: an array has another length than its row has tokens, or no token is chosen.
        """
        prompts = self._content["prompt"].tolist()
        offsets = token_offsets(prompts, tokenizer, special=self.add_special_tokens)
        places = spans_of_tokens(offsets, chosen_tokens(chosen, [len(row) for row in offsets], self.source))
        return self._at(places, name, "chosen token", "all", within, at_most, missing)

    def at_sentence_ends(
        self,
        *,
        name: str = "sentence_end",
        occurrence: Occurrence = "all",
        within: str | None = None,
        at_most: int | None = None,
        missing: Literal["raise", "drop"] = "raise",
    ) -> Self:
        """Return a table with one row for the end of each sentence; arguments and result are those of `at_pattern`.

        A sentence ends with . ! ? or an ellipsis before white space or the end of the prompt, or with a mark of a
        script without spaces. Closing quotes and brackets belong to the end. Abbreviations such as "e.g. this" count as
        ends.

        Args:
            name: name of the positions.
            occurrence: as for `at_pattern`.
            within: as for `at_pattern`.
            at_most: as for `at_pattern`.
            missing: as for `at_pattern`.

        Raises:
            InputError: no row has a sentence end, or a row has none or too many.
        """
        places = sentence_end_places(self._content["prompt"].tolist())
        return self._at(places, name, "end of a sentence", occurrence, within, at_most, missing)

    def _named_spans(self, names: Sequence[str]) -> Places:
        """Return the spans with these names, in the order of their characters."""
        for span in names:
            if span not in self.spans:
                raise InputError(f"{self.source}: no span {span!r}: {suggest(span, self.spans)}")
        spans = np.stack([self.spans[span] for span in names], axis=1)
        rows, kinds = np.nonzero(spans[:, :, 0] >= 0)
        order = np.lexsort((spans[rows, kinds, 0], rows))
        rows, kinds = rows[order], kinds[order]
        return Places(rows, spans[rows, kinds], np.array(names, dtype=object)[kinds])

    def _at(
        self,
        places: Places,
        name: str,
        subject: str,
        occurrence: Occurrence,
        within: str | None,
        at_most: int | None,
        missing: str,
    ) -> Self:
        """Return a table with one row for each place."""
        if within is not None:
            if within not in self.spans:
                raise InputError(f"within={within!r}: {suggest(within, self.spans)}")
            places, subject = places.inside(self.spans[within]), f"{subject} within {within!r}"
        rows = len(self._content["prompt"])
        places = places.only(occurrence, rows)
        places.check(rows, self.source, subject, at_most=at_most, missing=missing)
        content = {column: values[places.rows] for column, values in self._content.items()}
        numbers, edges = places.numbers(), places.spans.tolist()
        texts = [prompt[start:end] for prompt, (start, end) in zip(content["prompt"], edges, strict=True)]
        labels: dict[str, NDArray[Any]] = {f"{name}_number": numbers, f"{name}_text": np.array(texts, dtype=object)}
        if places.kinds is not None:
            labels[f"{name}_of"] = places.kinds
        self._check_new(name, list(labels))
        pairs = zip(content["prompt_id"], numbers, strict=True)
        content["prompt_id"] = np.array([f"{row}.{name}{number}" for row, number in pairs], dtype=object)
        table = copy.copy(self)
        table._content = {**content, **labels}
        table.label_names = (*self.label_names, *labels)
        table.has_default_ids, table.names_entities = False, True
        table.spans = {**{span: values[places.rows] for span, values in self.spans.items()}, name: places.spans}
        return table

    def _check_new(self, name: str, labels: Sequence[str]) -> None:
        """Check that positions can have a name, and that its columns are new."""
        columns = [*labels, f"{name}_start", f"{name}_end"]
        check_names(columns, self.source)
        used = [column for column in columns if column in self._content]
        if used or name in self.spans or name == "entity":
            raise InputError(
                f"{self.source}: the name {name!r} of the positions is in use"
                f"{f' by the column {used[0]!r}' if used else ''}; choose another one with name="
            )
