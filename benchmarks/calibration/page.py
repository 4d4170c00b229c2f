"""Write docs/calibration.md from the documents of the cells.

    python -m benchmarks.calibration.page [--results benchmarks/results/calibration] [--to docs/calibration.md]

Not part of the suite of benchmarks. Every number on the page comes from a document; a cell without one is listed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.calibration.cells import AIMS, COVERAGE, EXACT_LEVEL, FALSE, LEVEL, MET, MISSED, POWER, UNCLEAR, Cell
from benchmarks.calibration.runner import RESULTS, all_cells, read_document
from benchmarks.harness.document import number

PAGE = Path(__file__).parents[2] / "docs" / "calibration.md"
HEAD = """# Calibration

How often are the numbers of stratalens wrong? This page answers by simulation. Each cell draws many independent data
sets whose truth is known, runs one analysis on each, and counts errors.

## How to read the tables

- **Level.** The data has no effect. The level is the share of data sets with p <= 0.05. A test is valid if this share
  is at most 0.05; the aim of 0.060 allows for the noise of the simulation. A test without ties, as that of the AUC,
  should also come close to 0.05. Accuracy takes few values, so its level is below 0.05: the test is valid and finds
  less. Where an analysis has no p-value, the level is the share of data sets in which its 95 % interval leaves out the
  value without an effect.
- **Power.** The data has an effect. The power is the share of data sets with p <= 0.05. Its size depends on the planted
  effect, so compare it between measures and not between tables. We set no target.
- **Coverage.** The share of 95 % intervals that hold the truth. The truth is the expected value of the procedure with
  this number of entities. For probes of two groups and ordinal probes it is exact: the mean, over all data sets, of the
  true quality of the fitted probes. Elsewhere it is the mean of the estimates over all data sets.
- **False verdicts.** Statistics such as the loss explain the groups, and the activations depend on the group through
  these statistics alone. A control that claims an effect is wrong.

Each rate has its Monte Carlo standard error. A verdict is *met*, *missed*, or *unclear*: outside the aim by less than
two standard errors, so that more data sets are needed to tell. The aims are:

| rate | aim |
|---|---|
| level of a test without ties | {exact} |
| level of other tests | at most {level} |
| coverage of 95 % intervals | at least {coverage} |
| false verdicts of a control | at most {false} |

`python -m benchmarks.calibration.run_all` repeats the simulation. With `--unclear --datasets 1600` it runs the unclear
cells again. `python -m benchmarks.calibration.page` writes this page. The data sets of one call share labels, splits
and permutations, and differ in everything else.
"""
TITLES = {
    LEVEL: "p-values without an effect, and their power",
    COVERAGE: "Intervals",
    FALSE: "Verdicts of the controls under six confounds",
}
Document = dict[str, Any]


def rate(value: float, error: float | None = None) -> str:
    """Format a rate, with its Monte Carlo error.

    >>> rate(0.0475, 0.0106), rate(1.0)
    ('0.048 ± 0.011', '1.000')
    """
    text = f"{value:.3f}"
    return text if error is None else f"{text} ± {rate(error)}"


def bounds(aim: Sequence[float] | None) -> str:
    """Describe an aim.

    >>> bounds((0.035, 0.06)), bounds((0.0, 0.06)), bounds((0.93, 1.0)), bounds(None)
    ('0.035 to 0.060', 'at most 0.060', 'at least 0.930', '')
    """
    if aim is None:
        return ""
    low, high = aim
    if low <= 0:
        return f"at most {rate(high)}"
    return f"at least {rate(low)}" if high >= 1 else f"{rate(low)} to {rate(high)}"


def verdict(row: Document) -> str:
    """Return the verdict of a measure, in bold where the aim is not met."""
    word = row["verdict"] or ""
    return word if word in ("", MET) else f"**{word}**"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(results: Path) -> str:
    """Return the page as Markdown."""
    cells = [cell for _, cell in all_cells()]
    documents = {cell.name: document for cell in cells if (document := read_document(results, cell.name))}
    aims = {"exact": bounds(EXACT_LEVEL), **{k.split()[0]: rate(limit(k)) for k in (LEVEL, COVERAGE, FALSE)}}
    parts = [HEAD.format(**aims), *machines(list(documents.values())), *summary(cells, documents)]
    for kind, section in ((LEVEL, levels), (COVERAGE, coverages), (FALSE, verdicts)):
        body = section([c for c in cells if c.name in documents], documents)
        parts += [f"## {TITLES[kind]}", *body] if body else []
    missing = [cell for cell in cells if cell.name not in documents]
    if missing:
        counts = Counter(cell.analysis for cell in missing)
        names = ", ".join(f"{analysis} ({count})" for analysis, count in counts.items())
        parts += ["## Not run", f"{len(missing)} of {len(cells)} cells have no result yet: {names}."]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def limit(kind: str) -> float:
    """Return the bound of an aim that can be missed."""
    low, high = AIMS[kind]
    return low if high >= 1 else high


def machines(documents: Sequence[Document]) -> list[str]:
    """Describe the machines, versions, dates and the number of data sets."""
    if not documents:
        return []
    lines = []
    for setting in sorted({_setting(d) for d in documents}):
        own = [d for d in documents if _setting(d) == setting]
        days = sorted({d["date"][:10] for d in own})
        counts = sorted({d["datasets"] for d in own})
        lines.append(
            f"Measured on {setting}; {days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}; {len(own)} cells of "
            f"{counts[0] if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'} data sets; "
            f"{number(sum(d['seconds'] for d in own) / 60)} minutes of one core in all."
        )
    codes = {d["code"] for d in documents}
    if len(codes) > 1:
        lines.append(
            f"**The cells come from {len(codes)} versions of the analyses.** "
            "`python -m benchmarks.calibration.run_all --again` runs all of them again."
        )
    if any(d["quick"] for d in documents):
        lines.append(
            "**Measured with `--quick`: so few data sets show that the cells run, and say nothing of the rates.**"
        )
    return lines


def _setting(document: Document) -> str:
    m, versions = document["machine"], document["versions"]
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{m['cpu']}, {m['cores']} cores, {m['os']}, Python {m['python']}; {words}"


def summary(cells: Sequence[Cell], documents: dict[str, Document]) -> list[str]:
    """Count the verdicts, and list every measure that does not meet its aim."""
    judged = [(documents[c.name], row) for c in cells if c.name in documents for row in documents[c.name]["measures"]]
    judged = [(document, row) for document, row in judged if row["verdict"]]
    if not judged:
        return []
    counts = {word: sum(row["verdict"] == word for _, row in judged) for word in (MET, UNCLEAR, MISSED)}
    parts = ["## Summary", f"Of {len(judged)} rates, {counts[MET]} meet their aim, {counts[UNCLEAR]} are unclear and "
             f"{counts[MISSED]} miss it."]  # fmt: skip
    rows = [
        [document["analysis"], document["setting"], f"{document['kind']}, {row['measure']}",
         rate(row["rate"], row["error"]), bounds(row["aim"]), verdict(row)]
        for word in (MISSED, UNCLEAR) for document, row in judged if row["verdict"] == word
    ]  # fmt: skip
    return [*parts, table(["analysis", "data", "rate", "measured", "aim", ""], rows)] if rows else parts


def _by_analysis(cells: Sequence[Cell], kind: str) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.kind == kind:
            groups.setdefault(cell.analysis, []).append(cell)
    return groups


def _refusal(document: Document) -> list[list[str]]:
    if not document["refused"]:
        return []
    return [[document["setting"], f"refused: {document['refusal']}"]]


def levels(cells: Sequence[Cell], documents: dict[str, Document]) -> list[str]:
    """Return the tables of level and power."""
    parts = []
    powers = {(c.analysis, c.setting): documents[c.name] for c in cells if c.kind == POWER}
    head = ["data", "measure", "level", "power", "aim of the level", ""]
    for analysis, members in _by_analysis(cells, LEVEL).items():
        rows: list[list[str]] = []
        for cell in members:
            document = documents[cell.name]
            planted = powers.get((cell.analysis, cell.setting), {"measures": []})
            power = {row["measure"]: rate(row["rate"], row["error"]) for row in planted["measures"]}
            rows += [[*line, "", "", "", ""] for line in _refusal(document)]
            rows += [
                [cell.setting, row["measure"], rate(row["rate"], row["error"]), power.get(row["measure"], ""),
                 bounds(row["aim"]), verdict(row)]
                for row in document["measures"]
            ]  # fmt: skip
        parts += [f"### {analysis}: level", table(head, rows)]
    return parts


def coverages(cells: Sequence[Cell], documents: dict[str, Document]) -> list[str]:
    """Return the tables of coverage."""
    parts = []
    head = ["data", "measure", "coverage", "truth below, above", "truth", "mean estimate", "mean width", ""]
    for analysis, members in _by_analysis(cells, COVERAGE).items():
        rows: list[list[str]] = []
        for cell in members:
            document = documents[cell.name]
            rows += [[*line, "", "", "", "", "", ""] for line in _refusal(document)]
            for row in document["measures"]:
                known = (
                    [f"{rate(row['truth_below'])}, {rate(row['truth_above'])}"] if "truth" in row else ["no interval"]
                )
                known += [f"{row[key]:.3f}" if key in row else "" for key in ("truth", "value", "width")]
                rows.append([cell.setting, row["measure"], rate(row["rate"], row["error"]), *known, verdict(row)])
        parts += [f"### {analysis}: coverage", table(head, rows)]
    return parts


def verdicts(cells: Sequence[Cell], documents: dict[str, Document]) -> list[str]:
    """Return one table: a row for each control and claim, a column for each confound, and the power."""
    groups = _by_analysis(cells, FALSE)
    if not groups:
        return []
    settings = {cell.setting.partition(": ")[0]: cell.setting.partition(": ")[2] for c in groups.values() for cell in c}
    power_cells = [c for c in cells if c.kind == POWER and c.name.startswith("verdict-")]
    powers = {c.analysis: documents[c.name] for c in power_cells}
    rows = []
    for analysis, members in groups.items():
        by_setting = {cell.setting.partition(": ")[0]: documents[cell.name] for cell in members}
        claims = dict.fromkeys(row["measure"] for d in by_setting.values() for row in d["measures"])
        for claim in claims:
            line = []
            for name in settings:
                document = by_setting.get(name, {"measures": []})
                row = next((r for r in document["measures"] if r["measure"] == claim), None)
                text = "" if row is None else rate(row["rate"], row["error"])
                line.append(f"**{text}**" if row is not None and row["verdict"] == MISSED else text)
            planted = powers.get(analysis, {"measures": []})["measures"]
            power = next((rate(r["rate"], r["error"]) for r in planted if r["measure"] == claim), "")
            words = claim.removeprefix("claims an effect").strip(", ")
            rows.append([f"{analysis}, {words}" if words else analysis, *line, power])
    notes = "\n".join(f"- {name}: {words}." for name, words in settings.items())
    return [
        f"Share of data sets in which a control claims an effect. Bold rates miss the aim, {bounds(AIMS[FALSE])}. The "
        "last column is the power, on another data set: "
        f"{power_cells[0].setting if power_cells else ''}. Claims scored on unmatched rows are shown for comparison.",
        table(["control", *settings, "power"], rows),
        notes,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--to", type=Path, default=PAGE)
    options = parser.parse_args()
    options.to.write_text(page(options.results), encoding="utf-8")
    print(options.to)


if __name__ == "__main__":
    main()
