"""The top of the report: model, stages, versions, machine; from `info(store)` and what a run adds."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

from stratalens.analyses.plots.colors import stage_colors
from stratalens.analyses.plots.spec import plain
from stratalens.store.display import human_bytes
from stratalens.store.state.info import state_in_words

_PACKAGES = (
    "stratalens", "transformer-lens", "torch", "transformers", "numpy", "scikit-learn", "zarr", "xarray", "bokeh",
)  # fmt: skip


_LONG = ("provenance", "recorded_with", "variables", "labels")


_SKIPPED = (
    "completeness",
    "groups",
    "format",
    "blocks",
    "block_size",
    "dims",
    "layers",
    "complete",
    "whole_stages",
    "lacking_stages",
)


def header_rows(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the list at the top, in a fixed order; short things that were given besides follow."""
    given = {k: v for k, v in info.items() if k not in (*_SKIPPED, *_LONG)}
    size, files = given.pop("bytes", None), given.pop("files", None)
    store = strip_local_paths(_text(given.pop("path", "not stated"))) + (f", {human_bytes(size)}" if size else "")
    layers = info.get("layers")
    rows = [
        ("Model", strip_local_paths(_text(given.pop("model", None) or _model(info)))),
        ("Stages", " → ".join(_name(s) for s in given.pop("stages", [])) or "not stated"),
        ("Prompts", _text(given.pop("prompts", _prompts(info)))),
        ("Token positions", _text(given.pop("tokens", "not stated"))),
        ("Sites", _sites(given.pop("sites", ()), info.get("variables", {}))),
        *([("Layers", _layers(layers))] if layers else []),
        ("Store", store + (f" in {files} files" if files else "")),
        ("Date", _text(given.pop("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"))),
        ("Machine", _text(given.pop("machine", _machine()))),
        ("Versions", _text(given.pop("versions", None) or _recorded_versions(info) or _versions())),
    ]
    rows += [(str(k).replace("_", " ").capitalize(), _text(v)) for k, v in given.items()]
    return [(plain(k, 80), plain(v, 600)) for k, v in rows]


def fine_print(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Provenance in full: what is compared when a store is resumed, and fingerprints of the stages."""
    rows = []
    # versions stand at the top, unless the run has its own there
    for key in ("provenance", "recorded_with") if info.get("versions") else ("provenance",):
        value = info.get(key)
        if isinstance(value, Mapping):
            rows += [(str(k), strip_local_paths(_text(v))) for k, v in value.items()]
    for stage in info.get("stages", []):
        if isinstance(stage, Mapping) and stage.get("fingerprint"):
            rows.append((f"weights of {_name(stage)}", str(stage["fingerprint"])))
    return [(plain(k, 80), plain(v, 600)) for k, v in rows]


def strip_local_paths(text: str) -> str:
    """A text of a page that is passed on: of an absolute path the last part alone.

    >>> strip_local_paths("/home/ann/checkpoints/base"), strip_local_paths("EleutherAI/pythia-70m")
    ('base', 'EleutherAI/pythia-70m')
    """
    path = PurePath(text)
    return path.name if path.is_absolute() and path.name else text


def incomplete(info: Mapping[str, Any]) -> str:
    """What the page says first where rows or stages that were to be recorded are not there; nothing where all are."""
    if info.get("complete", True):
        return ""
    return f"The store is {state_in_words(info)}. All that follows is about what is there."


def _model(info: Mapping[str, Any]) -> str:
    for source in (info.get("provenance"), info.get("recorded_with")):
        if isinstance(source, Mapping):
            for key in ("model", "model_name"):
                if source.get(key):
                    return _text(source[key])
    return "not stated"


def _name(stage: Any) -> str:
    return str(stage.get("name", stage)) if isinstance(stage, Mapping) else str(stage)


def _sites(sites: Any, variables: Any) -> str:
    if isinstance(sites, Mapping):
        return _text(sites)
    words = []
    for site in [sites] if isinstance(sites, str) else sites:
        found = variables.get(site, {}) if isinstance(variables, Mapping) else {}
        about = [str(found[k]) for k in ("hook", "dtype") if found.get(k)]
        words.append(f"{site} ({', '.join(about)})" if about else str(site))
    return ", ".join(words) or "not stated"


def _layers(layers: Any) -> str:
    values = [int(v) for v in layers]
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return _text(values)


def _prompts(given: Mapping[str, Any]) -> str:
    dims = given.get("dims", {})
    return f"{dims['entity']:,} rows" if isinstance(dims, Mapping) and "entity" in dims else "not stated"


def _text(value: Any, joint: str = ", ") -> str:
    if isinstance(value, Mapping):
        return joint.join(
            f"{k} {_text(v)}" if not isinstance(v, Mapping) else f"{k} ({_text(v)})" for k, v in value.items()
        )
    if isinstance(value, (list, tuple)):
        return joint.join(_text(v) for v in value)
    return str(value)


def _recorded_versions(info: Mapping[str, Any]) -> dict[str, Any]:
    """Versions that the store was recorded with; the model's name is said elsewhere."""
    return {k: v for k, v in (info.get("recorded_with") or {}).items() if k != "model"}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}


def _machine() -> str:
    return f"{os.cpu_count()} x {platform.machine()}, {platform.system()} {platform.release()}"


def completeness(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Stage x site grid of the share of rows that exist; None when it was not given.

    Per-row statistics, of which there are eight a site, share one column: the least of them.
    """
    grid = info.get("completeness")
    if not isinstance(grid, Mapping) or not grid:
        return None
    every = list(dict.fromkeys(str(site) for row in grid.values() for site in row))
    known = [str(s) for s in info.get("sites", every)]
    sites = [s for s in every if s in known] or every
    others = [s for s in every if s not in sites]

    def cells(row: Mapping[str, float]) -> list[tuple[str, bool]]:
        shares = [float(row.get(site, 0.0)) for site in sites]
        shares += [min(float(row.get(other, 0.0)) for other in others)] if others else []
        return [(f"{int(share * 100)} %", share >= 1) for share in shares]

    rows = [(plain(stage), cells(row)) for stage, row in grid.items()]
    return {"sites": [plain(s) for s in [*sites, *(["statistics"] if others else [])]], "rows": rows}


def group_rows(info: Mapping[str, Any], trained: Sequence[str]) -> list[tuple[str, str, str]]:
    """(group, colour, rows) for the key of colours at the top."""
    counts = info.get("groups", {})
    colors = stage_colors(list(trained), list(trained))
    return [(plain(g), colors[g], str(counts.get(g, "")) if isinstance(counts, Mapping) else "") for g in trained]
