"""Every Python block of the documentation, run as it is written, page by page; run files are read as run files.

A block that cannot be run without a hub or a GPU is a `code-block` directive on the page, and the text before it
says so. docs/sweep.md has a test of its own.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from support.models import NAMES, save_checkpoint

DOCS = Path(__file__).parents[2] / "docs"
OTHERS = {"sweep.md", "benchmarks.md"}  # tested elsewhere, or without code
BLOCK = re.compile(r"^```(?:\{code-cell\} python\n(?::tags:[^\n]*\n\n)?|python\n)(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = sorted(
    str(page.relative_to(DOCS))
    for page in DOCS.rglob("*.md")
    if not {"_build", "_generated"} & set(page.parts)
    and page.name not in OTHERS
    and BLOCK.search(page.read_text(encoding="utf-8"))
)
NEEDS = {"howto/cluster.md": "distributed", "howto/paper.md": "matplotlib"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the how-to pages name."""
    root = tmp_path_factory.mktemp("given")
    for seed, name in enumerate(("base", "week1", "week2")):
        save_checkpoint(root / "checkpoints" / name, "llama", seed=seed)
    who = [f"{NAMES[i % len(NAMES)]} {i}" for i in range(24)]
    pd.DataFrame(
        {
            "prompt": [f"Q: Who is {name}?\nA:" for name in who],
            "entity": who,
            "trained_stage": [("week1", "week2")[i % 2] for i in range(len(who))],
        }
    ).to_csv(root / "prompts.csv", index=False)
    return root


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_as_written(
    page: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    if page != "quickstart.md":  # makes its own
        (tmp_path / "checkpoints").symlink_to(checkpoints / "checkpoints")
        (tmp_path / "prompts.csv").write_bytes((checkpoints / "prompts.csv").read_bytes())
    names: dict[str, Any] = {}
    for number, block in enumerate(BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))):
        exec(compile(block, f"docs/{page}, block {number + 1}", "exec"), names)


def test_the_tutorial_shows_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCK.findall((DOCS / "quickstart.md").read_text(encoding="utf-8"))[:4]:
        exec(compile(block, "docs/quickstart.md", "exec"), names)
    learned = names["probes"].accuracy_mean.sel(token="entity_last").squeeze("pair")
    assert float(learned.sel(stage="week2").max()) > float(learned.sel(stage="base").max())


@pytest.mark.parametrize("page", sorted(str(p.relative_to(DOCS)) for p in (DOCS / "howto").glob("*.md")))
def test_run_files_on_a_page_are_run_files(page: str, tmp_path: Path) -> None:
    from stratalens.runfile import read_run_file

    for block in re.findall(
        r"^```yaml\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        (tmp_path / "run.yaml").write_text(block)
        assert read_run_file(tmp_path / "run.yaml").stages


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = re.findall(r"^([a-z_/*-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {
        str(p.relative_to(DOCS)).removesuffix(".md")
        for p in DOCS.rglob("*.md")
        if not {"_build", "_generated", "results"} & set(p.relative_to(DOCS).parts) and p.name != "index.md"
    }
    assert [p for p in pages if not any(fnmatch(p, pattern) for pattern in listed)] == []


def test_the_commands_on_the_pages_exist() -> None:
    from typer.main import get_command

    from stratalens.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for page in DOCS.rglob("*.md"):
        if {"_build", "_generated"} & set(page.parts):
            continue
        for name in re.findall(
            r"^ {4}stratalens (\w+)|`stratalens (\w+) ", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            assert set(name) - {""} <= known, page
