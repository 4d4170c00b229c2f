"""Tables on a terminal and in a pipe, and help that fits in 80 columns with an example for every command."""

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
)


@pytest.mark.parametrize("terminal", [True, False])
def test_names_are_text_whatever_they_look_like(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    console.emit_table("runs/[a][/b].zarr", ["[red]stage"], [["[bold]s1[/bold]"], ["[/]"]])
    said = capsys.readouterr().out
    for name in ("runs/[a][/b].zarr", "[red]stage", "[bold]s1[/bold]", "[/]"):
        assert name in said
    assert max(map(len, said.splitlines())) <= 80
    assert ("│" in said) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_message_is_broken_between_words_on_a_terminal_alone(
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
    said = capsys.readouterr().err
    assert said.split() == ["error:", *message.split()]
    assert (len(said.splitlines()) > 4) == terminal
    console.print_status(message.split("\n")[0])  # what it says of its work, too
    said = capsys.readouterr().err
    assert said.split() == message.split("\n")[0].split()
    assert (len(said.splitlines()) > 1) == terminal


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
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    for part in said.split("@ ")[1:]:
        name, text = part.split("\n", 1)
        assert f"Example: stratalens {name}" in re.sub(r"\s+", " ", text)
        assert max(map(len, text.splitlines())) <= 80
