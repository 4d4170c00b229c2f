"""Modules that an import loads, and import cycles between modules and between packages."""

import json
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import stratalens
from support.paths import ROOT

grimp = pytest.importorskip("grimp")
TORCH = {"torch", "transformers", "transformer_lens"}
HEAVY = {"xarray", "zarr", "pandas", "dask", "sklearn", "scipy", "holoviews", "numcodecs", "ml_dtypes"}


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    ["stratalens", "stratalens.store", "stratalens.analyses", "stratalens.analyses.suite", "stratalens.plugin.cli.app"],
)
def test_an_import_loads_no_torch(module: str) -> None:
    assert not TORCH & loaded_by(f"import {module}")


@pytest.mark.parametrize("module", ["stratalens", "stratalens.store", "stratalens.store.errors", "stratalens.analyses"])
def test_import_is_light(module: str) -> None:
    assert not (HEAVY | TORCH) & loaded_by(f"import {module}")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["capture", "--help"], ["analyze", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    code = f"""
import sys
from stratalens.plugin.cli.app import main
sys.argv = ["stratalens", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code
"""
    assert not (HEAVY | TORCH) & loaded_by(code)


def test_every_public_name_resolves() -> None:
    assert {name for name in stratalens.__all__ if getattr(stratalens, name, None) is None} == set()


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Imports of every module, including imports inside functions and under TYPE_CHECKING."""
    built = grimp.build_graph("stratalens", cache_dir=None)
    return {module: built.find_modules_directly_imported_by(module) for module in built.modules}


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    """Return the names of one import cycle, or an empty list."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_two_modules_import_each_other(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 150
    assert find_cycle(graph) == []


def test_no_two_packages_import_each_other(graph: dict[str, set[str]]) -> None:
    between: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for importer, targets in graph.items():
        for target in targets:
            one, other = importer.split("."), target.split(".")
            shared = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
            if shared is not None:  # otherwise one is the package of the other
                container = ".".join(one[:shared])
                between[container][one[shared]].add(other[shared])
    assert {container: names for container, imports in between.items() if (names := find_cycle(imports))} == {}


def test_a_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_the_graph_contains_every_module(graph: dict[str, set[str]]) -> None:
    modules = {
        ".".join(("stratalens", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for folder in ("plugin", "store", "analyses")
        for path in Path(ROOT / folder).rglob("*.py")
    }
    assert modules <= set(graph)
