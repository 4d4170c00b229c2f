"""Every Python block of the documentation, run as it is written, page by page; run files are read as run files.

Cells (`{code-cell}`) are also run, and their output shown, where the pages are built (docs/conf.py), and an error ends
the build. Pages that have nothing else are run here in the long suite only. Other blocks are run here alone. A block
that cannot be run without a hub or a GPU is a `code-block` directive, and the text before it says so. docs/sweep.md has
a test of its own.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from support.models import save_checkpoint
from support.paths import DOCS
from support.thorough import THOROUGH

OTHERS = {"sweep.md", "quickstart.md"}  # tests of their own
BLOCK = re.compile(r"^```(?:\{code-cell\} python\n(?::tags:([^\n]*)\n\n)?|python\n)(.*?)^```", re.DOTALL | re.MULTILINE)
READERS = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if not {"_build", "_generated"} & set(page.relative_to(DOCS).parts) and page.name != "benchmarks.md"
]
PAGES = [
    str(page.relative_to(DOCS))
    for page in READERS
    if page.name not in OTHERS and BLOCK.search(page.read_text(encoding="utf-8"))
]
RUN_HERE = [page for page in PAGES if THOROUGH or "```python\n" in (DOCS / page).read_text(encoding="utf-8")]
WIDTH = 100  # characters of a printed line that a page shows without being moved sideways
NEEDS = {"howto/cluster.md": "distributed", "howto/lora.md": "peft", "howto/paper.md": "matplotlib"}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages copy into their folder: checkpoints, prompts.csv and a store."""
    spec = importlib.util.spec_from_file_location("example", DOCS / "example.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Path = module.make(tmp_path_factory.mktemp("example"))
    return made


# peft asks transformers in a way that is going out of use
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("page", RUN_HERE)
def test_the_code_of_a_page_runs_as_written(
    page: str,
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And what it prints fits the page."""
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.setenv("STRATALENS_EXAMPLE", str(example))
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    if page == "study.md":
        save_checkpoint(tmp_path / "checkpoints" / "base", "llama")  # with a tokenizer that knows any text
    elif "example.here" not in blocks[0][1]:  # a page that is not built in a kernel
        blocks.insert(0, ("", "import example\nexample.here('checkpoints', 'prompts.csv')\n"))
    names: dict[str, Any] = {}
    try:
        for number, (tags, block) in enumerate(blocks):
            exec(compile(block, f"docs/{page}, block {number + 1}", "exec"), names)
            said = capsys.readouterr().out
            assert "remove-" in tags or all(len(line) <= WIDTH for line in said.splitlines()), said
    finally:
        sys.modules.pop("example", None)


@pytest.mark.parametrize(
    "page", [p for p in READERS if "{code-block}" in p.read_text(encoding="utf-8")], ids=lambda page: page.name
)
def test_what_is_not_executed_says_what_it_needs(page: Path) -> None:
    before = page.read_text(encoding="utf-8").split("```{code-block}")[:-1]
    assert all("**Not executed: " in part.rsplit("```", 1)[-1] for part in before)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_with_blocks_outside_of_cells_says_so(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert "\n```python\n" not in text or "**Not executed" in text.split("\n```python\n")[0]


def test_the_tutorial_shows_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for _, block in BLOCK.findall((DOCS / "quickstart.md").read_text(encoding="utf-8")):
        exec(compile(block, "docs/quickstart.md", "exec"), names)
    learned = names["probes"].accuracy_mean.sel(token="entity_last").squeeze("pair")
    assert float(learned.sel(stage="week2").max()) > float(learned.sel(stage="base").max())


@pytest.mark.parametrize("page", sorted(str(p.relative_to(DOCS)) for p in (DOCS / "howto").glob("*.md")))
def test_run_files_on_a_page_are_run_files(page: str, tmp_path: Path) -> None:
    from stratalens.plugin.cli.run_file import read_run_file

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
        if not {"_build", "_generated", "study-results"} & set(p.relative_to(DOCS).parts) and p.name != "index.md"
    }
    assert [p for p in pages if not any(fnmatch(p, pattern) for pattern in listed)] == []


def test_the_commands_on_the_pages_exist() -> None:
    from typer.main import get_command

    from stratalens.plugin.cli.app import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for page in DOCS.rglob("*.md"):
        if {"_build", "_generated"} & set(page.parts):
            continue
        for name in re.findall(
            r"^ {4}stratalens (\w+)|`stratalens (\w+) ", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            assert set(name) - {""} <= known, page
