"""A store and what was verified of it, described for a person: what `stratalens info` and `verify` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stratalens.console import emit_table, emit_text, human_bytes
from stratalens.store.info import percent, state_in_words


def show_info(facts: dict[str, Any]) -> None:
    """Print what `stratalens.store.info` found, for a person."""
    dims = ", ".join(f"{name} {size}" for name, size in facts["dims"].items())
    emit_table(
        f"{facts['path']}: {state_in_words(facts)}",
        ["what", "value"],
        [
            ("dims", dims),
            ("tokens", ", ".join(map(str, facts["tokens"]))),
            ("size", f"{human_bytes(facts['bytes'])} in {facts['files']} files"),
            ("rows a block", facts["block_size"]),
            ("labels", ", ".join(facts["labels"])),
            ("format", facts["format"]),
        ],
    )
    emit_table(
        "sites",
        ["site", "dtype", "dims", "hook", "size"],
        [
            (name, _dtype(v), ", ".join(f"{d} {n}" for d, n in v["dims"].items()), v["hook"], human_bytes(v["bytes"]))
            for name, v in facts["variables"].items()
            if v["kind"] == "site"
        ],
    )
    sites = facts["sites"]
    emit_table(
        "completeness (share of rows recorded)",
        ["stage", "order", "weights", *sites],
        [
            (
                stage["name"],
                stage["order"],
                stage["fingerprint"][:12],
                *(percent(facts["completeness"][stage["name"]][s]) for s in sites),
            )
            for stage in facts["stages"]
        ]
        + [(name, "", "not begun", *("0%" for _ in sites)) for name in facts["lacking_stages"]],
    )
    for title, held in (("provenance (must match)", "provenance"), ("recorded with (may differ)", "recorded_with")):
        emit_table(title, ["what", "value"], sorted((name, _flat(value)) for name, value in facts[held].items()))


FORECAST = {
    "memory_bytes": "memory_bytes (the two block buffers; the model and its forward pass come on top)",
    "seconds": "seconds (forward passes; starting up and loading models come on top)",
    "training_seconds": "training_seconds (updates; starting up and loading models come on top)",
    "recording_seconds": "recording_seconds (forward passes; starting up and loading models come on top)",
}


def show_forecast(name: str, told: Mapping[str, Any]) -> None:
    """Print a forecast, and what its numbers leave out."""
    rows = [(FORECAST.get(k, k), human_bytes(v) if k.endswith("bytes") else v) for k, v in told.items()]
    emit_table(f"forecast of {name}", ["what", "how much"], rows)


def _flat(value: Any) -> str:
    """Settings inside settings, on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _dtype(variable: Mapping[str, Any]) -> str:
    """dtype of a site; for one scaled to int8 with what that lost of its rows."""
    if "mean_relative_error" not in variable:
        return str(variable["dtype"])
    mean, largest = variable["mean_relative_error"], variable["max_relative_error"]
    return f"{variable['dtype']}, rows off by {mean:.2%} on average, {largest:.2%} at most"


def show_verified(report: Mapping[str, Any]) -> None:
    """Print what `verify_store` found: damage and gaps by name, then how much was read."""
    for problem in report["damaged"]:
        emit_text(f"damaged\t{problem['text']}")
    for gap in report["missing"]:
        emit_text(f"missing\t{gap}")
    for change in report["unfinished"]:
        emit_text(f"unfinished\t{change}")
    read = f"{report['blocks']:,} blocks, {report['files']:,} files, {human_bytes(report['bytes'])} read"
    emit_text(f"ok: {read}" if report["ok"] else f"{len(report['damaged'])} damaged: {read}")
