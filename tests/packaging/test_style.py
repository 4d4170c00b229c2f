"""Style rules for names and docstrings that a syntax tree can check."""

from __future__ import annotations

import ast
import re

import pytest

from support.paths import ROOT

# Participles that say where a value came from and not what it is.
VAGUE = {"found", "held", "given", "made", "told", "kept"}  # codespell:ignore told
MODULES = sorted(path for folder in ("plugin", "store", "analyses", "src") for path in (ROOT / folder).rglob("*.py"))
MODULES = [path for path in MODULES if not path.is_relative_to(ROOT / "src") or len(path.relative_to(ROOT).parts) == 3]


def test_the_check_covers_the_product() -> None:
    assert len(MODULES) > 150


def names_of(tree: ast.Module) -> dict[str, int]:
    """Return every assigned name and parameter with a line."""
    names = {
        node.id: node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return names | {node.arg: node.lineno for node in ast.walk(tree) if isinstance(node, ast.arg)}


@pytest.mark.parametrize("folder", ["plugin", "store", "analyses"])
def test_no_name_is_a_bare_participle(folder: str) -> None:
    vague = {
        f"{path.relative_to(ROOT)}:{line}": name
        for path in MODULES
        if path.is_relative_to(ROOT / folder)
        for name, line in names_of(ast.parse(path.read_text(encoding="utf-8"))).items()
        if name in VAGUE
    }
    assert vague == {}


@pytest.mark.parametrize("folder", ["plugin", "store", "analyses"])
def test_no_docstring_names_another_file(folder: str) -> None:
    """Only the docstring of a package lists files; other lists would become outdated."""
    named = {}
    for path in MODULES:
        if path.is_relative_to(ROOT / folder) and path.name != "__init__.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    for name in re.findall(r"\b\w+\.py\b", ast.get_docstring(node) or ""):
                        named[f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"] = name
    assert named == {}
