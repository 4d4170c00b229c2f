"""Pages that `make docs` has built load nothing from another server; skipped where nothing was built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.paths import DOCS

LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc\s*=\s*["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<link\b(?=[^>]*\brel\s*=\s*["']?(?:stylesheet|preload|icon|shortcut))[^>]*\bhref\s*=\s*["']?(?:https?:)?//[^\s"'>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^\s"')]+|url\(\s*["']?(?:https?:)?//[^\s"')]+""",
    re.IGNORECASE,
)
SERVERS = re.compile(r"https?://(?:cdn\.|unpkg\.|fonts\.|cdnjs\.)[\w./-]+", re.IGNORECASE)  # also inside of scripts

BUILT = DOCS / "_build"


def requests_of(page: str) -> list[str]:
    """Return what a page would load from another server; links that a reader may follow do not count."""
    return [*LOADED.findall(page), *SERVERS.findall(page)]


@pytest.mark.parametrize(
    "page",
    [
        '<script async src="https://example.org/a.js"></script>',
        "<img alt=x src='//example.org/a.png'>",
        '<link href="https://example.org/a.css" rel="stylesheet">',
        "<style>@import 'https://example.org/a.css';</style>",
        "<style>a {background: url(//example.org/a.png)}</style>",
        '<script>load("https://cdn.bokeh.org/bokeh/release/bokeh.min.js")</script>',
    ],
)
def test_each_kind_of_request_is_seen(page: str) -> None:
    assert len(requests_of(page)) == 1


def test_links_and_local_files_are_no_requests() -> None:
    page = '<a href="https://zarr.dev">zarr</a><script src="_static/a.js"></script><img src="data:image/png;base64,AA">'
    assert requests_of(page + '<link rel="canonical" href="https://example.org/">') == []


@pytest.mark.skipif(not (BUILT / "index.html").is_file(), reason="the documentation is not built: make docs")
def test_built_pages_load_nothing_from_another_server() -> None:
    files = [path for suffix in ("html", "css") for path in BUILT.rglob(f"*.{suffix}")]
    assert len(files) > 20
    asked = {str(path.relative_to(BUILT)): requests_of(path.read_text(encoding="utf-8")) for path in files}
    assert {name: urls for name, urls in asked.items() if urls} == {}


def test_every_page_of_the_first_page_exists() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = [page for page in re.findall(r"\]\(([\w/.-]+\.md)\)", index) if not page.startswith("_generated")]
    assert len(pages) > 10
    assert [page for page in pages if not Path(DOCS / page).is_file()] == []


def test_the_citation_has_the_version_of_the_project() -> None:
    root = DOCS.parent
    (version,) = re.findall(r'^version = "(.*)"', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"version = {{{version}}}" in (DOCS / "citation.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
