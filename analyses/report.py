"""One standalone HTML page that shows a run: figures with sliders, a computed sentence each, no remote request.

What is asked in which order is in sections.py, sentences in sentences.py, how
figures become a page in page.py and templates/. Nothing from the data is ever markup or script: text
goes through Jinja's escaping or sits in JSON blocks, and the page's own
Content-Security-Policy allows only the scripts whose hashes it names.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xarray as xr

from stratalens.analyses.page import Panel, render_page
from stratalens.analyses.plots.palette import stage_colors, trained_order
from stratalens.analyses.plots.picture import plain
from stratalens.analyses.sections import Section, build_sections
from stratalens.store.errors import InputError

KEYS = (
    "projection",
    "probes",
    "cosines",
    "centroids",
    "statistics_probe",
    "matched_probe",
    "residual_probe",
    "generalise",
    "statistics",
    "losses",
)
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


def report(
    results: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    store_info: Mapping[str, Any],
    notes: Sequence[str] = (),
    title: str = "Do activations encode the order of training?",
    quick: bool = False,
) -> Path:
    """Write the report.

    Args:
        results: results of the analyses by name: projection (`sl.project`), probes (`sl.probe`), cosines,
            centroids, statistics_probe, matched_probe, residual_probe, generalise, statistics (result of
            `statistic_quantiles`), losses (DataFrame: stage, step, loss). Any may be absent; the page then
            says which call makes it.
        path: the HTML file; written to a temporary name and renamed.
        store_info: what the top of the page says: model, path, dims, sites, stages, tokens, bytes,
            completeness {stage: {site: share}}, versions, machine, date, groups {name: rows}; unknown keys
            are shown as they are.
        notes: limits and remarks of the run, shown under "What is not known".
        title: heading of the page.
        quick: put a banner on top that this setting proves nothing.

    Returns:
        The path written.

    Raises:
        InputError: a result has an unknown name, or `path` is a folder.
    """
    unknown = [k for k in results if k not in KEYS]
    if unknown:
        raise InputError(f"report: unknown result {unknown[0]!r}; valid: {', '.join(KEYS)}")
    target = Path(path)
    if target.is_dir():
        raise InputError(f"report: {target} is a folder; give a file, for example {target / 'report.html'}")
    trained = _trained(results)
    sections = build_sections(results, notes, trained)
    page = render(sections, store_info, title=title, quick=quick, trained=trained)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(target)
    return target


def _trained(results: Mapping[str, Any]) -> list[str]:
    for key in ("projection", "probes", "centroids", "statistics"):
        data = results.get(key)
        if isinstance(data, xr.Dataset):
            trained, _ = trained_order(data)
            if trained:
                return trained
    return []


def render(
    sections: Sequence[Section], store_info: Mapping[str, Any], *, title: str, quick: bool, trained: Sequence[str]
) -> str:
    """Return the page as text (all of it: style, scripts, figures, numbers)."""
    panels: dict[str, Panel] = {}
    shown = []
    for section in sections:
        names = [f"fig-{section.key}-{panel.picture.name.replace('_', '-')}" for panel in section.panels]
        panels.update(zip(names, section.panels, strict=True))
        shown.append({"section": section, "names": names})
    return render_page(
        "report.html",
        panels,
        trained,
        title=plain(title, 200),
        quick=quick,
        sections=shown,
        facts=facts(store_info),
        completeness=completeness(store_info),
        groups=group_rows(store_info, trained),
    )


def facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table at the top, in a fixed order; anything else that was given follows."""
    given = dict(info)
    for handled in ("completeness", "groups"):
        given.pop(handled, None)
    versions = dict(given.pop("versions", {}) or _versions())
    size = given.pop("bytes", None)
    rows = [
        ("Model", _text(given.pop("model", "not stated"))),
        ("Stages", _text(given.pop("stages", "not stated"), " → ")),
        ("Prompts", _text(given.pop("prompts", _prompts(given)))),
        ("Token positions", _text(given.pop("tokens", "not stated"))),
        ("Sites", _text(given.pop("sites", "not stated"))),
        ("Store", _text(given.pop("path", "not stated")) + (f", {_bytes(size)}" if size else "")),
        ("Date", _text(given.pop("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"))),
        ("Machine", _text(given.pop("machine", _machine()))),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
    ]
    rows += [(str(k).replace("_", " ").capitalize(), _text(v)) for k, v in given.items()]
    return [(plain(k, 80), plain(v, 2000)) for k, v in rows]


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


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


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
    """Stage x site grid of the share of rows that exist; None when it was not given."""
    grid = info.get("completeness")
    if not isinstance(grid, Mapping) or not grid:
        return None
    sites = list(dict.fromkeys(site for row in grid.values() for site in row))
    rows = [
        (plain(stage), [(f"{float(row.get(site, 0.0)):.0%}", float(row.get(site, 0.0)) >= 1) for site in sites])
        for stage, row in grid.items()
    ]
    return {"sites": [plain(s) for s in sites], "rows": rows}


def group_rows(info: Mapping[str, Any], trained: Sequence[str]) -> list[tuple[str, str, str]]:
    """(group, colour, rows) for the key of colours at the top."""
    counts = info.get("groups", {})
    colors = stage_colors(list(trained), list(trained))
    return [(plain(g), colors[g], str(counts.get(g, "")) if isinstance(counts, Mapping) else "") for g in trained]
