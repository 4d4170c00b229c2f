"""Tables on a terminal and in a pipe; help with an example for every command, in 80 columns."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer

from stratalens.plugin.cli import output as console
from stratalens.store.errors import InputError

COMMANDS = (
    "demo",
    "study",
    "forecast",
    "capture",
    "info",
    "verify",
    "analyze",
    "report",
    "explore",
    "export",
    "label",
    "commit",
    "import",
    "init",
)


@pytest.mark.parametrize("terminal", [True, False])
def test_markup_in_names_is_printed_as_text(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    console.emit_table("runs/[a][/b].zarr", ["[red]stage"], [["[bold]s1[/bold]"], ["[/]"]])
    output_text = capsys.readouterr().out
    for name in ("runs/[a][/b].zarr", "[red]stage", "[bold]s1[/bold]", "[/]"):
        assert name in output_text
    assert max(map(len, output_text.splitlines())) <= 80
    assert ("│" in output_text) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_message_is_wrapped_on_a_terminal_only(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    message = (
        "a long message about a/very-long-path/that-does-not-fit/in-forty/columns and then\n  an indented line " * 2
    )

    @console.handle_errors
    def fail() -> None:
        raise InputError(message)

    with pytest.raises(typer.Exit):
        fail()
    output_text = capsys.readouterr().err
    assert output_text.split() == ["error:", *message.split()]
    assert (len(output_text.splitlines()) > 4) == terminal
    console.print_status(message.split("\n")[0])
    output_text = capsys.readouterr().err
    assert output_text.split() == message.split("\n")[0].split()
    assert (len(output_text.splitlines()) > 1) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_help_has_an_example_and_fits(terminal: bool) -> None:
    environment = {"COLUMNS": "80", "TERM": "xterm" if terminal else "dumb", "NO_COLOR": "1"}
    code = (
        f"import os, sys; os.environ.update({environment!r})\n"
        "from typer.testing import CliRunner\n"
        "from stratalens.plugin.cli.app import app\n"
        f"for name in {COMMANDS!r}:\n"
        "    print('@', name); print(CliRunner().invoke(app, [name, '--help']).output)\n"
    )
    output_text = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    for section in output_text.split("@ ")[1:]:
        name, text = section.split("\n", 1)
        assert f"Example: stratalens {name}" in re.sub(r"\s+", " ", text)
        assert max(map(len, text.splitlines())) <= 80
