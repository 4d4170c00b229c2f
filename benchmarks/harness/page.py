"""Write the documentation's page of benchmarks and the README's table from the documents of the suite.

    python -m benchmarks.harness.page [--results benchmarks/results] [--to docs/benchmarks.md] [--readme README.md]

Only the docstrings of the scripts are written by hand. Every number, and every sentence with a number, is computed
from the documents.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import readme_table
from benchmarks.harness.document import FORMAT, THEMES, constants, number, shown

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
HEAD = """# Full tables of the benchmarks

`make bench` runs the benchmarks and writes documents, from which `benchmarks/harness/page.py` writes this page.
Competing methods alternate within one run, and ratios are taken round by round. Each median is followed by the smallest
and the largest value of its rounds. Compare ratios, not seconds.
"""


def load(folder: Path) -> list[dict[str, Any]]:
    """Load the documents of a folder, in the order of their themes."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    for document in documents:
        if document.get("format") != FORMAT:
            raise SystemExit(f"{document.get('name')}: format {document.get('format')}, this page reads {FORMAT}")
    return sorted(documents, key=lambda d: (THEMES.index(d["theme"]), d["name"]))


def page(documents: list[dict[str, Any]]) -> str:
    """Return the page as Markdown."""
    parts = [HEAD, *machines(documents), *summary(documents)]
    for theme in THEMES:
        members = [d for d in documents if d["theme"] == theme]
        parts += [f"## {theme}", *(part for d in members for part in section(d))] if members else []
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def setting(document: dict[str, Any]) -> str:
    """Describe the machine in one phrase."""
    m = document["machine"]
    return f"{m['cpu']}, {m['cores']} cores, {number(m['memory_gib'])} GiB, {m['os']}, Python {m['python']}"


def machines(documents: list[dict[str, Any]]) -> list[str]:
    """Return one line for each machine: its documents, dates and load."""
    lines = []
    for where in sorted({setting(d) for d in documents if d["tables"]}):
        members = [d for d in documents if setting(d) == where and d["tables"]]
        days = sorted({d["date"][:10] for d in members})
        busy = max(members, key=lambda d: d["machine"]["load"])
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        lines.append(
            f"Measured on {where}; {when}; {', '.join(d['name'] for d in members)}; load before the run at most "
            f"{number(busy['machine']['load'])} ({busy['name']})."
        )
    if any(d["quick"] for d in documents):
        names = ", ".join(d["name"] for d in documents if d["quick"])
        lines.append(f"**Measured with `--quick`, with smaller workloads and fewer rounds than intended: {names}.**")
    return lines


def summary(documents: list[dict[str, Any]]) -> list[str]:
    """Return the table of all targets, met and missed."""
    targets = [(d, target) for d in documents for target in d["aims"]]
    if not targets:
        return []
    met = sum(target["met"] for _, target in targets)
    rows = ["| | measured | target | |", "|---|---|---|---|"]
    for document, target in targets:
        bound = f"at least {target['at_least']:g}" if target["at_least"] is not None else ""
        bound = bound or f"at most {target['at_most']:g}"
        rows.append(
            f"| {document['name']}: {escape(target['text'])} | {shown(target['value'])} | {bound} | {verdict(target)} |"
        )
    return ["## Targets", f"{met} of {len(targets)} targets are met.", "\n".join(rows)]


def verdict(target: dict[str, Any]) -> str:
    """Return "met", or "missed" with the distance in percent of the target."""
    if target["met"]:
        return "met"
    bound = target["at_least"] if target["at_least"] is not None else target["at_most"]
    return f"missed by {abs(target['value']['median'] / bound - 1):.0%}" if bound else "missed"


def section(document: dict[str, Any]) -> list[str]:
    """Return the section of one benchmark."""
    script = BENCHMARKS / f"{document['name'].replace('_', '/', 1)}.py"
    about = constants(script)["__doc__"] if script.exists() else ""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    folders = sorted({f"{f['filesystem']} ({f['kind']})" for f in document["machine"]["folders"]})
    parts = [f"### {document['title']}", about]
    for table in document["tables"]:
        parts += [f"#### {table['title']}", grid(table), *([f"{table['note']}."] if table["note"] else [])]
        parts += comparison(table)
    parts += [" ".join(sentence(note) for note in document["notes"])] if document["notes"] else []
    parts += [f"Not measured: {why}." for why in document["skipped"]]
    files = f"; files on {' and '.join(folders)}" if folders else ""
    parts.append(f"{versions}{files}; {document['seconds']:.0f} s in all; `{' '.join(document['command'])}`")
    return parts


def grid(table: dict[str, Any]) -> str:
    """Return a table as Markdown, with the reason in the second column for a peer that is missing."""
    columns = table["columns"]
    head = [f"{c['label']} [{c['unit']}]" if c["unit"] else c["label"] for c in columns]
    numeric = [
        any(not isinstance(row.get(c["key"]), str) for row in table["rows"] if "missing" not in row) for c in columns
    ]
    lines = [head, ["--:" if right else "---" for right in numeric]]
    for row in table["rows"]:
        first = str(row[columns[0]["key"]])
        first = f"**{first}**" if first in table["ours"] else first
        if "missing" in row:
            lines.append([first, row["missing"], *[""] * (len(columns) - 2)])
        else:
            lines.append([first, *(shown(row.get(c["key"])) for c in columns[1:])])
    return "\n".join("| " + " | ".join(escape(cell) for cell in line) + " |" for line in lines)


def comparison(table: dict[str, Any]) -> list[str]:
    """List the methods that were faster or slower than ours in every round, with the ratio."""
    sentences = []
    for quantity, others in table["against"].items():
        groups = []
        for word, chosen in (
            ("faster", {n: c for n, c in others.items() if c["max"] < 1}),
            ("sometimes faster, sometimes slower", {n: c for n, c in others.items() if c["min"] <= 1 <= c["max"]}),
            ("slower", {n: c for n, c in others.items() if c["min"] > 1}),
        ):
            names = [f"{n} ({number(c['median'])})" for n, c in sorted(chosen.items(), key=lambda i: i[1]["median"])]
            groups += [f"{word}: {', '.join(names)}"] if names else []
        ours = table["ours"][0]
        sentences += [f"Seconds ({quantity}) relative to *{ours}*; {'; '.join(groups)}."] if groups else []
    return sentences


def sentence(text: str) -> str:
    """Add a full stop if the text has none."""
    return text if text.endswith((".", ":")) else f"{text}."


def escape(text: str) -> str:
    """Escape bars, which would end the cell, and replace line breaks."""
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results")
    parser.add_argument("--to", type=Path, default=PAGE)
    parser.add_argument("--readme", type=Path, help="default: the README of the project if --to is its page")
    options = parser.parse_args()
    documents = load(options.results)
    if not documents:
        raise SystemExit(f"no documents in {options.results}: run `make bench` first")
    options.to.write_text(page(documents), encoding="utf-8")
    print(f"{options.to}: {len(documents)} benchmarks")
    readme = options.readme or (README if options.to == PAGE else None)
    if readme is not None:
        readme.write_text(readme_table.put(readme.read_text(encoding="utf-8"), documents), encoding="utf-8")


if __name__ == "__main__":
    main()
