"""Collation of training texts: padded, one text a row, or packed, several texts a row without padding between them.

Packed texts do not see each other. The attention mask is block-diagonal, position ids restart at every text, and no
text predicts the first token of the next one. The loss of a text is therefore the same in both layouts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Example = Mapping[str, Sequence[int]]

PACKED_TOKENS = 256  # about the length of a packed row; the cost of attention grows with it
IGNORED = -100  # label of a token without a loss


def collate_padded(examples: Sequence[Example], pad: int) -> dict[str, Tensor]:
    """Collate one text a row, padded on the right.

    Args:
        examples: input_ids and labels of every text.
        pad: the id of padding.

    Returns:
        input_ids, attention_mask and labels: int64 arrays of shape (texts, longest text).
    """
    tokens, labels = ([torch.tensor(list(row[key])) for row in examples] for key in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(tokens, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def balance_rows(lengths: Sequence[int], tokens: int = PACKED_TOKENS) -> list[list[int]]:
    """Distribute texts over rows of nearly equal length, with the number of rows that needs the least padding.

    Args:
        lengths: tokens of every text.
        tokens: about the length of a row: rows are half to one and a half times as long.

    Returns:
        The texts of every row.

    Example:
        >>> balance_rows([5, 3, 4, 4], tokens=8)
        [[0, 1], [2, 3]]
    """
    total = sum(lengths)
    fewest, most = max(1, math.ceil(total / (1.5 * tokens))), max(1, int(total / (0.5 * tokens)))
    layouts = [_fill_rows(lengths, count) for count in range(most, fewest - 1, -1)]
    return min(layouts, key=lambda rows: len(rows) * max(sum(lengths[text] for text in row) for row in rows))


def _fill_rows(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Put every text, the longest first, into the shortest of `count` rows; leave out empty rows."""
    rows: list[list[int]] = [[] for _ in range(count)]
    size = [0] * count
    for text in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = size.index(min(size))
        rows[row].append(text)
        size[row] += lengths[text]
    return [row for row in rows if row]


def collate_packed(examples: Sequence[Example], pad: int, tokens: int = PACKED_TOKENS) -> dict[str, Tensor]:
    """Collate several texts a row; only the ends of shorter rows are padded.

    Args:
        examples: input_ids and labels of every text.
        pad: the id of padding.
        tokens: about the length of a row.

    Returns:
        input_ids, position_ids and labels: int64 arrays of shape (rows, width). attention_mask: float32 array of shape
        (rows, 1, width, width), added to the attention scores: 0 for earlier tokens of the same text, the lowest
        number elsewhere.
    """
    rows = balance_rows([len(row["input_ids"]) for row in examples], tokens)
    width = max(sum(len(examples[text]["input_ids"]) for text in row) for row in rows)
    shape = (len(rows), width)
    ids, labels = torch.full(shape, pad), torch.full(shape, IGNORED)
    positions, text_of = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for number, row in enumerate(rows):
        start = 0
        for text in row:
            end = start + len(examples[text]["input_ids"])
            ids[number, start:end] = torch.tensor(list(examples[text]["input_ids"]))
            labels[number, start + 1 : end] = torch.tensor(list(examples[text]["labels"])[1:])
            positions[number, start:end] = torch.arange(end - start)
            text_of[number, start:end] = text
            start = end
    same_text = text_of[:, :, None] == text_of[:, None, :]  # padding attends to padding only
    visible = same_text & torch.ones(width, width, dtype=torch.bool).tril()
    lowest = torch.finfo(torch.float32).min
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": torch.where(visible, 0.0, lowest)[:, None],
        "labels": labels,
    }
