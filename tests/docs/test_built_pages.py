"""Pages that `make docs` has built load nothing from another server and fit a telephone.

Skipped where nothing was built. STRATALENS_PAGES names another folder of built pages than docs/_build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from support.browser import CHROMIUM, FLAGS
from support.paths import DOCS

LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc\s*=\s*["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<link\b(?=[^>]*\brel\s*=\s*["']?(?:stylesheet|preload|icon|shortcut))[^>]*\bhref\s*=\s*["']?(?:https?:)?//[^\s"'>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^\s"')]+|url\(\s*["']?(?:https?:)?//[^\s"')]+""",
    re.IGNORECASE,
)
SERVERS = re.compile(r"https?://(?:cdn\.|unpkg\.|fonts\.|cdnjs\.)[\w./-]+", re.IGNORECASE)  # also inside of scripts

BUILT = Path(os.environ.get("STRATALENS_PAGES", DOCS / "_build"))
NEEDS_PAGES = pytest.mark.skipif(not (BUILT / "index.html").is_file(), reason="not built: make docs")
TELEPHONE = {"width": 390, "height": 844}
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND"


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


@NEEDS_PAGES
def test_built_pages_load_nothing_from_another_server() -> None:
    files = [path for suffix in ("html", "css") for path in BUILT.rglob(f"*.{suffix}") if "live" not in path.parts]
    assert len(files) > 20
    asked = {str(path.relative_to(BUILT)): requests_of(path.read_text(encoding="utf-8")) for path in files}
    assert {name: urls for name, urls in asked.items() if urls} == {}


def visit(page: Any, path: Path) -> dict[str, Any]:
    """Open a page and return what went wrong with it."""
    requests: list[str] = []
    errors: list[str] = []

    def on_request(request: Any) -> None:
        requests.append(request.url)

    def on_error(error: Any) -> None:
        errors.append(str(error))

    page.on("request", on_request)
    page.on("pageerror", on_error)
    page.goto(path.as_uri())
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.remove_listener("request", on_request)
    page.remove_listener("pageerror", on_error)
    outside = [url for url in requests if not url.startswith(("file:", "data:", "blob:", "about:"))]
    problems = {"requests": outside, "errors": errors, "wider than the screen by": wide}
    return {name: value for name, value in problems.items() if value}


@NEEDS_PAGES
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
def test_built_pages_open_on_a_telephone_without_a_network() -> None:
    """No request leaves the machine, no script fails, and no page is wider than the screen."""
    from playwright.sync_api import sync_playwright

    pages = [path for path in sorted(BUILT.rglob("*.html")) if not {"live", "_static"} & set(path.parts)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, NO_NETWORK])
        page = browser.new_page(viewport=TELEPHONE)
        seen = {str(path.relative_to(BUILT)): visit(page, path) for path in pages}
        browser.close()
    assert {name: problems for name, problems in seen.items() if problems} == {}


@NEEDS_PAGES
def test_every_name_has_a_page_with_its_source_and_every_executed_page_a_notebook() -> None:
    names = sorted((BUILT / "_generated" / "reference").glob("*.html"))
    assert len(names) > 50
    without = [path.name for path in names if 'class="viewcode-link' not in path.read_text(encoding="utf-8")]
    assert without == []
    quickstart = (BUILT / "quickstart.html").read_text(encoding="utf-8")
    assert 'href="notebooks/quickstart.ipynb"' in quickstart
    assert "copybutton.js" in quickstart
    links = [(page, re.findall(r'href="([^"]+\.ipynb)" download', page.read_text(encoding="utf-8"))) for page in
             BUILT.rglob("*.html")]  # fmt: skip
    assert sum(len(targets) for _, targets in links) > 15
    assert [target for page, targets in links for target in targets if not (page.parent / target).is_file()] == []


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
