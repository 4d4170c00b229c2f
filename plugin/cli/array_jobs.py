"""The work of the command that imports existing activations."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from stratalens.plugin.cli.analysis_options import as_options
from stratalens.plugin.cli.output import print_status, print_warnings
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from stratalens.plugin.prompts.table import PromptTable


def split_list(text: str | None, name: str) -> list[str] | None:
    """Split a list of an option at its commas.

    Raises:
        InputError: a name between two commas is empty.

    Example:
        >>> split_list("step0, step600", "stages"), split_list(None, "stages")
        (['step0', 'step600'], None)
    """
    if text is None:
        return None
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise InputError(f"--{name} {text!r}: a name is empty; write the names with a comma between them")
    return names


def split_numbers(text: str | None, name: str) -> list[int] | None:
    """Split a list of block indices; `a-b` means all from a to b.

    Example:
        >>> split_numbers("0,3-5", "layers")
        [0, 3, 4, 5]
    """
    numbers: list[int] = []
    for part in split_list(text, name) or []:
        first, dash, last = part.partition("-")
        ends = (first, last) if dash else (first,)
        if not all(end.isdecimal() and len(end) < 6 for end in ends):  # a longer range would fill the memory
            raise InputError(f"--{name} {text!r}: {part!r} is no block index; write 0,1,2 or 0-2")
        numbers += range(int(first), int(last if dash else first) + 1)
    return None if text is None else numbers


def import_files(
    files: list[str],
    out: str,
    *,
    table: Path | None,
    site: str | None,
    stages: str | None,
    layers: str | None,
    tokens: str | None,
    dims: str | None,
    **options: Any,
) -> dict[str, Any]:
    """Import files of activations into a store; lists are texts with commas.

    Args:
        files: files, or SITE:STAGE:LAYER=FILE.
        out: the store.
        table: the prompts; None takes the columns of a Hugging Face dataset that are no arrays.
        site: site of arrays that nothing names.
        stages: names of the stages.
        layers: block indices.
        tokens: names of the positions, or negative offsets.
        dims: axes of every array.
        options: other arguments of `stratalens.from_arrays`.

    Returns:
        Path, stages, sites, rows, bytes and files of the store.
    """
    from stratalens.plugin.interop.array_files import read_arrays
    from stratalens.plugin.interop.from_arrays import from_arrays
    from stratalens.store.state.info import info

    names = split_list(stages, "stages")
    with print_warnings():
        arrays, columns = read_arrays(files, site=site, stages=names)
        prompts = _prompts(table, columns)
        try:
            from_arrays(
                out,
                arrays,
                prompts,
                stages=names,
                layers=split_numbers(layers, "layers"),
                tokens=cast(Any, _tokens(tokens)),
                dims=split_list(dims, "dims"),
                progress=None if sys.stderr.isatty() else False,
                nonfinite=cast(Literal["raise", "keep"], options.pop("nonfinite")),
                **options,
            )
        except InputError as error:
            raise InputError(_as_import_options(str(error))) from error
    facts = info(out)
    sizes = facts["dims"]
    print_status(f"{out}: {sizes['stage']} stages, {sizes['entity']} rows of {', '.join(facts['sites'])}")
    return {
        "store": out,
        "stages": [stage["name"] for stage in facts["stages"]],
        "sites": facts["sites"],
        "rows": facts["dims"]["entity"],
        **{key: facts[key] for key in ("complete", "bytes", "files")},
    }


# Arguments of from_arrays in messages, and the options that replace them.
_OPTIONS = (
    (re.compile(r"\blayers=\[[^\]]*\]"), "--layers 0,1,2"),
    (re.compile(r"\bstages=\[[^\]]*\]"), "--stages A,B"),
    (re.compile(r"\bnonfinite='(\w+)'"), r"--nonfinite \1"),
    (re.compile(r"\bdtype='(\w+)'"), r"--dtype \1"),
    (re.compile(r"with dims="), "with --dims"),
)


def _as_import_options(message: str) -> str:
    """Replace arguments of Python functions in a message by options of the command.

    >>> _as_import_options("nonfinite='drop'; its layers cannot be counted; pass layers=[...]")
    '--nonfinite drop; its layers cannot be counted; pass --layers 0,1,2'
    """
    return as_options(message, _OPTIONS)


def _prompts(table: Path | None, columns: pd.DataFrame | None) -> PromptTable:
    from stratalens.plugin.prompts.table import PromptTable

    if table is not None:
        return PromptTable.read(table)
    if columns is None:
        raise InputError("--table is missing: name the csv, jsonl or parquet file of the prompts of these arrays")
    if "prompt" not in columns:
        raise InputError(
            "--table is missing, and the dataset has no column 'prompt'. Rename the column of the prompts to 'prompt', "
            "or name a table with --table"
        )
    return PromptTable.from_dataframe(columns)


def _tokens(text: str | None) -> list[str] | list[int] | None:
    """Return names of positions, or offsets -n .. -1 as numbers if all are negative numbers in sequence."""
    names = split_list(text, "tokens")
    if names is None or len(names) < 2 or names != [str(n) for n in range(-len(names), 0)]:
        return names
    return [int(name) for name in names]
