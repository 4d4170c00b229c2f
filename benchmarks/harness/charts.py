"""Draw five charts against other tools and write the page that shows them, from the documents of the suite.

    python -m benchmarks.harness.charts FOLDER [--results benchmarks/results]

The documentation's build calls `write`. Every number and every sentence with a number is computed from the documents.
A chart has all methods that its table compares, also those that are faster than stratalens.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.document import number
from benchmarks.harness.page import BENCHMARKS, load, setting

WIDTH, ROW = 5.6, 0.36  # inches
COLORS = {
    "light": {"ours": "#542788", "peer": "#8a8f98", "text": "#222222", "muted": "#767676"},
    "dark": {"ours": "#b9a3e3", "peer": "#7c828d", "text": "#eceef2", "muted": "#9aa0aa"},
}


@dataclass(frozen=True)
class Chart:
    """One chart: a column of a table of a document.

    Attributes:
        key: name of the files.
        title: heading of the section.
        about: what was measured, in a sentence.
        document: name of the document.
        table: key of the table.
        column: key of the column.
        unit: unit of the column.
        ours: our rows to show, with the label of each.
        bounds: rows that are no tool, such as the forward pass alone, with the label of each.
        hidden: rows that are not shown, because they are variants of other rows.
        more_is_better: True for a speed.
        scale: "linear" or "log".
    """

    key: str
    title: str
    about: str
    document: str
    table: str
    column: str
    unit: str
    ours: dict[str, str]
    bounds: dict[str, str]
    hidden: str = r"(?!)"
    more_is_better: bool = False
    scale: str = "linear"


CHARTS = (
    Chart(
        "probes",
        "Fit probes",
        "5,400 logistic probes on activations of SmolLM2-135M: all pairs of six groups, 30 layers, two tokens, five "
        "folds and a fit to all rows. A part was measured and scaled up. lmprobe's `sweep_layers` has no folds.",
        "analyses_peers",
        "peers-real",
        "wall",
        "s",
        {"stratalens, logistic": "stratalens"},
        {},
        hidden=r"stratalens, (ridge|lda|diffmeans)",
        scale="log",
    ),
    Chart(
        "record",
        "Record activations",
        "Two tokens of 64 prompts at all 30 layers of SmolLM2-135M, flushed to disk. stratalens writes checksums and "
        "labels and can resume.",
        "capture_peers",
        "two",
        "wall",
        "s",
        {"stratalens": "stratalens, no statistics", "stratalens, all statistics": "stratalens, all statistics"},
        {"forward pass only": "forward pass alone", "hooked forward pass only": "hooked forward pass alone"},
    ),
    Chart(
        "layer",
        "Read one layer of all prompts",
        "3,072 prompts, two tokens, from files that are not in memory. stratalens verifies every byte that it reads.",
        "store_query",
        "layer",
        "cold",
        "ms",
        {"stratalens": "stratalens", "stratalens, chunks=None": "stratalens, chunks=None"},
        {"raw file": "raw file"},
        hidden=r"stratalens's files|stratalens, chunks=None, verify=False",
        scale="log",
    ),
    Chart(
        "prompt",
        "Read one prompt at all layers",
        "Files of stratalens are laid out for reading a layer. This is the opposite: 30 layers of one prompt, from "
        "files that are not in memory. The first read of a chunk verifies the whole chunk.",
        "store_query",
        "entity",
        "cold",
        "ms",
        {"stratalens": "stratalens", "stratalens, chunks=None, verify=False": "stratalens, chunks=None, verify=False"},
        {"raw file": "raw file"},
        hidden=r"stratalens's files|stratalens, chunks=None$",
        scale="log",
    ),
    Chart(
        "write",
        "Write arrays",
        "268 MB in blocks of 67 MB from memory to disk, flushed.",
        "store_write",
        "write-disk",
        "speed",
        "MB/s",
        {"stratalens": "stratalens"},
        {"raw file": "raw file", "raw file with crc32c": "raw file with checksum"},
        hidden=r"stratalens, buffers filled before",
        more_is_better=True,
    ),
)


@dataclass(frozen=True)
class Bar:
    """One row of a chart: label, kind ("ours", "peer" or "bound"), median, smallest and largest value."""

    label: str
    kind: str
    median: float
    low: float
    high: float


def bars_of(chart: Chart, documents: Sequence[dict[str, Any]]) -> tuple[list[Bar], dict[str, Any]]:
    """Return the rows of a chart, best first, and the document that they come from."""
    document = next(d for d in documents if d["name"] == chart.document)
    table = next(t for t in document["tables"] if t["key"] == chart.table)
    bars = []
    for row in table["rows"]:
        name, value = row["name"], row.get(chart.column)
        if value is None or re.match(chart.hidden, name):
            continue
        kind = "ours" if name in chart.ours else "bound" if name in chart.bounds else "peer"
        label = {**chart.ours, **chart.bounds}.get(name, name)
        bars.append(Bar(label, kind, value["median"], value["min"], value["max"]))
    return sorted(bars, key=lambda bar: bar.median, reverse=chart.more_is_better), document


def sentence(chart: Chart, bars: Sequence[Bar]) -> str:
    """Compare our first row with the fastest other tool."""
    first = next(iter(chart.ours.values()))
    ours = next(bar for bar in bars if bar.label == first)
    peers = [bar for bar in bars if bar.kind == "peer"]
    faster = [bar for bar in peers if (bar.median > ours.median) == chart.more_is_better]
    start = f"**{ours.label}: {number(ours.median)} {chart.unit}** ({number(ours.low)} to {number(ours.high)})"
    best = f"{peers[0].label} ({number(peers[0].median)} {chart.unit})"
    if not faster:
        return f"{start}. All {len(peers)} others are slower; the fastest of them is {best}."
    verb = "is" if len(faster) == 1 else "are"
    return f"{start}. {len(faster)} of {len(peers)} others {verb} faster, most of all {best}."


def draw(chart: Chart, bars: Sequence[Bar], target: Path, theme: str) -> None:
    """Draw one chart as SVG.

    A linear axis has bars that start at 0, a logarithmic axis has points. The label is above, the value at the end.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colors = COLORS[theme]
    style = {"svg.fonttype": "none", "svg.hashsalt": chart.key, "font.family": "sans-serif", "font.size": 9.5}
    height = ROW * len(bars) + 0.35
    most, least = max(bar.high for bar in bars), min(bar.low for bar in bars)
    start = 0.0 if chart.scale == "linear" else least / 1.6
    with mpl.rc_context({**style, "text.color": colors["text"]}):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0.01, 0.28 / height, 0.98, 1 - 0.32 / height))
        axes.set_xscale(chart.scale)
        for place, bar in enumerate(bars):
            color = colors["muted" if bar.kind == "bound" else bar.kind]
            fill = "none" if bar.kind == "bound" else color
            weight = "bold" if bar.kind == "ours" else "normal"
            if chart.scale == "linear":
                axes.barh(place, bar.median, height=0.3, color=fill, edgecolor=color, linewidth=1)
            else:
                axes.plot([start, bar.median], [place, place], color=color, linewidth=0.6)
                axes.plot(bar.median, place, "o", color=color, markerfacecolor=fill, markersize=6.5)
            axes.plot([bar.low, bar.high], [place, place], color=colors["text"], linewidth=1)
            axes.annotate(
                bar.label,
                (start, place),
                (1, 5),
                textcoords="offset points",
                va="bottom",
                weight=weight,
                color=colors["ours" if bar.kind == "ours" else "text"],
                style="italic" if bar.kind == "bound" else "normal",
            )
            axes.annotate(
                f"{number(bar.median)} {chart.unit}",
                (bar.high, place),
                (6, 0),
                textcoords="offset points",
                va="center",
                weight=weight,
                fontsize=8.5,
            )
        axes.set_ylim(len(bars) - 0.6, -0.95)
        axes.set_xlim(start, most * 1.22 if chart.scale == "linear" else most * (most / start) ** 0.24)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(colors["muted"])
        axes.set_yticks([])
        axes.tick_params(colors=colors["muted"], which="both", labelsize=8)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.xaxis.set_minor_formatter("")
        figure.savefig(target, transparent=True, metadata={"Date": None})


def section(chart: Chart, documents: Sequence[dict[str, Any]], folder: Path) -> str:
    """Draw one chart for both themes and return its section of the page."""
    bars, document = bars_of(chart, documents)
    for theme in COLORS:
        draw(chart, bars, folder / f"{chart.key}-{theme}.svg", theme)
    says = sentence(chart, bars)
    better = "further right is faster" if chart.more_is_better else "further left is faster"
    scale = ", the axis is logarithmic" if chart.scale == "log" else ""
    words = f"{chart.title}. {says.replace('**', '')}"
    images = "\n".join(
        f"```{{image}} {chart.key}-{theme}.svg\n:alt: {words}\n:class: only-{theme} chart\n```" for theme in COLORS
    )
    anchor = re.sub(r"[^\w\- ]", "", document["title"].lower()).replace(" ", "-")
    link = f"[Full table](../../benchmarks.md#{anchor})"
    return f"## {chart.title}\n\n{says}\n\n{images}\n\n{chart.about} {better.capitalize()}{scale}. {link}.\n"


def write(folder: Path, results: Path = BENCHMARKS / "results") -> Path:
    """Draw all charts into `folder` and write the page `index.md` there."""
    documents = load(results)
    folder.mkdir(parents=True, exist_ok=True)
    used = [next(d for d in documents if d["name"] == chart.document) for chart in CHARTS]
    machines = sorted({setting(document) for document in used})
    start = (
        "# Benchmarks\n\nFive tasks, each done with stratalens and with the tools that people use for it, also where "
        "those are faster. Charts show medians of alternating rounds; thin lines run from the smallest to the largest "
        "round. Outlined marks are no tools but limits, such as the forward pass alone.\n\n"
        f"Measured on {' and '.join(machines)}. Compare ratios, not seconds. [The full tables](../../benchmarks.md) "
        "have all benchmarks, with versions, commands and missed targets.\n"
    )
    page = folder / "index.md"
    page.write_text("\n".join([start, *(section(chart, documents, folder) for chart in CHARTS)]), encoding="utf-8")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results")
    options = parser.parse_args()
    print(write(options.folder, options.results))


if __name__ == "__main__":
    main()
