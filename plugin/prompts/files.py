"""Reading of prompt tables from csv, tsv, jsonl and parquet files.

In csv files only an empty field is missing. pandas would also read 'NA',
'null' and 'None' as missing, but these are names, and prompts are about names.
A column of a csv file becomes numbers only where that loses nothing (`typed_values`).
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from stratalens.plugin.prompts.columns import missing_rows, name_rows, typed_values
from stratalens.plugin.prompts.spans import span_names
from stratalens.store.errors import InputError, LabelWarning, quote, suggest
from stratalens.store.files import user_path
from stratalens.store.names import check_distinct, parse_json

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


# These columns are text whatever the values of a csv file look like: prompt_id 7 is the text '7'.
TEXT_COLUMNS = ("prompt", "prompt_id", "entity", "entity_id", "answer")


def read_frame(path: str | Path, *, fill: bool = False) -> pd.DataFrame:
    """Read a table with one row per prompt.

    Args:
        path: file that ends in .csv, .tsv, .jsonl, .ndjson or .parquet.
        fill: read an empty field of a text label in a csv file as '', with a warning, and not as missing.

    Raises:
        InputError: no such file, a folder, an unknown suffix, an encoding other
            than UTF-8, or a malformed line; the message names the line.
    """
    file = user_path(path)
    if not file.exists():
        folder = file.parent
        others = sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES) if folder.is_dir() else []
        hint = f"; {suggest(file.name, others)}" if others else f" (in {folder.absolute()})"
        raise InputError(f"{file}: no such file{hint}")
    if file.is_dir():
        raise InputError(f"{file} is a folder; give one file that ends in {', '.join(SUFFIXES)}")
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_csv(file, "\t" if suffix == ".tsv" else ",", fill)
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(file)
    if suffix == ".parquet":
        return _read_parquet(file)
    raise InputError(
        f"{file}: prompt tables end in {', '.join(SUFFIXES)}; for other formats read the file yourself: "
        "PromptTable.from_dataframe(df)"
    )


def _read_text(file: Path) -> str:
    """Decode a file as UTF-8, with or without a byte-order mark."""
    data = file.read_bytes()
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or data[:64].count(0) >= 8:
        raise InputError(
            f"{file} is UTF-16 (or UTF-32), not UTF-8; save it as UTF-8, or read it yourself: "
            "PromptTable.from_dataframe(pd.read_csv(path, encoding='utf-16'))"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{file}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8, or read it "
            "yourself: PromptTable.from_dataframe(pd.read_csv(path, encoding='latin-1'))"
        ) from None


def _read_csv(file: Path, separator: str, fill: bool) -> pd.DataFrame:
    text = _read_text(file)
    if not text.strip():
        raise InputError(f"{file} is empty; a table has a header line with a column 'prompt' and one line per prompt")
    # pandas would rename the second of two equal columns
    header = next((row for row in csv.reader(io.StringIO(text), delimiter=separator) if any(row)), [])
    check_distinct(header, "column", str(file))
    _check_separator(header, separator, file)
    options: dict[str, Any] = {
        "sep": separator,
        "keep_default_na": False,
        "na_values": [""],
        "dtype": "string",
        "index_col": False,  # otherwise pandas silently makes an extra field the index
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # an extra field in every line
            frame: pd.DataFrame = pd.read_csv(io.StringIO(text), **options)
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        problem = _surplus_fields(text, separator) or f": {str(error).strip()}"
        raise InputError(
            f"{file}{problem}; every line must have as many fields as the header, and a field that "
            'holds the separator, a quote or a line break is written in "..."'
        ) from None
    edges = {f"{name}_{edge}" for name in span_names(frame.columns) for edge in ("start", "end")}
    for name in frame.columns:
        if name not in TEXT_COLUMNS:
            values = typed_values(frame[name])
            frame[name] = _fill_text(values, file) if fill and name not in edges else values
    return frame


def _check_separator(header: list[str], separator: str, file: Path) -> None:
    """Refuse a file whose header has a column 'prompt' only with another separator."""
    if "prompt" in (name.strip() for name in header):
        return
    line = separator.join(header)
    names = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
    for other, name in names.items():
        if other != separator and "prompt" in (field.strip(' "') for field in line.split(other)):
            raise InputError(
                f"{file}: the fields are separated by {name}, not by {names[separator]}; save the file with "
                f"{names[separator]}, or read it yourself: PromptTable.from_dataframe(pd.read_csv(path, sep={other!r}))"
            )


def _surplus_fields(text: str, separator: str) -> str:
    """Name the first line that has more fields than the header; '' if there is none, or the file is not readable."""
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    width = start = 0
    try:
        for row in reader:
            if width and len(row) > width:
                return f", line {start + 1}: {len(row)} fields, but the header has {width}"
            width = width or len(row)
            start = reader.line_num
    except csv.Error:
        pass
    return ""


def _fill_text(column: pd.Series[Any], file: Path) -> pd.Series[Any]:
    """Replace the missing values of a text label by '', with a warning; a store gives such a label back as ''."""
    empty = missing_rows(column)
    if column.dtype != "string" or not empty or len(empty) == len(column):
        return column
    warnings.warn(
        f"{file}: label column {str(column.name)!r} is empty in {name_rows(empty)}; analyses by this label leave "
        "these rows out",
        LabelWarning,
        stacklevel=5,  # the caller of PromptTable.read
    )
    return column.fillna("")


def _read_jsonl(file: Path) -> pd.DataFrame:
    columns: dict[str, list[Any]] = {}
    count = 0
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, f"{file}, line {number}")
        except json.JSONDecodeError as error:
            raise InputError(
                f"{file}, line {number}, column {error.colno}: {error.msg}; every line of a jsonl file is one "
                'JSON object such as {"prompt": "..."}'
            ) from None
        if not isinstance(record, dict):
            raise InputError(
                f"{file}, line {number}: a JSON {type(record).__name__}; every line of a jsonl file is one "
                'JSON object such as {"prompt": "..."}'
            )
        for name, value in record.items():
            columns.setdefault(name, [None] * count).append(value)
        count += 1
        for values in columns.values():
            if len(values) < count:
                values.append(None)
    return pd.DataFrame({name: _to_column(values) for name, values in columns.items()})


def _to_column(values: list[Any]) -> Any:
    """Convert the values of a JSON key to a column of a nullable dtype, or of objects."""
    # pandas' own text arrays fail on text without a UTF-8 form and do not name the row.
    if any(isinstance(value, str | list | dict) for value in values):
        return pd.Series(values, dtype=object)
    return pd.array(values)


def _read_parquet(file: Path) -> pd.DataFrame:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(
            f"{file}: reading parquet needs pyarrow: pip install 'stratalens[parquet]'; or save the table as csv"
        ) from None
    try:
        check_distinct(parquet.read_schema(file).names, "column", str(file))
        data = parquet.read_table(file)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{file} is not a readable parquet file: {_first_line(error)}") from None
    # Nullable dtypes as in the other formats. A file that pandas wrote keeps its dtypes in its metadata.
    mapper = _nullable_dtypes(arrow).get
    try:
        data.validate(full=True)  # text that is not UTF-8
        frame: pd.DataFrame = data.to_pandas(types_mapper=mapper)
    except (arrow.ArrowException, ValueError, OverflowError, TypeError, NotImplementedError) as error:
        for name in data.column_names:
            try:
                data.select([name]).validate(full=True)
                data.select([name]).to_pandas(types_mapper=mapper)
            except Exception as cause:
                raise InputError(
                    f"{file}: column {quote(name)} of the type {data.schema.field(name).type} cannot be read: "
                    f"{_first_line(cause)}; save it as UTF-8 text or as numbers"
                ) from None
        raise InputError(f"{file} is not a readable parquet file: {_first_line(error)}") from None
    return frame


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _nullable_dtypes(arrow: Any) -> dict[Any, Any]:
    """Map Arrow's integer and bool types to the nullable dtypes of pandas."""
    integers = {
        getattr(arrow, name.lower())(): getattr(pd, f"{name}Dtype")()
        for name in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
    }
    return {**integers, arrow.bool_(): pd.BooleanDtype()}
