"""The card of a shared store: a README.md that says what it holds and how to open it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from stratalens.store.display import human_bytes
from stratalens.store.errors import join_names
from stratalens.store.state.info import state_in_words

CARD, FIGURE = "README.md", "figure.png"

_PAPER = "arXiv:2509.14223"


def card_text(
    facts: Mapping[str, Any],
    url: str,
    *,
    title: str | None = None,
    citation: str | None = None,
    license: str | None = None,
    figure_code: str = "",
) -> str:
    """Write the card of a store in Markdown, with the header that the hub reads.

    Args:
        facts: result of `info`.
        url: address of the shared copy.
        title: heading; the name of the store by default.
        citation: how to cite the data; None says how to cite the software.
        license: identifier of a license, such as "cc-by-4.0"; None states none.
        figure_code: line of Python that draws the figure of the card; "" if it has none.
    """
    name = title or re.sub(r"@[^/]*", "", url.rstrip("/")).rsplit("/", 1)[-1].removesuffix(".zarr")
    header: dict[str, Any] = {"tags": ["stratalens", "activations", "interpretability"], "viewer": False}
    header["pretty_name"] = name
    if license:
        header["license"] = license
    recorded, dims = facts["recorded_with"], facts["dims"]
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=True, allow_unicode=True).strip(),
        "---",
        "",
        f"# {_plain(name)}",
        "",
        f"Activations of {_plain(recorded.get('model') or 'a model')}, recorded with stratalens: {dims['stage']} "
        f"stages, {dims['layer']} layers, {dims['entity']} prompts, {dims['token']} positions, "
        f"{human_bytes(facts['bytes'])}. The store is {state_in_words(facts)}.",
        "",
        "```python",
        "import stratalens as sl",
        "",
        f'ds = sl.open_store("{url}")  # nothing is downloaded but what you read',
        "```",
        "",
    ]
    if figure_code:
        lines += [f"![{_plain(name)}]({FIGURE})", "", "```python", figure_code, "```", ""]
    lines += ["## Variables", "", "| name | dims | dtype | what |", "|---|---|---|---|"]
    for variable, entry in facts["variables"].items():
        if entry["kind"] != "flag":
            sizes = ", ".join(f"{dim} {size}" for dim, size in entry["dims"].items())
            lines.append(f"| `{variable}` | {sizes} | {entry['dtype']} | {_plain(entry['hook'] or entry['doc'])} |")
    positions = join_names(facts["tokens"], 10)
    lines += ["", f"Layers {join_names(facts['layers'], 40)}; positions {_plain(positions)}.", ""]
    lines += ["## Labels", "", "| column | type |", "|---|---|"]
    lines += [f"| `{_plain(column)}` | {dtype} |" for column, dtype in facts["labels"].items()]
    lines += ["", "## Stages", "", "| order | stage | weights |", "|---|---|---|"]
    for stage in facts["stages"][:200]:
        lines.append(f"| {stage['order']} | {_plain(stage['name'])} | `{stage['fingerprint'][:24]}` |")
    versions = ", ".join(f"{_plain(key)} {_plain(value)}" for key, value in recorded.items() if isinstance(value, str))
    lines += ["", "## Provenance", "", f"Recorded with: {versions}.", "", "## Citation", ""]
    lines += [citation or f"Cite these data by their address, {url}, and stratalens ({_PAPER} describes its study)."]
    return "\n".join(lines) + "\n"


def _plain(text: object) -> str:
    """Return text on one line, without the characters that would break a table or start HTML."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
