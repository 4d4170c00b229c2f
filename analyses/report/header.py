"""Header of the report: model, stages, versions and machine, from `info(store)` and the run."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

from stratalens.analyses.plots.spec import plain_text
from stratalens.store.display import human_bytes
from stratalens.store.state.info import state_in_words

_PACKAGES = (
    "stratalens",
    "transformer-lens",
    "torch",
    "transformers",
    "numpy",
    "scikit-learn",
    "zarr",
    "xarray",
    "bokeh",
)

# Keys of the store's description that the header does not show as rows of their own.
_LONG_KEYS = ("provenance", "recorded_with", "variables", "labels")
_UNSHOWN_KEYS = (
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
    """Return (name, text) rows of the header.

    The first rows have a fixed order; each further short entry of `info` adds a row.
    """
    rest = {k: v for k, v in info.items() if k not in (*_UNSHOWN_KEYS, *_LONG_KEYS)}
    size, files = rest.pop("bytes", None), rest.pop("files", None)
    store = strip_local_paths(_text(rest.pop("path", "unknown"))) + (f", {human_bytes(size)}" if size else "")
    layers = info.get("layers")
    rows = [
        ("Model", strip_local_paths(_text(rest.pop("model", None) or _model(info)))),
        ("Stages", " → ".join(_name(s) for s in rest.pop("stages", [])) or "unknown"),
        ("Prompts", _text(rest.pop("prompts", _prompts(info)))),
        ("Token positions", _text(rest.pop("tokens", "unknown"))),
        ("Sites", _sites(rest.pop("sites", ()), info.get("variables", {}))),
        *([("Layers", _layers(layers))] if layers else []),
        ("Store", store + (f" in {files} files" if files else "")),
        ("Date", _text(rest.pop("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"))),
        ("Machine", _text(rest.pop("machine", _machine()))),
        ("Versions", _text(rest.pop("versions", None) or _recorded_versions(info) or _versions())),
    ]
    rows += [(str(k).replace("_", " ").capitalize(), _text(v)) for k, v in rest.items()]
    return [(plain_text(k, 80), plain_text(v, 600)) for k, v in rows]


def provenance_rows(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the full provenance.

    It has the fields that a resumed capture compares, and the fingerprints of the stages.
    """
    rows = []
    shown = set() if info.get("versions") else set(_recorded_versions(info))  # by the header
    for key in ("provenance", "recorded_with"):
        value = info.get(key)
        if isinstance(value, Mapping):
            hidden = shown | {"model"} if key == "recorded_with" else set()
            rows += [(str(k), strip_local_paths(_text(v))) for k, v in value.items() if k not in hidden]
    for stage in info.get("stages", []):
        if isinstance(stage, Mapping) and stage.get("fingerprint"):
            rows.append((f"weights of {_name(stage)}", str(stage["fingerprint"])))
    return [(plain_text(k, 80), plain_text(v, 600)) for k, v in rows]


def strip_local_paths(text: str) -> str:
    """Reduce an absolute path to its last component, because the page may be shared.

    >>> strip_local_paths("/home/ann/checkpoints/base"), strip_local_paths("EleutherAI/pythia-70m")
    ('base', 'EleutherAI/pythia-70m')
    """
    path = PurePath(text)
    return path.name if path.is_absolute() and path.name else text


def incomplete_notice(info: Mapping[str, Any]) -> str:
    """Return the notice of an incomplete store; empty if the store is complete."""
    if info.get("complete", True):
        return ""
    return f"The store is {state_in_words(info)}. This page covers only the recorded part."


def _model(info: Mapping[str, Any]) -> str:
    for source in (info.get("provenance"), info.get("recorded_with")):
        if isinstance(source, Mapping):
            for key in ("model", "model_name"):
                if source.get(key):
                    return _text(source[key])
    return "unknown"


def _name(stage: Any) -> str:
    return str(stage.get("name", stage)) if isinstance(stage, Mapping) else str(stage)


def _sites(sites: Any, variables: Any) -> str:
    if isinstance(sites, Mapping):
        return _text(sites)
    words = []
    for site in [sites] if isinstance(sites, str) else sites:
        variable = variables.get(site, {}) if isinstance(variables, Mapping) else {}
        details = [str(variable[k]) for k in ("hook", "dtype") if variable.get(k)]
        words.append(f"{site} ({', '.join(details)})" if details else str(site))
    return ", ".join(words) or "unknown"


def _layers(layers: Any) -> str:
    values = [int(v) for v in layers]
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return _text(values)


def _prompts(info: Mapping[str, Any]) -> str:
    dims = info.get("dims", {})
    return f"{dims['entity']:,} rows" if isinstance(dims, Mapping) and "entity" in dims else "unknown"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} ({_text(v)})" if isinstance(v, Mapping) else f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def _recorded_versions(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions that recorded the store; the model has its own row."""
    recorded = info.get("recorded_with") or {}
    return {k: v for k, v in recorded.items() if k != "model" and not isinstance(v, Mapping)}


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions | {"python": platform.python_version()}


def _machine() -> str:
    return f"{os.cpu_count()} x {platform.machine()}, {platform.system()} {platform.release()}"


def completeness_table(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the share of rows recorded by stage and site.

    The result is None if `info` has no completeness.

    The statistics of a row (eight a site) share one column, which shows the smallest share.
    """
    grid = info.get("completeness")
    if not isinstance(grid, Mapping) or not grid:
        return None
    columns = list(dict.fromkeys(str(site) for row in grid.values() for site in row))
    known = [str(s) for s in info.get("sites", columns)]
    sites = [s for s in columns if s in known] or columns
    statistics = [s for s in columns if s not in sites]

    def cells(row: Mapping[str, float]) -> list[tuple[str, bool]]:
        shares = [float(row.get(site, 0.0)) for site in sites]
        shares += [min(float(row.get(name, 0.0)) for name in statistics)] if statistics else []
        return [(f"{int(share * 100)} %", share >= 1) for share in shares]

    rows = [(plain_text(stage), cells(row)) for stage, row in grid.items()]
    return {"sites": [plain_text(s) for s in [*sites, *(["statistics"] if statistics else [])]], "rows": rows}


def group_rows(info: Mapping[str, Any], colors: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (group, colour, number of rows) of the legend at the top."""
    counts = info.get("groups", {})
    rows = [str(counts.get(g, "")) if isinstance(counts, Mapping) else "" for g in colors]
    return [(plain_text(g), color, count) for (g, color), count in zip(colors.items(), rows, strict=True)]
