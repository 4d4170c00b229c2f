"""The live page in a real browser, served by the command itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.browser import NEEDS_CHROMIUM, chromium  # noqa: F401 - the fixture `browser`
from support.stores import make_store

EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=2</script>'

SOURCE = """(name) => [...Bokeh.documents].flatMap(d => [...d._all_models.values()])
    .find(m => m.name === name && m.data_source).data_source.data"""

PALE = """() => [...Bokeh.documents].flatMap(d => [...d._all_models.values()])
    .filter(m => m.selected && m.selected.indices && m.selected.indices.length).length"""
FONTS = """() => { const fonts = new Set(); const walk = (root) => { for (const e of root.querySelectorAll("*")) {
    if (e.shadowRoot) walk(e.shadowRoot);
    if (e.matches("h1, h2, p, label, select, button, td, li")) fonts.add(getComputedStyle(e).fontFamily); } };
  walk(document.body); return [...fonts]; }"""

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = 80
    labels = {
        "prompt": [f"Q: Who is e{i // 2:05d}? {EVIL if i == 0 else ''}" for i in range(rows)],
        "lonely": ["x"] * 2 + ["y"] * (rows - 2),  # a group of one entity cannot be divided
        "same": ["only"] * rows,
    }
    folder = tmp_path_factory.mktemp("explore")
    return make_store(
        folder / "run.zarr",
        4,
        3,
        rows,
        ("first", "last"),
        8,
        planted=2.0,
        prompts_per_entity=2,
        labels=labels,
        skip={"s1": range(rows)},
    )


@pytest.fixture(scope="module")
def address(path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "stratalens", "explore", str(path), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stderr is not None
        said = ""
        for line in server.stderr:
            said += line
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError(said)
        yield match.group()
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    assert server.returncode == 0


class Opened:
    """An open page with its requests and its console messages."""

    def __init__(self, browser: Any, address: str, width: int = 1366, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)  # a busy machine
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.goto(address)
        self.says("rows, resid_post at stage s3, layer 2, token last")

    def says(self, text: str) -> Any:
        """Wait until the page shows a text."""
        element = self.page.get_by_text(text).first
        element.wait_for(timeout=60_000)
        return element

    def column(self, renderer: str, column: str) -> list[Any]:
        values: list[Any] = self.page.evaluate(f"([r, c]) => Array.from(({SOURCE})(r)[c])", [renderer, column])
        return values

    def until(self, renderer: str, column: str, test: str) -> None:
        """Wait until a JavaScript test of a column `v` holds."""
        self.page.wait_for_function(f"() => {{ const v = ({SOURCE})('{renderer}')['{column}']; return {test}; }}")

    def remote(self) -> list[str]:
        local = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")
        return [url for url in self.asked if not url.startswith(local)]

    def slide(self, name: str, key: str) -> None:
        self.page.get_by_role("slider", name=name).focus()
        self.page.keyboard.press(key)

    def drag(self, share: tuple[float, float, float, float]) -> None:
        """Draw a box over shares of the figure's canvas."""
        self.page.locator(".bk-Figure").first.scroll_into_view_if_needed()
        box = self.page.locator(".bk-Figure canvas").first.bounding_box()
        x0, y0, x1, y1 = share
        mouse = self.page.mouse
        mouse.move(box["x"] + box["width"] * x0, box["y"] + box["height"] * y0)
        mouse.down()
        mouse.move(box["x"] + box["width"] * x1, box["y"] + box["height"] * y1, steps=6)
        mouse.up()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Opened]:
    it = Opened(browser, address)
    yield it
    assert it.complaints == []
    assert it.remote() == []
    it.context.close()


def test_sliders_move_the_rows_and_the_words(opened: Opened) -> None:
    opened.until("points", "x", "v.length === 40")  # half of 80
    before = opened.column("points", "x")
    opened.slide("layer", "ArrowLeft")
    opened.says("rows, resid_post at stage s3, layer 1, token last")
    opened.until("points", "x", f"Math.abs(v[0] - {before[0]}) > 1e-6 && v.length === 40")
    opened.slide("token", "Home")
    opened.says("rows, resid_post at stage s3, layer 1, token first")
    assert opened.page.get_by_role("slider", name="token").get_attribute("aria-valuetext") == "first"


def test_a_box_selects_rows_and_a_row_points_back(opened: Opened) -> None:
    opened.drag((0.12, 0.02, 0.9, 0.85))
    opened.says("rows selected; statistics of resid_post at stage s3, layer 2, token last")
    table = opened.page.locator(".x-rows tbody tr")
    table.nth(5).wait_for()
    rows = table.count()
    opened.until("rings", "x", f"v.length === {rows}")  # the figure and the table need not change in one message
    assert opened.page.evaluate(PALE) == 0  # other points and the rings keep their colour
    button = table.nth(1).get_by_role("button")
    button.focus()
    opened.page.keyboard.press("Enter")  # by keyboard alone
    opened.page.locator(".x-rows tr.highlighted").wait_for()
    opened.until("pointed", "text", "v.length === 1")
    assert opened.column("pointed", "text") == [button.inner_text()]
    opened.slide("layer", "Home")
    opened.says("rows selected; statistics of resid_post at stage s3, layer 0, token last")
    opened.until("rings", "x", f"v.length === {rows}")  # the same rows, where they are at this layer
    assert table.count() == rows
    assert opened.page.locator(".x-rows thead tr", has_text="mean of all").count() == 1
    with opened.page.expect_download() as download:
        opened.page.get_by_text("Save as labels").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert text.splitlines()[0] == "prompt_id,prompt,selection"
    assert len(re.findall(r",selected$", text, re.MULTILINE)) == rows
    opened.says("Add it to the store: stratalens label")
    opened.page.wait_for_url("**rows=80.**")
    opened.page.reload()  # the box is part of the address
    opened.says(f"{rows} rows selected; statistics of resid_post at stage s3, layer 0, token last")
    opened.until("rings", "x", f"v.length === {rows}")


def test_rows_are_found_by_their_text_and_never_become_markup(opened: Opened) -> None:
    opened.page.get_by_role("textbox", name="Find rows").fill("window.pwned")
    opened.page.keyboard.press("Enter")
    opened.says("1 row selected")
    assert "onerror" in opened.page.locator(".x-rows td.prompt").inner_text()
    assert opened.page.evaluate("window.pwned") is None
    opened.page.get_by_role("textbox", name="Find rows").fill("nothing like it")
    opened.page.keyboard.press("Enter")
    opened.says("No row contains 'nothing like it'.")
    opened.page.get_by_role("button", name="Clear selection").click()
    opened.says("Draw a box or a lasso")


def test_a_reload_and_a_link_show_the_same_view(opened: Opened, browser: Any, address: str) -> None:
    opened.slide("layer", "Home")
    opened.says("rows, resid_post at stage s3, layer 0, token last")
    opened.page.wait_for_url("**layer=0**")
    opened.page.reload()
    opened.says("rows, resid_post at stage s3, layer 0, token last")
    link = "?site=resid_post&by=nothing&stage=s2&layer=1&token=%3Cb%3E"  # unknown names change nothing
    other = browser.new_page()
    other.goto(address + link)
    other.get_by_text("rows, resid_post at stage s2, layer 1, token last").first.wait_for(timeout=60_000)
    other.close()


def test_axes_map_and_groups_by_keyboard(browser: Any, address: str) -> None:
    it = Opened(browser, address)
    it.page.get_by_label("Axes").select_option(label="linear discriminants (LDA)")
    it.page.wait_for_url("**axes=lda**")
    it.page.get_by_label("Axes").select_option(label="two directions")
    it.page.get_by_label("Vertical direction").select_option(label="s3 v the rest")
    it.page.wait_for_url("**y=s3+v+the+rest**")
    label = """() => Bokeh.documents.flatMap(d => [...d._all_models.values()])
        .some(m => m.axis_label && m.axis_label.startsWith('direction s3 v the rest'))"""
    it.page.wait_for_function(label)
    it.page.reload()
    it.page.wait_for_function(label, timeout=60_000)

    cell = it.page.get_by_role("button", name="layer 2, token last:")
    assert cell.get_attribute("aria-current") == "true"
    cell.focus()
    it.page.keyboard.press("ArrowLeft")
    it.page.keyboard.press("ArrowUp")
    here = it.page.get_by_role("button", name="layer 1, token first: not computed")
    assert here.evaluate("(e) => e.getRootNode().activeElement === e")
    it.page.keyboard.press("Enter")
    it.says("rows, resid_post at stage s3, layer 1, token first")
    done = it.page.get_by_role("button", name=re.compile(r"layer 1, token first: [01]\.\d\d"))
    done.wait_for(timeout=60_000)
    assert done.get_attribute("aria-current") == "true"

    group = it.page.get_by_role("button", name="s2", exact=True)
    group.focus()
    it.page.keyboard.press("Enter")
    it.until("points", "group", "v.length > 0 && [...v].every(g => g === 's2')")
    assert group.get_attribute("aria-pressed") == "true"
    it.page.keyboard.press("Enter")
    it.until("points", "group", "[...v].some(g => g === 's1')")

    it.context.grant_permissions(["clipboard-read", "clipboard-write"])
    it.page.get_by_role("textbox", name="Find rows").fill("r00000")
    it.page.keyboard.press("Enter")
    it.says("10 rows selected")
    it.page.get_by_role("button", name="Copy ids").click()
    it.says("Copied 10 ids.")
    assert it.page.evaluate("navigator.clipboard.readText()") == "\n".join(f"r00000{i}" for i in range(10))
    it.page.reload()  # the search is part of the address
    it.says("10 rows selected")
    assert (it.complaints, it.remote()) == ([], [])
    it.context.close()


def test_a_lost_connection_is_shown(browser: Any, address: str) -> None:
    sockets: list[Any] = []

    def connect(route: Any) -> None:
        sockets.append(route)
        route.connect_to_server()

    page = browser.new_page()
    page.route_web_socket(re.compile("ws://"), connect)
    page.goto(address)
    page.get_by_text("rows, resid_post at stage s3").first.wait_for(timeout=60_000)
    assert not page.locator("#lost").is_visible()
    for route in sockets:
        route.close()
    page.locator("#lost").wait_for(state="visible")
    assert "stratalens explore" in page.locator("#lost").inner_text()
    page.close()


def test_probes_are_computed_shown_and_kept(opened: Opened, browser: Any, address: str) -> None:
    opened.page.get_by_role("button", name="Compute", exact=True).click()
    opened.says("Done: 3 of 3.")
    opened.says("Probe accuracy by layer")
    sentence = opened.says("s1 v s3: accuracy").inner_text()
    assert re.search(r"accuracy (0\.[89]\d|1\.00) \(95 % .* at layer 2", sentence)
    opened.page.get_by_role("textbox", name="Find rows").fill("e00003")
    opened.page.keyboard.press("Enter")
    opened.says("rows selected")
    opened.page.locator(".x-rows thead", has_text="score s1 v s3").wait_for()
    other = Opened(browser, address)  # another reader gets the same results
    other.says("Probe accuracy by layer")
    other.page.get_by_role("button", name="Compute", exact=True).click()
    other.says("All results are computed already")
    other.context.close()


def test_a_computation_ends_within_a_second(opened: Opened) -> None:
    opened.page.get_by_label("Analysis").select_option(label="order (projection)")
    opened.page.get_by_label("Where").select_option(label="all layers and all stages")
    opened.page.get_by_role("button", name="Compute", exact=True).click()
    opened.says("Computing")
    opened.page.get_by_role("button", name="Cancel").click()
    status = opened.says("done; these results are kept")
    assert re.match(r"Cancelled: \d of 12 done", status.inner_text())
    opened.page.get_by_role("button", name="Compute", exact=True, disabled=False).wait_for()


def test_errors_are_shown_in_the_page_and_it_continues(opened: Opened) -> None:
    groups = opened.page.get_by_label("Groups (label column)")
    assert "same (1)" in groups.locator("option[disabled]").all_inner_texts()
    groups.select_option(label="lonely (2)")
    alert = opened.page.get_by_role("alert")
    alert.wait_for()
    assert "too few entities in 'lonely'" in alert.inner_text()
    groups.select_option(label="trained_stage (3)")
    opened.says("40 of 80 rows, resid_post at stage s3, layer 2, token last")
    opened.slide("stage", "Home")
    opened.says("rows, resid_post at stage untrained")
    opened.slide("stage", "ArrowRight")
    assert "no row is left at stage s1" in opened.says("'resid_post'").inner_text()


NAMELESS = """() => { const bad = [];
  const walk = (root) => { for (const e of root.querySelectorAll("*")) {
    if (e.matches("input, select, button, progress")) {
      const label = e.getAttribute("aria-label") || e.title || e.textContent.trim() || [...(e.labels || [])].length;
      if (!label) bad.push(e.outerHTML.slice(0, 200)); }
    if (e.shadowRoot) walk(e.shadowRoot); } };
  walk(document); return bad; }"""
DIM = """() => { const bad = [];
  const rgb = (s) => { const n = (s.match(/[0-9.]+/g) || []).map(Number);
    return n.length < 3 || (n.length > 3 && n[3] < 1) ? null : n.slice(0, 3); };
  const lum = (c) => { const f = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
  const up = (e) => e.parentElement || (e.getRootNode() instanceof ShadowRoot ? e.getRootNode().host : null);
  const walk = (root) => { for (const e of root.querySelectorAll("*")) {
    if (e.shadowRoot) walk(e.shadowRoot);
    const text = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!text || !e.getClientRects().length || e.closest(".bk-Figure, [disabled]")) continue;
    if (["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(e.tagName)) continue;
    let back = null;
    for (let p = e; p && !back; p = up(p)) back = rgb(getComputedStyle(p).backgroundColor);
    const a = lum(rgb(getComputedStyle(e).color) || [0, 0, 0]), b = lum(back || [255, 255, 255]);
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push([e.tagName, e.className, e.textContent.slice(0, 40), ratio]); } };
  walk(document.body); return bad; }"""


@pytest.mark.parametrize(("width", "scheme"), [(1366, "dark"), (390, "light"), (390, "dark")])
def test_names_contrast_and_width(browser: Any, address: str, width: int, scheme: str) -> None:
    it = Opened(browser, address, width, scheme)
    it.page.get_by_role("textbox", name="Find rows").fill("e0000")
    it.page.keyboard.press("Enter")
    it.says("rows selected")
    assert it.page.evaluate(NAMELESS) == []
    assert len(it.page.evaluate(FONTS)) == 1
    assert it.page.evaluate(DIM) == []
    assert it.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert it.page.locator("html").get_attribute("data-theme") == scheme
    it.until("points", "color", "v.length > 0")
    light = it.column("points", "color")
    it.page.get_by_role("button", name=re.compile("(Light|Dark) page")).click()
    it.until("points", "color", f"v[0] !== '{light[0]}'")
    assert it.page.evaluate(DIM) == []
    levels = it.page.evaluate("() => [...document.querySelectorAll('h1,h2')].map(e => +e.tagName[1])")
    assert levels == [1, 2, 2, 2, 2]
    assert it.page.locator("html").get_attribute("lang") == "en"
    assert (it.complaints, it.remote()) == ([], [])
    it.context.close()
