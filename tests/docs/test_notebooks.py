"""The notebooks of `examples/` run cell by cell; the notebooks of the pages have the code of their page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import DOCS, ROOT
from support.thorough import THOROUGH

EXAMPLES = sorted((ROOT / "examples").glob("*.ipynb"))
CELL = re.compile(r"^```\{code-cell\} python\n(?::tags:[^\n]*\n\n)?(.*?)^```", re.DOTALL | re.MULTILINE)


def cells(notebook: dict[str, Any], kind: str) -> list[str]:
    """Return the source of the cells of one kind."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def run(path: Path) -> dict[str, Any]:
    """Run a notebook in this process, as a kernel would, and return its variables."""
    names: dict[str, Any] = {}
    for number, source in enumerate(cells(json.loads(path.read_text(encoding="utf-8")), "code")):
        exec(compile(source, f"{path.name}, cell {number}", "exec"), names)
    return names


def test_the_examples_are_listed_in_the_documentation() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [path.stem for path in EXAMPLES] == ["crosscoder", "own-checkpoints", "own-labels"]
    assert all(f"_generated/examples/{path.stem}" in index for path in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert [c["cell_type"] for c in notebook["cells"] if c.get("outputs") or c.get("execution_count")] == []
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_own_checkpoints_finds_what_the_model_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "examples" / "own-checkpoints.ipynb")
    assert names["ds"].stage.values.tolist() == ["step0", "step20", "step60"]
    best = names["probes"].strata.best(1)
    assert best["stage"].tolist() == ["step60"]
    assert best["p_max"].tolist() == [0.05]
    assert (tmp_path / "sweep.html").is_file()


def test_own_labels_finds_categories_and_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "examples" / "own-labels.ipynb")
    learned = names["probes"].accuracy_mean.sel(token="entity_last").squeeze("pair")
    assert float(learned.sel(stage="step80").max()) > 0.5 > 0.4 > float(learned.sel(stage="step0").max())
    assert names["probes"].strata.best(1)["p_max"].tolist() == [0.05]
    assert names["number"].strata.best(1)["p_max"].item() > 0.05
    assert set(names["ds"].wet.values.tolist()) == {"yes", "no"}


def test_the_crosscoder_recovers_planted_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F1 of one-to-one matches of the same kind with a cosine above .9, for each seed; every kind is recovered."""
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "examples" / "crosscoder.ipynb")
    assert len(names["scores"]) == 3
    assert min(names["scores"].values()) >= 0.95
    assert names["data"].dims == ("stage", "d_model")
    table = names["table"]
    right = (table["planted"] == table["recovered as"]) & (table["cosine"] > 0.9)
    assert right.groupby(table["planted"]).mean().min() >= 0.8
    assert table["planted"].value_counts().to_dict() == names["KINDS"]
    # The rule does not reward an untrained crosscoder, and the kinds are those of the decoder.
    _, untrained = names["recover"](*names["train"](names["data"], 2, epochs=0), names["data"], 2)
    assert untrained < 0.3
    _, directions, kinds = names["plant"](5)
    read = names["kinds_of"](directions + 1e-9)  # not zero where a feature does not exist
    assert (read == kinds).all()
    for seed in range(3, 10) if THOROUGH else ():
        data = names["write"](seed)
        assert names["recover"](*names["train"](data, seed), data, seed)[1] >= 0.95, seed


def test_every_executed_page_is_a_notebook_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("myst_nb")
    monkeypatch.syspath_prepend(DOCS)
    import notebooks

    sys.modules.pop("notebooks")
    written = notebooks.write(tmp_path)
    assert {"quickstart", "sweep", "howto/checkpoints", "explain/controls"} <= set(written)
    for page, name in written.items():
        notebook = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        code = cells(notebook, "code")
        own = [block.strip() for block in CELL.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))]
        assert [c for c in code if not c.startswith("%%writefile")] == own
        assert code[0].startswith("%%writefile example.py") == ("example.here(" in own[0])
        text = "\n".join(cells(notebook, "markdown"))
        assert not re.search(r"^```\{|^\([\w-]+\)=$|\]\([^)h][^)]*\.md", text, re.MULTILINE), page
