"""Write docs/architectures.md from the documents of both TransformerLens lines.

    python -m benchmarks.architectures.page [--to docs/architectures.md]

Not part of the suite of benchmarks. Every statement on the page comes from a document.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.architectures.run_all import RESULTS, read_document
from benchmarks.architectures.tiny_models import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
HEAD = """# Verified architectures

{summary}

`python -m benchmarks.architectures.run_all` makes a tiny random model of every text architecture that TransformerLens
and transformers know. It records all sites with short names, four prompts each, with padding on the right (`capture`)
and on the left (`Recorder`), with and without BOS. It compares them at every token with `run_with_cache` on the same
batch. {versions}

## How to read the tables

- **bit for bit**, **rounding**: number of short-named sites that equal `run_with_cache` in every bit, or up to 1e-4 of
  the largest value. `result` is not counted; it fires after `set_use_attn_result(True)` only.
- **refused**: sites that the model lists but that cannot be recorded, with the reason. (a) The hook does not fire in a
  forward pass. (b) The shape differs between layers; record layers of one shape at a time. (c) The value has no
  position axis. (d) The hook fires more than once in a pass.
- **Hugging Face**: largest difference of the logits and of the input of every block from a copy of the model in plain
  transformers, relative to the largest value. A large number is a difference between TransformerLens and transformers.
- **batch size**: largest difference of a site between one row at a time and four rows of equal length together. "none"
  means equal bit for bit.
- **left padding**: whether tokens on left padding change the values: equal, rounding, or different. stratalens pads on
  the right.
- **output statistics**: "next token" with the largest difference of the loss from the plain model in float64; "none"
  where the output does not predict the next token, as in encoders, and in encoder-decoders, whose encoder reads the
  whole prompt.
- **check**: whether `sl.check` finds all values as the model computes them, or else which check fails.

Where the two lines differ, a cell has both.
"""
REASONS = {
    "did not fire": "a",
    "differs in shape": "b",
    "no position axis": "c",
    "times in one forward pass": "d",
}
COLUMNS = (
    "bit for bit",
    "rounding",
    "refused",
    "Hugging Face",
    "batch size",
    "left padding",
    "output statistics",
    "check",
)
Row = dict[str, Any]


def cells(row: Row) -> list[str]:
    """Return the cells of one architecture and one line, in the order of COLUMNS."""
    if row["status"] != "recorded":
        return [row["status"], *[""] * (len(COLUMNS) - 1)]
    verdicts = {v: [s for s, site in row["sites"].items() if site["verdict"] == v] for v in ("equal", "rounding")}
    different = [s for s, site in row["sites"].items() if site["verdict"] == "different"]
    rounding = [f"{site} ({row['sites'][site]['difference']:.0e})" for site in verdicts["rounding"]]
    wrong = [f"**different: {site}**" for site in different]
    refused = [f"{site} ({reason_letter(reason)})" for site, reason in row["refused"].items()]
    statistics = row["output_statistics"] + (f" ({number(row['loss'])})" if "loss" in row else "")
    return [
        str(len(verdicts["equal"])),
        ", ".join(rounding + wrong),
        ", ".join(refused),
        number(row["hugging_face"]),
        number(row["batch_size"]),
        ", ".join(row["left_padding"]) or "not checkable",
        statistics,
        _failed_checks(row["check"]),
    ]


def _failed_checks(check: str | list[str]) -> str:
    """Return "ok", or the checks that fail."""
    if isinstance(check, str):
        return check
    return ", ".join(f"**{name}**" for name in sorted({failure.partition(": ")[0] for failure in check}))


def reason_letter(reason: str) -> str:
    """Return the letter of a reason on the page, or the reason."""
    return next((letter for text, letter in REASONS.items() if text in reason), reason)


def number(value: float | str) -> str:
    """Format a difference."""
    return "none" if value == 0 else value if isinstance(value, str) else f"{value:.0e}"


def merge(rows: Sequence[tuple[str, Row | None]]) -> list[str]:
    """Return the cells of an architecture over the lines that have it; a cell has both where they differ."""
    by_line = [(line, cells(row)) for line, row in rows if row is not None]
    merged = []
    recorded = [line for line, row in rows if row is not None and row["status"] == "recorded"]
    for column in range(len(COLUMNS)):
        texts = {line: own[column] for line, own in by_line if column == 0 or line in recorded}
        if len(set(texts.values())) == 1:
            merged.append(next(iter(texts.values())))
        else:
            merged.append("; ".join(f"{line}: {text or '-'}" for line, text in texts.items()))
    if len(by_line) == 1 < len(rows):
        merged[0] += f" ({by_line[0][0]} only)"
    return merged


def page(documents: dict[str, dict[str, Any]]) -> str:
    """Return the page.

    Args:
        documents: line of TransformerLens, such as "4.3", -> its document.
    """
    rows = {line: document["architectures"] for line, document in documents.items()}
    names = sorted({name for own in rows.values() for name in own}, key=str.lower)
    parts = [HEAD.format(summary=_summary(rows), versions=_versions(documents))]
    for family in FAMILIES:
        members = [n for n in names if any(own.get(n, {}).get("family") == family for own in rows.values())]
        recorded = [n for n in members if any(own.get(n, {}).get("status") == "recorded" for own in rows.values())]
        if recorded:
            table = ([name, *merge([(line, own.get(name)) for line, own in rows.items()])] for name in recorded)
            parts.append(f"## {family[0].upper()}{family[1:]}\n\n{_table(('architecture', *COLUMNS), table)}")
    failed = [
        [name, line, own[name]["status"], own[name].get("reason", "").replace("|", "\\|")]
        for name in names
        for line, own in rows.items()
        if name in own and own[name]["status"] != "recorded"
    ]
    if failed:
        parts.append(f"## Not recorded\n\n{_table(('architecture', 'line', 'who', 'message'), failed)}")
    parts.append(_not_run(documents))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _summary(rows: dict[str, dict[str, Row]]) -> str:
    sentences = []
    for line, own in rows.items():
        recorded = [row for row in own.values() if row["status"] == "recorded"]
        verdicts = Counter(site["verdict"] for row in recorded for site in row["sites"].values())
        paragraph = (
            f"With TransformerLens {line}, stratalens records {len(recorded)} of {len(own)} text architectures. Of "
            f"{sum(verdicts.values())} sites, {verdicts['equal']} equal `run_with_cache` bit for bit, "
            f"{verdicts['rounding']} within rounding, and {verdicts['different']} differ."
        )
        wrong = sorted(name for name, row in own.items() if row["status"] == "recorded" and row["check"] != "ok")
        if wrong:
            paragraph += (
                f" `sl.check` says that values are wrong in {', '.join(wrong)}. `capture` refuses "
                f"{'them' if len(wrong) > 1 else 'it'}."
            )
        sentences.append(paragraph)
    return "\n\n".join(sentences)


def _versions(documents: dict[str, dict[str, Any]]) -> str:
    lists = (", ".join(f"{name} {v}" for name, v in d["versions"].items()) for d in documents.values())
    return f"Versions: {'; '.join(lists)}."


def _not_run(documents: dict[str, dict[str, Any]]) -> str:
    reasons: dict[str, set[str]] = {}
    for document in documents.values():
        for name, reason in document["not_run"].items():
            reasons.setdefault(reason, set()).add(name)
    lines = [
        f"- {reason}: {', '.join(sorted(names, key=lambda name: (name.lower(), name)))}."
        for reason, names in sorted(reasons.items())
    ]
    return "## Not tried\n\nTransformerLens also knows these names:\n\n" + "\n".join(lines)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *map(list, rows))]
    return "\n".join(lines)


def read_documents(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Read the documents of all lines, the newest first; the key is the version without its last part."""
    documents = [read_document(path) for path in sorted(folder.glob("*.json"), reverse=True)]
    return {document["versions"]["transformer-lens"].rpartition(".")[0]: document for document in documents}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=PAGE)
    parser.parse_args().to.write_text(page(read_documents()))


if __name__ == "__main__":
    main()
