"""Output of the command line: results on standard output, messages on standard error, and exit codes."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stratalens.plugin.progress import wrap_message
from stratalens.store.display import human_bytes
from stratalens.store.errors import (
    CacheWarning,
    CheckWarning,
    InputError,
    LabelWarning,
    StratalensError,
    TokenWarning,
    cut,
    printable,
)

P = ParamSpec("P")

show_traceback: ContextVar[bool] = ContextVar("show_traceback", default=False)  # set by --debug


StorePath = Annotated[str, typer.Argument(metavar="STORE", help="An activation store, e.g. run.zarr")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130


def print_status(message: str) -> None:
    """Print a message to standard error, wrapped to the width of a terminal."""
    print(wrap_message(printable(message)), file=sys.stderr, flush=True)  # noqa: T201


_OWN_WARNINGS = (LabelWarning, CheckWarning, TokenWarning, CacheWarning)


@contextmanager
def print_warnings() -> Iterator[None]:
    """Print warnings about labels, sites and tokens as one line each, without their place in the code.

    `catch_warnings` restores `warnings.showwarning` at the end.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def print_one(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, _OWN_WARNINGS):
                print_status(f"warning: {message}")
            else:
                show(message, category, *rest)

        warnings.showwarning = print_one  # type: ignore[assignment]
        for category in _OWN_WARNINGS:
            warnings.simplefilter("always", category)
        yield


def emit_json(value: Mapping[str, Any]) -> None:
    """Print the JSON object of a `--json` run to standard output."""
    print(json.dumps(value, indent=2, default=str, allow_nan=False), flush=True)  # noqa: T201


def emit_text(text: str) -> None:
    """Print result text to standard output."""
    print(printable(text))  # noqa: T201


def emit_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, borders: bool = True) -> None:
    """Print a table: drawn on a terminal, without borders where it has many columns; tab-separated when piped."""
    title, lines = printable(title), [[printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        emit_text(f"# {title}")
        for line in [list(columns), *lines]:
            emit_text("\t".join(line))
        return
    # Rich interprets markup in a str. Names of files, stages and entities may contain brackets.
    table = Table(title=Text(title), title_justify="left")
    if not borders:
        table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    Console().print(table)


def handle_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn an expected error of a command into a message and an exit code.

    The exit code is 2 when the input is wrong, 130 after Ctrl-C, and 1 when data
    are damaged, the disk is full or the job failed. Any other exception is a
    defect and keeps its traceback. `--debug` shows the traceback of every error.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            print_status(
                "interrupted: committed row blocks are kept (see stratalens info); repeat the command to resume"
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of the pipe closed it, as `| head` does. This is no error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except StratalensError as error:
            _show(error, cut(str(error)))
            raise typer.Exit(EXIT_WRONG_INPUT if isinstance(error, InputError) else EXIT_FAILED) from None
        except OSError as error:
            _show(error, _explain(error))
            raise typer.Exit(EXIT_FAILED) from None

    return run


def _show(error: BaseException, message: str) -> None:
    if show_traceback.get():
        traceback.print_exception(error, file=sys.stderr)
    notes = "".join(f"\n  {extra}" for extra in getattr(error, "__notes__", ()))
    print_status(f"error: {message}{notes}")


def _explain(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk{where}; committed data are kept. Free some space and repeat the command"
    return f"{error.strerror or error}{where}"


def show_info(facts: dict[str, Any]) -> None:
    """Print the result of `stratalens.store.info` as tables."""
    from stratalens.store.state.info import percent, state_in_words  # brings zarr's codecs

    dims = ", ".join(f"{name} {size}" for name, size in facts["dims"].items())
    emit_table(
        f"{facts['path']}: {state_in_words(facts)}",
        ["what", "value"],
        [
            ("dims", dims),
            ("tokens", ", ".join(map(str, facts["tokens"]))),
            *_token_rule(facts["recorded_with"].get("tokenization")),
            ("size", f"{human_bytes(facts['bytes'])} in {facts['files']} files"),
            ("rows a block", facts["block_size"]),
            ("labels", ", ".join(facts["labels"])),
            ("format", facts["format"]),
        ],
    )
    emit_table(
        "sites",
        ["site", "dtype", "dims", "hook", "size"],
        [
            (name, _dtype(v), ", ".join(f"{d} {n}" for d, n in v["dims"].items()), v["hook"], human_bytes(v["bytes"]))
            for name, v in facts["variables"].items()
            if v["kind"] == "site"
        ],
    )
    sites = facts["sites"]
    emit_table(
        "completeness (share of rows recorded)",
        ["stage", "order", "weights", *sites],
        [
            (
                stage["name"],
                stage["order"],
                stage["fingerprint"][:12],
                *(percent(facts["completeness"][stage["name"]][s]) for s in sites),
            )
            for stage in facts["stages"]
        ]
        + [(name, "", "not started", *("0%" for _ in sites)) for name in facts["lacking_stages"]],
    )
    for title, key in (("provenance (must match)", "provenance"), ("recorded with (may differ)", "recorded_with")):
        rows = sorted((name, _one_line(value)) for name, value in facts[key].items() if name != "tokenization")
        emit_table(title, ["what", "value"], rows)


def _token_rule(recorded: Any) -> list[tuple[str, str]]:
    """Return rows about the token ids: their rule, and those of the first prompt with their texts."""
    if not isinstance(recorded, Mapping):
        return []
    pairs = zip(recorded["first_row"], recorded["first_row_tokens"], strict=True)
    more = recorded["first_row_length"] - len(recorded["first_row"])
    first = " ".join(f"{number} {text!r}" for number, text in pairs) + (f" and {more} more" if more else "")
    return [("token ids", str(recorded["rule"])), ("of row 0", first)]


FORECAST = {
    "memory_bytes": "memory_bytes (the two block buffers, without the model and its forward pass)",
    "seconds": "seconds (forward passes, without loading models)",
    "training_seconds": "training_seconds (updates, without loading models)",
    "recording_seconds": "recording_seconds (forward passes, without loading models)",
}


def show_forecast(name: str, forecast: Mapping[str, Any]) -> None:
    """Print a forecast; the row names say what a number excludes."""
    rows = [(FORECAST.get(k, k), human_bytes(v) if k.endswith("bytes") else v) for k, v in forecast.items()]
    emit_table(f"forecast of {name}", ["what", "how much"], rows)


def _one_line(value: Any) -> str:
    """Return nested settings as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_one_line(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _dtype(variable: Mapping[str, Any]) -> str:
    """Return the dtype of a site as text, for int8 with the relative error of its rows."""
    if "mean_relative_error" not in variable:
        return str(variable["dtype"])
    mean, largest = variable["mean_relative_error"], variable["max_relative_error"]
    return f"{variable['dtype']}, rows off by {mean:.2%} on average, {largest:.2%} at most"


def show_verified(report: Mapping[str, Any]) -> None:
    """Print the result of `verify_store`: damage and gaps by name, then the amount read."""
    for problem in report["damaged"]:
        emit_text(f"damaged\t{problem['text']}")
    for gap in report["missing"]:
        emit_text(f"missing\t{gap}")
    for change in report["unfinished"]:
        emit_text(f"unfinished\t{change}")
    for note in report["notes"]:
        emit_text(f"note\t{note}")
    read = f"{report['blocks']:,} blocks, {report['files']:,} files, {human_bytes(report['bytes'])} read"
    emit_text(f"ok: {read}" if report["ok"] else f"{len(report['damaged'])} damaged: {read}")
