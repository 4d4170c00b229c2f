"""llms.txt: every link leads to a page, and every name and command in it exists."""

from __future__ import annotations

import re

import stratalens as sl
from support.paths import DOCS

TEXT = (DOCS / "llms.txt").read_text(encoding="utf-8")


def test_every_link_is_a_page() -> None:
    links = re.findall(r"\]\(([^)]+)\.html\)", TEXT)
    assert len(links) > 10
    assert [link for link in links if not (DOCS / f"{link}.md").is_file()] == []
    assert "://" not in TEXT  # no address that may change


def test_every_name_and_command_exists() -> None:
    from typer.main import get_command

    from stratalens.plugin.cli.app import app

    names = {name.split(".")[0] for name in re.findall(r"\bsl\.(\w+)", TEXT)}
    assert [name for name in names if not hasattr(sl, name)] == []
    listed = TEXT.split("Command line:")[1].split("Every command")[0]
    commands = {name.split()[-1] for name in re.findall(r"`((?:stratalens )?[a-z]+)", listed)}
    assert commands <= set(get_command(app).commands)  # type: ignore[attr-defined]
    assert "import" in commands
