"""Columns of a prompt table: which names may be used, and how values become NumPy arrays.

What lives here: the rules for one column at a time. What does not: what the
columns of a prompt table mean (`prompts.py`) and how files are read
(`table_files.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stratalens.store.errors import InputError
from stratalens.store.format.schema import AXES, OUTPUTS, STATISTICS

# Sites that have a short name; `stratalens.plugin.models.site_resolution` would know them too, but a
# prompt table should be checked without loading torch.
_SITES = (
    "resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_pre", "mlp_post",
    "mlp_out", "z", "q", "k", "v", "result", "pattern", "attn_scores", "embed", "pos_embed", "ln_final",
)  # fmt: skip


_FEATURES = ("d_model", "d_mlp", "head", "d_head", "kv_head", "percentile")


_COORDS = ("stage_order", "weights_fingerprint", "recorded", "exposure", "entity_text")


_OUTPUTS = (*OUTPUTS, "logit_percentile", "answer_loss")


_STATISTICS = (f"{site}_{name}" for site in _SITES for name in STATISTICS)


RESERVED = frozenset((*AXES, *_FEATURES, *_COORDS, *_OUTPUTS, *_SITES, *_STATISTICS)) - {"entity"}


"""Names that the store gives to its own dims, coordinates and variables, which no label may have.

What collides with a site that has no short name is refused when the store is made.
"""


def name_rows(rows: Iterable[int], limit: int = 8) -> str:
    """'row 3' or 'rows 3, 7, 9 and 12 more'; rows are counted from 0.

    >>> name_rows([3]), name_rows([3, 7]), name_rows(range(10), limit=2)
    ('row 3', 'rows 3, 7', 'rows 0, 1 and 8 more')
    """
    listed = [int(row) for row in rows]
    shown = ", ".join(str(row) for row in listed[:limit])
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return f"row{'s' if len(listed) > 1 else ''} {shown}{more}"


def check_names(names: Sequence[Any], source: str) -> None:
    """Raise InputError unless every column name is usable as the name of a label.

    A name is the name of an array in the store, and on an object store or a
    disk a part of a path: no slashes, no control characters, no leading dot
    or double underscore.
    """
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"{source}: column name {name!r} is not a text; give every column a name: df.columns = [...]"
            )
        if name in seen:
            raise InputError(f"{source}: two columns are called {name!r}; rename or drop one of them")
        seen.add(name)
        unsafe = "/" in name or "\\" in name or name.startswith((".", "__")) or not name.isprintable()
        if unsafe or name == "zarr.json":
            raise InputError(
                f"{source}: column name {name!r} cannot name an array of the store (no slashes, no control "
                f"characters, no leading '.' or '__'); rename it: df.rename(columns={{{name!r}: ...}})"
            )
        if name in RESERVED:
            raise InputError(
                f"{source}: column {name!r} has the name of a dim, coordinate or variable of the store "
                f"(such as stage, layer, token, loss, resid_post); rename it: "
                f"df.rename(columns={{{name!r}: 'my_{name}'}})"
            )


def missing_rows(column: pd.Series[Any]) -> list[int]:
    """Rows (counted from 0) that hold None, NaN, NaT or pandas.NA."""
    return [int(row) for row in np.flatnonzero(column.isna().to_numpy(dtype=bool))]


def as_text(column: pd.Series[Any], source: str, *, required: bool) -> np.ndarray[Any, Any]:
    """The column as an object array of str; a missing value is '' or, if required, an error.

    Integers become their decimal digits (an id may well be a number); other
    types are refused, since their text form is anybody's guess.
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
            values[row] = str(int(value))
        else:
            raise InputError(
                f"{source}: {name_rows([row])}, column {name!r}: {value!r} is a {type(value).__name__}, "
                f"not a text; convert the column: df[{name!r}] = df[{name!r}].astype(str)"
            )
    _refuse_surrogates(values, name, source)
    return values


def label_values(column: pd.Series[Any], source: str) -> np.ndarray[Any, Any]:
    """One label column as a NumPy array: bool, (u)int, float, or object holding str.

    NumPy dtypes are kept as they are. pandas' nullable and Arrow-backed dtypes
    become the NumPy dtype of the same name, categories their values, and
    columns of objects what all their values are. A missing value is refused,
    except in float columns, where it stays NaN: text, integers and booleans
    have no missing value of their own, and an invented one would end up in
    somebody's analysis as a group.

    Args:
        column: values of one label, shape (rows,).
        source: where the table comes from, for messages.

    Returns:
        Array of shape (rows,).

    Raises:
        InputError: missing values; dates, lists, complex or mixed values.
    """
    name = str(column.name)
    if isinstance(column.dtype, pd.CategoricalDtype):
        # the categories' dtype is the values' dtype (categories themselves are never missing)
        if column.isna().any():
            raise _missing(name, source, missing_rows(column))
        column = column.astype(column.cat.categories.dtype)
    if column.dtype == object:
        return _from_objects(column, name, source)
    kind = getattr(column.dtype, "kind", "O")
    if kind == "f":
        dtype = column.dtype if isinstance(column.dtype, np.dtype) else np.dtype(_float_name(column.dtype))
        return column.to_numpy(dtype=dtype, na_value=np.nan)
    if kind in "iub":
        if column.isna().any():
            raise _missing(name, source, missing_rows(column))
        dtype = column.dtype if isinstance(column.dtype, np.dtype) else _numpy_dtype(column.dtype)
        return column.to_numpy(dtype=dtype)
    if pd.api.types.is_string_dtype(column.dtype):
        return _from_objects(column.astype(object), name, source)
    raise InputError(
        f"{source}: column {name!r} has dtype {column.dtype}, which the store cannot label rows with; labels "
        f"are text, integers, floats or booleans: df[{name!r}] = df[{name!r}].astype(str)"
    )


def _from_objects(column: pd.Series[Any], name: str, source: str) -> np.ndarray[Any, Any]:
    present = column[~column.isna().to_numpy(dtype=bool)]
    kinds: dict[type, int] = {}
    for row, value in zip(present.index.tolist(), present.tolist(), strict=True):
        kinds.setdefault(_kind(value), int(row))
    if not kinds:
        raise InputError(f"{source}: column {name!r} holds no value in any row; drop it: df.drop(columns={name!r})")
    if set(kinds) == {int, float}:
        return np.array([np.nan if pd.isna(v) else float(v) for v in column.tolist()], dtype=np.float64)
    if len(kinds) > 1:
        examples = ", ".join(f"{kind.__name__} in row {row}" for kind, row in kinds.items())
        raise InputError(
            f"{source}: column {name!r} mixes types ({examples}); a label has one type: "
            f"df[{name!r}] = df[{name!r}].astype(str)"
        )
    kind = next(iter(kinds))
    if kind is float:
        return np.array([np.nan if pd.isna(v) else float(v) for v in column.tolist()], dtype=np.float64)
    if kind not in (str, int, bool):
        raise InputError(
            f"{source}: column {name!r} holds values of type {kind.__name__} (row {kinds[kind]}); labels are "
            f"text, integers, floats or booleans: df[{name!r}] = df[{name!r}].astype(str)"
        )
    if len(present) < len(column):
        raise _missing(name, source, missing_rows(column))
    if kind is str:
        values = np.array([str(v) for v in column.tolist()] + [None], dtype=object)[:-1]
        _refuse_surrogates(values, name, source)
        return values
    try:
        return np.array(column.tolist(), dtype=np.int64 if kind is int else np.bool_)
    except OverflowError:
        raise InputError(
            f"{source}: column {name!r} holds an integer beyond 64 bits; keep it as text: "
            f"df[{name!r}] = df[{name!r}].astype(str)"
        ) from None


def _kind(value: object) -> type:
    if isinstance(value, str):
        return str
    if isinstance(value, bool | np.bool_):
        return bool
    if isinstance(value, int | np.integer):
        return int
    if isinstance(value, float | np.floating):
        return float
    return type(value)


def _float_name(dtype: Any) -> str:
    # pandas' Float32/Float64 and Arrow's float/double[pyarrow]
    return str(getattr(dtype, "numpy_dtype", "float64"))


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    # pandas' Int8 .. UInt64, boolean, and their Arrow-backed forms
    numpy_dtype: np.dtype[Any] = dtype.numpy_dtype
    return numpy_dtype


def _missing(name: str, source: str, rows: Sequence[int]) -> InputError:
    return InputError(
        f"{source}: label column {name!r} has no value in {name_rows(rows)}; only float labels can be missing "
        f"(NaN). Name the missing ones yourself, for example df[{name!r}] = df[{name!r}].fillna('none'), "
        f"or drop the rows: df.dropna(subset=[{name!r}])"
    )


def _refuse_surrogates(values: np.ndarray[Any, Any], name: str, source: str) -> None:
    for row, value in enumerate(values.tolist()):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{source}: {name_rows([row])}, column {name!r}: the character {value[error.start]!r} at "
                f"{error.start} is half of a surrogate pair and has no UTF-8 form; decode the text anew"
            ) from None
