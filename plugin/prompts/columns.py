"""Rules for one column of a prompt table: valid names, and values as NumPy arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratalens.store.errors import InputError, quote
from stratalens.store.format.label_codec import check_utf8
from stratalens.store.format.schema import RESERVED_NAMES


def name_rows(rows: Iterable[int], limit: int = 8) -> str:
    """Name rows in a message; rows are counted from 0.

    >>> name_rows([3]), name_rows([3, 7]), name_rows(range(10), limit=2)
    ('row 3', 'rows 3, 7', 'rows 0, 1 and 8 more')
    """
    listed = [int(row) for row in rows]
    shown = ", ".join(str(row) for row in listed[:limit])
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return f"row{'s' if len(listed) > 1 else ''} {shown}{more}"


def check_names(names: Sequence[Any], source: str) -> None:
    """Raise InputError unless every column name is valid as the name of a label.

    A label's name is the name of an array in the store, and so a component of a
    path: no slashes, no control characters, no leading dot or double underscore.
    Names of sites without a short name are refused later, when the store is created.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"{source}: column name {name!r} is not a text; give every column a name: df.columns = [...]"
            )
        unsafe = "/" in name or "\\" in name or name.startswith((".", "__")) or not name.isprintable()
        if unsafe or name == "zarr.json":
            raise InputError(
                f"{source}: column name {name!r} cannot name an array of the store (no slashes, no control "
                f"characters, no leading '.' or '__'); rename it: df.rename(columns={{{name!r}: ...}})"
            )
        if name in RESERVED_NAMES:
            raise InputError(
                f"{source}: column {name!r} has the name of a dim, coordinate or variable of the store "
                f"(such as stage, layer, token, loss, resid_post); rename it: "
                f"df.rename(columns={{{name!r}: 'my_{name}'}})"
            )


Labels = pd.DataFrame | Mapping[str, Sequence[Any]]


def with_labels(
    columns: Mapping[str, Any],
    labels: Labels | None,
    rows: int,
    source: str,
    unit: str,
    repeat: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Return columns of a table with the labels of the caller.

    Args:
        columns: columns by name.
        labels: label columns, one value for each conversation or document.
        rows: number of conversations or documents.
        source: name of the function, for messages.
        unit: what one value belongs to, in the plural.
        repeat: int64 array, number of the conversation or document of each row; None where they are the rows.

    Raises:
        InputError: another number of values, or a name that the table needs for itself.
    """
    if labels is None:
        return dict(columns)
    frame = labels if isinstance(labels, pd.DataFrame) else None
    if frame is None:
        if not isinstance(labels, Mapping):
            raise InputError(
                f"{source}: labels is {type(labels).__name__}; pass a DataFrame, or a dict of columns "
                "{'label': [...]}"
            )
        lengths = {str(name): len(values) for name, values in labels.items()}
        wrong = {name: length for name, length in lengths.items() if length != rows}
        if wrong:
            name, length = next(iter(wrong.items()))
            raise InputError(f"{source}: label {name!r} has {length} values, but there are {rows} {unit}")
        frame = pd.DataFrame({name: pd.Series(values) for name, values in labels.items()})
    if len(frame.columns) and len(frame) != rows:
        raise InputError(f"{source}: labels has {len(frame)} rows, but there are {rows} {unit}")
    frame = frame.reset_index(drop=True)
    taken = [str(name) for name in frame.columns if name in columns]
    if taken:
        raise InputError(
            f"{source}: the label column {taken[0]!r} has the name of a column that {source} writes; rename it: "
            f"labels.rename(columns={{{taken[0]!r}: 'my_{taken[0]}'}})"
        )
    if repeat is not None:
        frame = frame.iloc[repeat].reset_index(drop=True)
    return {**columns, **{name: frame[name] for name in frame.columns}}


LONGEST = 10**999  # Python writes no number of more than 4,300 digits
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_CONVERTERS: dict[str, Callable[[str], Any]] = {"Int64": int, "Float64": float, "boolean": lambda text: text == "True"}


def typed_values(column: pd.Series[Any]) -> pd.Series[Any]:
    """Convert a column of text to integers, floats or booleans where that loses nothing.

    Every value must be written as Python writes the number, so that the number gives the same text again: 7, -2, 0.5
    and True become values; 007, +5, 1e3, 1_000 and true stay text. Whole numbers with a point, such as 1.0, are floats
    only where another value of the column has a fraction. In a column of floats, 'nan' in any case is a missing value.

    Args:
        column: text, one value per row; pandas.NA is missing.

    Returns:
        The column with dtype Int64, Float64 or boolean, or the column itself. Missing values stay missing.

    Example:
        >>> [str(typed_values(pd.Series(texts, dtype="string")).dtype) for texts in (["7", "10"], ["07", "10"])]
        ['Int64', 'string']
    """
    texts = [str(text) for text in column.dropna().unique()]
    dtype = _lossless_dtype(texts)
    if dtype is None:
        return column
    values: dict[Any, Any] = {text: _CONVERTERS[dtype](text) for text in texts}
    present = column.notna().to_numpy(dtype=bool)
    converted = [values[text] if there else None for text, there in zip(column.tolist(), present, strict=True)]
    return pd.Series(converted, dtype=dtype, index=column.index, name=column.name)


def _lossless_dtype(texts: Sequence[str]) -> str | None:
    """Choose the dtype that all texts have, or None for text."""
    if not texts:
        return None
    if all(_INTEGER.fullmatch(text) and abs(int(text)) < 2**63 for text in texts):
        return "Int64"
    if set(texts) <= {"True", "False"}:
        return "boolean"
    numbers = [text for text in texts if text.lower() != "nan"]
    fractions = [_is_plain_float(text) and not float(text).is_integer() for text in numbers]
    return "Float64" if any(fractions) and all(map(_is_plain_float, numbers)) else None


def _is_plain_float(text: str) -> bool:
    """Return whether a text is the shortest form of a finite float."""
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and repr(value) == text


def missing_rows(column: pd.Series[Any]) -> list[int]:
    """Return the rows, counted from 0, whose value is None, NaN, NaT or pandas.NA."""
    return [int(row) for row in np.flatnonzero(column.isna().to_numpy(dtype=bool))]


def text_values(column: pd.Series[Any], source: str, *, required: bool) -> NDArray[Any]:
    """Convert a text column to an object array of str.

    Integers become their decimal digits, because an id is often a number. Other
    types are refused, because they have more than one text form.

    Args:
        column: values of one column, one per row.
        source: name of the table, for messages.
        required: refuse missing values; otherwise they become ''.

    Returns:
        Object array of shape (rows,).

    Raises:
        InputError: missing values in a required column, a value of another type,
            or text without a UTF-8 form.
    """
    name = str(column.name)
    missing = set(missing_rows(column))
    if missing and required:
        raise InputError(
            f"{source}: column {name!r} has no value in {name_rows(sorted(missing))}; fill or drop these rows"
        )
    values = np.empty(len(column), dtype=object)
    for row, value in enumerate(column.tolist()):
        if row in missing:
            values[row] = ""
        elif isinstance(value, str):
            values[row] = str(value)
        elif isinstance(value, int | np.integer) and not isinstance(value, bool):
            if not -LONGEST < value < LONGEST:
                raise InputError(
                    f"{source}: {name_rows([row])}, column {name!r} holds a number of more than 999 digits"
                )
            values[row] = str(int(value))
        elif _is_chat(value):
            raise InputError(
                f"{source}: {name_rows([row])}, column {name!r}: {quote(value, 80)} is a chat, not a text; the chat "
                f"template makes texts of chats: PromptTable.from_chats(df[{name!r}], tokenizer, "
                f"labels=df.drop(columns={name!r}))"
            )
        else:
            raise InputError(
                f"{source}: {name_rows([row])}, column {name!r}: {quote(value)} is a {type(value).__name__}, "
                f"not a text; convert the column: df[{name!r}] = df[{name!r}].astype(str)"
            )
    _check_text(values, name, source)
    return values


def _is_chat(value: object) -> bool:
    """Return whether a value is a conversation: a message {"role": ..., "content": ...}, or a sequence of them."""
    messages = [value] if isinstance(value, Mapping) else value
    if not isinstance(messages, list | tuple | np.ndarray) or not len(messages):
        return False
    return all(isinstance(message, Mapping) and "role" in message for message in messages)


def label_values(column: pd.Series[Any], source: str) -> NDArray[Any]:
    """Convert a label column to an array of bool, (u)int or float, or an object array of str.

    NumPy dtypes stay the same. Nullable and Arrow-backed pandas dtypes become the
    NumPy dtype of the same name. Categories become their values, and a column of
    objects becomes the common type of its values. A missing value is refused
    except in a float column, where it stays NaN. Text, integers and booleans have
    no missing value, and an invented one would appear as a group in the analyses.

    Args:
        column: values of one label, one per row.
        source: name of the table, for messages.

    Returns:
        Array of shape (rows,).

    Raises:
        InputError: missing values; dates, lists, complex or mixed values.
    """
    name = str(column.name)
    if isinstance(column.dtype, pd.CategoricalDtype):
        # A categorical column may have missing values, its categories never do.
        if column.isna().any():
            raise _missing_error(name, source, missing_rows(column))
        column = column.astype(column.cat.categories.dtype)
    if column.dtype == object:
        return _object_values(column, name, source)
    kind = getattr(column.dtype, "kind", "O")
    if kind == "f":
        return column.to_numpy(dtype=_numpy_dtype(column.dtype), na_value=np.nan)
    if kind in "iub":
        if column.isna().any():
            raise _missing_error(name, source, missing_rows(column))
        return column.to_numpy(dtype=_numpy_dtype(column.dtype))
    if pd.api.types.is_string_dtype(column.dtype):
        return _object_values(column.astype(object), name, source)
    raise InputError(
        f"{source}: column {name!r} has dtype {column.dtype}, which the store cannot label rows with; labels "
        f"are text, integers, floats or booleans: df[{name!r}] = df[{name!r}].astype(str)"
    )


def category_order(column: pd.Series[Any]) -> tuple[str, ...] | None:
    """Return the categories of an ordered categorical column as text, in order; None for any other column.

    >>> category_order(pd.Series(pd.Categorical(["lo", "hi"], categories=["lo", "mid", "hi"], ordered=True)))
    ('lo', 'mid', 'hi')
    """
    if not isinstance(column.dtype, pd.CategoricalDtype) or not column.dtype.ordered:
        return None
    return tuple(str(category) for category in column.dtype.categories.tolist())


def _object_values(column: pd.Series[Any], name: str, source: str) -> NDArray[Any]:
    present = column[~column.isna().to_numpy(dtype=bool)]
    first_rows: dict[type, int] = {}
    for row, value in zip(present.index.tolist(), present.tolist(), strict=True):
        first_rows.setdefault(_label_type(value), int(row))
    types = set(first_rows)
    if not types:
        raise InputError(f"{source}: column {name!r} holds no value in any row; drop it: df.drop(columns={name!r})")
    if types in ({float}, {int, float}):
        return np.array([np.nan if pd.isna(value) else float(value) for value in column.tolist()], dtype=np.float64)
    if len(types) > 1:
        examples = ", ".join(f"{kind.__name__} in row {row}" for kind, row in first_rows.items())
        raise InputError(
            f"{source}: column {name!r} mixes types ({examples}); a label has one type: "
            f"df[{name!r}] = df[{name!r}].astype(str)"
        )
    kind = types.pop()
    if kind not in (str, int, bool):
        raise InputError(
            f"{source}: column {name!r} holds values of type {kind.__name__} (row {first_rows[kind]}); labels are "
            f"text, integers, floats or booleans: df[{name!r}] = df[{name!r}].astype(str)"
        )
    if len(present) < len(column):
        raise _missing_error(name, source, missing_rows(column))
    if kind is str:
        values = np.empty(len(column), dtype=object)
        values[:] = [str(value) for value in column.tolist()]
        _check_text(values, name, source)
        return values
    try:
        return np.array(column.tolist(), dtype=np.int64 if kind is int else np.bool_)
    except OverflowError:
        raise InputError(
            f"{source}: column {name!r} holds an integer beyond 64 bits; keep it as text: "
            f"df[{name!r}] = df[{name!r}].astype(str)"
        ) from None


def _label_type(value: object) -> type:
    """Return str, bool, int or float for values of these kinds, else the type."""
    if isinstance(value, str):
        return str
    if isinstance(value, bool | np.bool_):
        return bool
    if isinstance(value, int | np.integer):
        return int
    if isinstance(value, float | np.floating):
        return float
    return type(value)


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the NumPy dtype that corresponds to a pandas dtype."""
    if isinstance(dtype, pd.SparseDtype):
        return np.dtype(dtype.subtype)
    return dtype if isinstance(dtype, np.dtype) else np.dtype(dtype.numpy_dtype)


def _missing_error(name: str, source: str, rows: Sequence[int]) -> InputError:
    return InputError(
        f"{source}: label column {name!r} has no value in {name_rows(rows)}; only float labels can be missing "
        f"(NaN). Name the missing ones yourself, for example df[{name!r}] = df[{name!r}].fillna('none'), "
        f"or drop the rows: df.dropna(subset=[{name!r}])"
    )


def _check_text(values: NDArray[Any], name: str, source: str) -> None:
    for row, text in enumerate(values.tolist()):
        check_utf8(text, f"{source}: {name_rows([row])}, column {name!r}")
