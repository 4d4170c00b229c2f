"""Every public name has a page of the reference with an example, and every example of the reference runs."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import stratalens as sl
from support.paths import DOCS


@pytest.fixture(scope="module")
def pages() -> Iterator[ModuleType]:
    """The module of the documentation's build that chooses examples and pictures."""
    sys.path.insert(0, str(DOCS))
    try:
        import reference_pages

        yield reference_pages
    finally:
        sys.path.remove(str(DOCS))
        for name in ("reference_pages", "reference_examples", "gallery"):
            sys.modules.pop(name, None)


def listed() -> list[str]:
    """Return the names in the summary tables of the reference, for each of which the build writes a page."""
    text = "".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
    tables = re.findall(r"\.\. autosummary::\n(?:   :.*\n)+\n((?:   \S+\n)+)", text)
    return " ".join(tables).replace("~", "").split()


def test_every_public_name_has_one_page(pages: ModuleType) -> None:
    names = listed()
    assert len(names) == len(set(names)) > 50
    assert set(names) == set(pages.public_names())
    assert set(pages.MEMBERS) <= set(names)
    templates = re.findall(r":template: (\S+)", "".join(p.read_text() for p in (DOCS / "reference").glob("*.md")))
    assert {(DOCS / "_templates" / name).is_file() for name in templates} == {True}, "Sphinx falls back in silence"


def test_every_page_has_an_example_and_every_plot_a_picture(pages: ModuleType) -> None:
    examples, pictures = pages.examples(), pages.pictures()
    documented = {
        name for name, value in pages.public_names().items() if pages.HAS_EXAMPLE.search(inspect.getdoc(value))
    }
    assert set(pages.public_names()) - documented - set(examples) == set()
    drawn = {f"stratalens.plots.{name}" for name in sl.plots.__all__} - {
        "stratalens.plots.save",
        "stratalens.plots.stage_colors",
        "stratalens.plots.statistic_quantiles",
    }
    assert drawn <= set(pictures)
    assert {"stratalens.probe", "stratalens.project", "stratalens.residual_probe"} <= set(pictures)
    assert all("return " not in example["code"] for example in examples.values())


def test_the_examples_of_the_reference_run(
    pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them, in one folder with the files of the documentation's example."""
    import example  # by the path that `pages` adds

    monkeypatch.chdir(example.make(tmp_path / "example"))
    sys.modules.pop("example")
    ds, table = sl.open_store("run.zarr"), sl.PromptTable.read("prompts.csv")
    ran: dict[str, Any] = {}
    examples = {
        name: function
        for name, function in vars(pages.reference_examples).items()
        if inspect.isfunction(function) and function.__module__ == "reference_examples"
    }
    for name, function in examples.items():
        needed = inspect.signature(function).parameters
        ran[name] = function(**{key: value for key, value in {"ds": ds, "table": table}.items() if key in needed})
    assert ran["verify_store"] is True
    assert Path("report.html").is_file()
    assert float(ran["drift"].sel(stage="base").max()) == 0
    assert float(ran["drift"].sel(stage="week2").min()) > 0
    assert {"probe", "loss alone"} <= set(ran["control_table"].control.values.tolist())
    names = {f"stratalens.{name}" for name in examples} | {f"stratalens.plots.{name}" for name in examples}
    used = {name for name, shown in pages.examples().items() if shown["before"] == pages.EXAMPLE_STORE}
    assert used <= names
    assert len(used) == len(examples), "an example that no page shows: its function has an example in its docstring"
