"""Write the JSON document of a benchmark: tables with medians and spreads, and targets.

A script that defines TITLE and THEME at its top is a benchmark of the suite. It looks like this:

    TITLE, THEME = "Reading one layer", "Store"

    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parse(parser, quick={"rounds": 2})            # defaults of --quick
    with Report(__file__, options, "zarr", "h5py", folders=[options.folder]) as report:
        runs = alternate({"raw": raw, "ours": ours}, options.rounds)
        report.timings("layer", "One layer", runs, "raw", ours=["ours"], amount=25.2, missing={"h5py": "not installed"})
        report.target("speed of ours relative to raw", [a.wall / b.wall for a, b in zip(...)], at_least=0.85)

The document has the keys format, name, title, theme, date, seconds, quick, command, settings, machine, versions,
tables, aims (the targets), skipped and notes. A table has the keys key, title, columns (key, label, unit), rows,
baseline, ours, note and against. A cell is a text, a number, None, or {"median", "min", "max", "n"}. A row with the
key "missing" says why a peer could not be measured.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.harness.measure import Timing, machine, module_of, versions_of

Cell = str | int | float | bool | None | dict[str, float]
FORMAT = 1
THEMES = ("Capture", "Store", "Analyses", "Growth", "Limits", "Scale-out", "GPU")


def name_of(script: Path) -> str:
    """Return the name of a benchmark, from its folder and file.

    >>> name_of(Path("benchmarks/store/read.py"))
    'store_read'
    """
    return f"{script.parent.name}_{script.stem}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the cell of repeated measurements: median, min, max, n."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def ratios(runs: Sequence[Timing], base: Sequence[Timing], unit: str = "wall") -> list[float]:
    """Return seconds of `runs` relative to `base`, round by round; `unit` is "wall" or "cpu"."""
    pairs = zip(runs, base, strict=True)
    return [getattr(a, unit) / getattr(b, unit) for a, b in pairs if getattr(b, unit) > 0]


def versus(runs: Mapping[str, Sequence[Timing]], ours: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the times of all others relative to the first of ours, round by round."""
    return {name: spread(ratios(turns, runs[ours[0]])) for name, turns in runs.items() if ours and name not in ours}


@dataclass(frozen=True)
class Column:
    """A column: key in the rows, heading, unit ("" for no unit)."""

    key: str
    label: str
    unit: str = ""


@dataclass
class Table:
    """Rows of cells under columns.

    Attributes:
        ours: Names (cells of the first column) of our rows.
        baseline: Name of the row that is the denominator of the ratios.
        against: For each quantity, the times of all other rows relative to our first row (see `versus`).
    """

    key: str
    title: str
    columns: list[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)
    baseline: str | None = None
    ours: list[str] = field(default_factory=list)
    note: str = ""
    against: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def add(self, **cells: Cell | Sequence[float]) -> None:
        """Add a row; a list of numbers becomes its median and spread."""
        self.rows.append({k: spread(v) if isinstance(v, (list, tuple)) else v for k, v in cells.items()})

    def text(self) -> str:
        """Return the table as text for a terminal."""
        heads = [f"{c.label} [{c.unit}]" if c.unit else c.label for c in self.columns]
        lines = [heads]
        for row in self.rows:
            if "missing" in row:
                lines.append([str(row[self.columns[0].key]), row["missing"]])
            else:
                lines.append([shown(row.get(c.key)) for c in self.columns])
        wide = [max(len(line[i]) for line in lines if len(line) == len(heads)) for i in range(len(heads))]
        wide[0] = max(len(line[0]) for line in lines)
        parts = [f"\n{self.title}" + (f" (ratios to: {self.baseline})" if self.baseline else "")]
        for line in lines:
            rest = [cell.rjust(w) for cell, w in zip(line[1:], wide[1:], strict=False)]
            parts.append("  ".join([line[0].ljust(wide[0]), *rest]).rstrip())
        return "\n".join([*parts, *([f"({self.note})"] if self.note else [])])


def shown(cell: Cell) -> str:
    """Return a cell as text: three significant digits, and median (min to max) of repeated measurements."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, dict):
        if cell["n"] == 1:
            return number(cell["median"])
        return f"{number(cell['median'])} ({number(cell['min'])} to {number(cell['max'])})"
    return cell if isinstance(cell, str) else number(cell)


def number(value: float) -> str:
    """Format with three significant digits, as whole numbers from 100 on, with thousands separators.

    >>> [number(v) for v in (0, 0.012345, 1.5, 12.3456, 1234.5, 7, 2e9)]
    ['0', '0.0123', '1.50', '12.3', '1,234', '7', '2,000,000,000']
    """
    if isinstance(value, int) or value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = 2 if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 4
    return f"{value:.{1 if abs(value) >= 10 else digits}f}"


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the two options of every benchmark; `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="run smaller workloads and fewer rounds, in seconds instead of minutes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the document to this file")
    return parser


def parse(parser: argparse.ArgumentParser, quick: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """Parse the command line; with --quick, `quick` replaces the defaults."""
    if "--quick" in sys.argv[1:]:
        parser.set_defaults(**(quick or {}))
    return parser.parse_args()


def constants(script: Path) -> dict[str, Any]:
    """Read the docstring and the top-level constants of a script, such as TITLE and THEME, without running it."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    values: dict[str, Any] = {"__doc__": ast.get_docstring(tree) or ""}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            target = node.targets[0]
            if isinstance(target, ast.Name):
                values[target.id] = value
            elif isinstance(target, ast.Tuple) and all(isinstance(e, ast.Name) for e in target.elts):
                values |= {e.id: v for e, v in zip(target.elts, value, strict=True) if isinstance(e, ast.Name)}
    return values


class Report:
    """The document of one run; prints tables as they are added and writes the JSON after a successful run."""

    def __init__(
        self, script: str, options: argparse.Namespace, *packages: str, folders: Sequence[str | Path] = ()
    ) -> None:
        about = constants(Path(script))
        self.path: Path | None = options.json
        self.tables: list[Table] = []
        self._start = time.perf_counter()
        hidden = {"quick", "json", "child"}
        settings = {k: _plain(v) for k, v in vars(options).items() if k not in hidden}
        self.document: dict[str, Any] = {
            "format": FORMAT,
            "name": name_of(Path(script)),
            "title": about["TITLE"],
            "theme": about["THEME"],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": bool(options.quick),
            "command": ["python", "-m", module_of(Path(script)), *_public(sys.argv[1:])],
            "settings": settings,
            "machine": machine(folders),
            "versions": versions_of("stratalens", "numpy", *packages),
            "aims": [],
            "skipped": [],
            "notes": [],
        }

    def __enter__(self) -> Report:
        known, versions = self.document["machine"], self.document["versions"]
        print(
            f"# {known['cpu']}, {known['cores']} cores, {known['memory_gib']:.0f} GiB, {known['os']}, Python "
            f"{known['python']}; {', '.join(f'{k} {v}' for k, v in versions.items())}; load {known['load']:.1f}"
        )
        for folder in known["folders"]:
            print(f"# files on {folder['filesystem']} ({folder['kind']})")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.path is not None:
            self.document["seconds"] = round(time.perf_counter() - self._start, 1)
            self.document["tables"] = [asdict(table) for table in self.tables]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.document, indent=1, ensure_ascii=False, default=_plain, allow_nan=False)
            self.path.write_text(text + "\n", encoding="utf-8")

    def add(self, table: Table) -> Table:
        """Print a complete table and add it to the document."""
        self.tables.append(table)
        print(table.text(), flush=True)
        return table

    def timings(
        self, key: str, title: str, runs: Mapping[str, Sequence[Timing]], baseline: str, *,
        ours: Sequence[str] = (), amount: float | Mapping[str, float] | None = None, unit: str = "MB", note: str = "",
        extra: Mapping[str, Mapping[str, Any]] | None = None, missing: Mapping[str, str] | None = None,
    ) -> Table:  # fmt: skip
        """Add a table of timings from `alternate`, with ratios to `baseline` taken round by round.

        Args:
            key: Key of the table in the document.
            title: Title of the table.
            runs: Timings by name.
            baseline: Name in `runs` that is the denominator of the ratios.
            ours: Names of our rows.
            amount: Amount of `unit`, one for all or by name; adds a column of speed.
            unit: Unit of `amount`.
            note: Sentence below the table.
            extra: Further columns as {label: {name: cell}}.
            missing: Reason why a peer could not be measured, by name.
        """
        columns = [Column("name", ""), Column("wall", "wall", "s"), Column("cpu", "CPU", "s")]
        columns += [Column("speed", "speed", f"{unit}/s")] if amount is not None else []
        columns += [Column("ratio", "time, ratio"), Column("cpu_ratio", "CPU, ratio")]
        columns += [Column(label, *_unit(label)) for label in extra or {}]
        table = Table(key, title, columns, baseline=baseline, ours=list(ours), note=note)
        table.against = {"wall": versus(runs, ours)} if ours else {}
        for name, turns in runs.items():
            cells: dict[str, Any] = {"name": name, "wall": [t.wall for t in turns], "cpu": [t.cpu for t in turns]}
            if amount is not None:
                size = amount[name] if isinstance(amount, Mapping) else amount
                cells["speed"] = [size / t.wall for t in turns]
            cells["ratio"] = ratios(turns, runs[baseline])
            cells["cpu_ratio"] = ratios(turns, runs[baseline], "cpu") or None
            table.add(**cells, **{label: values.get(name) for label, values in (extra or {}).items()})
        for name, why in (missing or {}).items():
            table.add(name=name, missing=why)
        return self.add(table)

    def target(
        self, text: str, values: Sequence[float] | float, *, at_least: float | None = None, at_most: float | None = None
    ) -> bool:
        """Record whether the median of `values` meets a target; `text` names the quantity."""
        cell = spread(values if isinstance(values, Sequence) else [values])
        met = (at_least is None or cell["median"] >= at_least) and (at_most is None or cell["median"] <= at_most)
        self.document["aims"].append(
            {"text": text, "value": cell, "at_least": at_least, "at_most": at_most, "met": met}
        )
        bound = f"at least {at_least}" if at_least is not None else f"at most {at_most}"
        print(f"{text}: {shown(cell)}; target {bound}: {'met' if met else 'missed'}", flush=True)
        return met

    def skip(self, why: str) -> None:
        """Record a benchmark that was not measured, and the reason (no GPU, weights not installed)."""
        self.document["skipped"].append(why)
        print(f"skipped: {why}", flush=True)

    def note(self, text: str) -> None:
        """Add a sentence computed from the measurements."""
        self.document["notes"].append(text)
        print(text, flush=True)


def _unit(label: str) -> tuple[str, str]:
    """Split a label like "peak [MiB]" into heading and unit."""
    head, _, unit = label.partition(" [")
    return head, unit.rstrip("]")


def _plain(value: Any) -> Any:
    """Convert a value for JSON; reduce a path to its name, because folders differ between machines."""
    if isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute()):
        return Path(value).name
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value


def _public(words: Sequence[str]) -> list[str]:
    """Return the command line without the --json option."""
    public, skip = [], False
    for word in words:
        if skip or word == "--json":
            skip = word == "--json"
        elif not word.startswith("--json="):
            public.append(_plain(word))
    return public
