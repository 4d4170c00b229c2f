"""HTML of a store for notebooks, and byte counts as text. All text is escaped, because names come from user data."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_CELL = "text-align:left;padding:1px 12px 1px 0"


def overview(
    title: str,
    facts: Iterable[tuple[str, object]],
    grid: tuple[Sequence[str], Mapping[str, Sequence[object]]] | None = None,
    details: Mapping[str, Iterable[tuple[str, object]]] | None = None,
) -> str:
    """Return HTML with a heading, a list of facts, a table and collapsed lists.

    Args:
        title: heading.
        facts: pairs of name and value.
        grid: column names, and a dict from row name to values.
        details: dict from heading to pairs of name and value; collapsed until a click.

    Example:
        >>> overview("<b>", [("stages", 3)])[:41]
        '<div><strong>&lt;b&gt;</strong><table><tr'
    """
    elements = [f"<strong>{_text(title)}</strong>", _pairs(facts)]
    if grid is not None:
        columns, rows = grid
        head = "".join(f'<th scope="col" style="{_CELL}">{_text(name)}</th>' for name in ("", *columns))
        body = "".join(
            f'<tr><th scope="row" style="{_CELL}">{_text(name)}</th>'
            + "".join(f'<td style="{_CELL}">{_text(value)}</td>' for value in values)
            + "</tr>"
            for name, values in rows.items()
        )
        elements.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    for heading, pairs in (details or {}).items():
        elements.append(f"<details><summary>{_text(heading)}</summary>{_pairs(pairs)}</details>")
    return f"<div>{''.join(elements)}</div>"


def store_html(facts: Mapping[str, Any]) -> str:
    """Return HTML of the dict that `stratalens.store.info` returns."""
    from stratalens.store.state.info import percent, state_in_words

    sites = facts["sites"]
    rows = [
        ("dims", ", ".join(f"{name} {size:,}" for name, size in facts["dims"].items())),
        ("tokens", ", ".join(map(str, facts["tokens"][:12])) + (", …" if len(facts["tokens"]) > 12 else "")),
        ("size", f"{human_bytes(facts['bytes'])} in {facts['files']:,} files"),
        *((f"site {n}", f"{facts['variables'][n]['dtype']}, {facts['variables'][n]['hook']}") for n in sites),
        ("labels", ", ".join(facts["labels"])),
    ]
    grid = {
        stage["name"]: [percent(facts["completeness"][stage["name"]][site]) for site in sites]
        for stage in facts["stages"]
    } | {name: ["0%" for _ in sites] for name in facts["lacking_stages"]}
    details: dict[str, list[tuple[str, object]]] = {
        "Weights of the stages": [(s["name"], s["fingerprint"]) for s in facts["stages"]],
        "Provenance (must match)": sorted(facts["provenance"].items()),
        "Recorded with": sorted(facts["recorded_with"].items()),
    }
    return overview(
        f"{facts['path']}: {state_in_words(facts)}", rows, ([f"{s} recorded" for s in sites], grid), details
    )


def human_bytes(count: float) -> str:
    """Format a byte count in binary units.

    >>> human_bytes(3 * 2**30)
    '3.0 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _pairs(pairs: Iterable[tuple[str, object]]) -> str:
    rows = "".join(
        f'<tr><th style="{_CELL}">{_text(name)}</th><td style="{_CELL}">{_text(value)}</td></tr>'
        for name, value in pairs
    )
    return f"<table>{rows}</table>"


def _text(value: object) -> str:
    text = str(value)
    return escape(text if len(text) <= 400 else text[:399] + "…")


def in_notebook() -> bool:
    """Return whether this process is the kernel of a Jupyter notebook; does not import IPython."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
