"""The benchmarks run, write complete documents, and the page shows them. No test asserts a time."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT
from support.thorough import thorough

FOLDER = ROOT / "benchmarks"
SMALLEST = {
    "store_memory": ["--sizes", "1", "--jobs", "write"],
    "store_query": ["--layers", "2", "--entities", "64", "--rows", "32", "--rounds", "1"],
}
# Benchmarks for a GPU that these tests run on the CPU.
ON_THE_HOST = {
    "capture_gpu": ["--device", "cpu", "--shapes", "tiny", "--most", "32", "--seconds", "0.1"],
    "analyses_gpu_probes": ["--backend", "cpu", "--widths", "80", "--fits", "2"],
}


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


def module_of(name: str) -> str:
    """Module of a benchmark: `store_query` is benchmarks/store/query.py."""
    return name.replace("_", ".", 1)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for name, smallest in SMALLEST.items():
        work = tmp_path_factory.mktemp(name)
        done = run(module_of(name), str(work), "--quick", *smallest, "--json", str(folder / f"{name}.json"))
        assert done.returncode == 0, done.stderr
        assert list(work.iterdir()) == [], "files left behind"
    return folder


def cells(document: dict[str, Any]) -> list[Any]:
    return [row.get(c["key"]) for t in document["tables"] for row in t["rows"] for c in t["columns"]]


@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_writes_a_complete_document(documents: Path, name: str) -> None:
    document = json.loads((documents / f"{name}.json").read_text())
    assert document["name"] == name
    assert document["quick"]
    assert document["machine"]["cores"] >= 1
    assert set(document["versions"]) > {"stratalens", "numpy"}
    assert document["tables"]
    for table in document["tables"]:
        keys = {column["key"] for column in table["columns"]}
        first = table["columns"][0]["key"]
        names = [row[first] for row in table["rows"]]
        assert set(table["ours"]) <= set(names)
        assert table["baseline"] is None or table["baseline"] in names
        for row in table["rows"]:
            assert "missing" in row or set(row) <= keys
    measured = [cell for cell in cells(document) if isinstance(cell, dict)]
    assert measured or any(isinstance(cell, float) for cell in cells(document))
    assert all(cell["min"] <= cell["median"] <= cell["max"] and cell["n"] >= 1 for cell in measured)
    assert str(Path.home()) not in json.dumps(document), "a path of this machine in the document"


@pytest.mark.parametrize("name", [pytest.param("capture_gpu", marks=thorough), "analyses_gpu_probes"])
def test_gpu_benchmarks_also_run_on_the_cpu(name: str, tmp_path: Path) -> None:
    done = run(module_of(name), "--quick", *ON_THE_HOST[name], "--json", str(tmp_path / "document.json"))
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "document.json").read_text())
    assert document["tables"]
    assert not document["skipped"]
    assert document["aims"]


def test_a_peer_that_is_not_installed_has_a_row_with_the_reason(
    documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has a row for every format, measured or missing."""
    document = json.loads((documents / "store_query.json").read_text())
    monkeypatch.syspath_prepend(str(ROOT))
    peers = importlib.import_module("benchmarks.store.peer_formats").PEERS
    rows = {row["name"]: row for row in next(t for t in document["tables"] if t["key"] == "layer")["rows"]}
    assert {peer.name for peer in peers} <= set(rows)
    assert all("pip install" in row["missing"] for row in rows.values() if "missing" in row)


def test_the_page_shows_every_table_and_every_target(documents: Path, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    done = run("harness.page", "--results", str(documents), "--to", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "Measured with `--quick`" in text
    for path in documents.glob("*.json"):
        document = json.loads(path.read_text())
        for table in document["tables"]:
            assert f"#### {table['title']}" in text
        for target in document["aims"]:
            assert target["text"] in text


def test_the_page_in_the_documentation_matches_the_documents(tmp_path: Path) -> None:
    """The page and the README's table contain no manual edits, and no document is newer than they are."""
    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    written = (ROOT / "README.md").read_text()
    readme.write_text(re.sub(r"(benchmarks/harness/page.py -->\n).*?(<!-- /speed)", r"\1\2", written, flags=re.DOTALL))
    done = run("harness.page", "--to", str(page), "--readme", str(readme))
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (ROOT / "docs" / "benchmarks.md").read_text()
    assert readme.read_text() == written


def test_the_suite_continues_after_a_failure_and_reports_it(tmp_path: Path) -> None:
    """One benchmark exits with status 3; the suite exits with status 1 and names it."""
    listed = run("harness.run_all", "--list")
    assert set(SMALLEST) <= {line.split()[0] for line in listed.stdout.splitlines()}
    assert run("harness.run_all", "no_such_benchmark").returncode == 1
    broken = tmp_path / "benchmarks"
    broken.mkdir()
    for name in ("run_all.py", "document.py", "measure.py"):
        (broken / "harness").mkdir(exist_ok=True)
        (broken / "harness" / name).write_text((FOLDER / "harness" / name).read_text())
    (broken / "store").mkdir()
    head = '"""One."""\nfrom benchmarks.harness.document import Report, arguments, parse\n'
    head += 'TITLE, THEME = "One", "Store"\n'
    good = head + "with Report(__file__, parse(arguments(__doc__))) as report:\n    report.note('measured')\n"
    (broken / "store" / "bad.py").write_text(head + "raise SystemExit(3)\n")
    (broken / "store" / "good.py").write_text(good)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness.run_all"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "FAILED store_bad: ended with status 3" in done.stdout
    assert json.loads((broken / "results" / "store_good.json").read_text())["notes"] == ["measured"]
    assert sorted(p.name for p in (broken / "results").iterdir()) == ["store_good.json"]


def test_every_script_is_in_the_suite_or_states_the_reason() -> None:
    listed = {line.split()[0] for line in run("harness.run_all", "--list").stdout.splitlines()}
    outside = {
        path
        for path in FOLDER.glob("*/*.py")
        if f"{path.parent.name}_{path.stem}" not in listed and "argparse.ArgumentParser" in path.read_text()
    }
    silent = {
        str(path)
        for path in outside
        if path.parent.name not in ("harness", "peers") and "Not part of the suite" not in path.read_text()
    }
    assert silent == set()
