"""Names and docstrings of the product, as far as a syntax tree shows them."""

from __future__ import annotations

import ast
import re

import pytest

from support.paths import ROOT

# Participles that say where a value came from and not what it is.
VAGUE = {"found", "held", "given", "made", "told", "kept"}
MODULES = sorted(path for folder in ("plugin", "store", "analyses", "src") for path in (ROOT / folder).rglob("*.py"))
MODULES = [path for path in MODULES if not path.is_relative_to(ROOT / "src") or len(path.relative_to(ROOT).parts) == 3]


def test_the_product_is_looked_at() -> None:
    assert len(MODULES) > 150


def names_of(tree: ast.Module) -> dict[str, int]:
    """Every name that is bound to a value, with a line."""
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
    """The docstring of a package draws the map of its folder; every other mention would be out of date one day."""
    named = {}
    for path in MODULES:
        if path.is_relative_to(ROOT / folder) and path.name != "__init__.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    for name in re.findall(r"\b\w+\.py\b", ast.get_docstring(node) or ""):
                        named[f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"] = name
    assert named == {}
