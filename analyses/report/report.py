"""One standalone HTML page that shows a run: figures with sliders, a computed sentence each, no remote request.

What is asked in which order is in reporting/sections.py, sentences in
reporting/sentences.py, how figures become a page in reporting/page.py and
plots/templates/. Nothing from the data is ever markup or script: text
goes through Jinja's escaping or sits in JSON blocks, and the page's own
Content-Security-Policy allows only the scripts whose hashes it names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.plots.html_page import Panel, render_page
from stratalens.analyses.plots.spec import plain
from stratalens.analyses.report.header import completeness, fine_print, group_rows, header_rows, incomplete
from stratalens.analyses.report.sections import Section, build_sections
from stratalens.store.errors import InputError
from stratalens.store.files import write_text_atomic

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
    "tokens",
    "control_table",
    "forgetting",
)


def report(
    results: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    store_info: Mapping[str, Any],
    notes: Sequence[str] = (),
    numbers: Sequence[str] = (),
    title: str = "Do activations encode the order of training?",
    quick: bool = False,
    highlights: Sequence[str] = (),
) -> Path:
    """Write the report.

    Args:
        results: results of the analyses by name: projection (`sl.project`), probes (`sl.probe`), cosines,
            centroids, statistics_probe, matched_probe, residual_probe, generalise, statistics (result of
            `statistic_quantiles`), losses (DataFrame: stage, step, loss), control_table, tokens (`sl.probe` of one
            pair at many tokens, for a map of its own), forgetting (results of `forgetting_table` by name). Any may
            be absent; the page then says which call makes it.
        path: the HTML file; written to a temporary name and renamed.
        store_info: what the top of the page says: model, path, dims, sites, stages, tokens, bytes,
            completeness {stage: {site: share}}, versions, machine, date, groups {name: rows}; unknown keys
            are shown as they are.
        notes: limits and remarks of the run, shown under "What is not known".
        numbers: headline numbers of the run in sentences, a section of their own.
        title: heading of the page.
        quick: put a banner on top that this setting proves nothing.
        highlights: sentences of the box "In short" at the top; default: those of the path, the layer
            sweep and the controls after the last stage that trained a group, at the deepest layer and
            the last token, and the first limit.

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
    sections = build_sections(results, notes, trained, numbers)
    short = [("", text) for text in highlights] or in_short(sections, _last_group(results))
    page = render(sections, store_info, title=title, quick=quick, trained=trained, highlights=short)
    target.parent.mkdir(parents=True, exist_ok=True)
    return write_text_atomic(target, page)


MAIN = {"centroid_path": "Order", "layer_sweep": "Separability", "control_comparison": "Controls"}


def in_short(sections: Sequence[Section], end: str = "") -> list[tuple[str, str]]:
    """(what about, sentence): what the main figures say at a stage, where they have it, or else at their first place.

    The first limit comes last: what was not found out belongs beside what was.
    """
    panels = {panel.picture.name: panel for section in sections for panel in section.panels}
    said = []
    for name, about in MAIN.items():
        panel = panels.get(name)
        if panel is None or panel.picture.message:
            continue
        place = panel.picture.default()
        if end in panel.picture.sliders.get("stage", ()):
            place["stage"] = end
        said.append((about, panel.sentence(place)))
    unknown = [point for section in sections if section.key == "unknown" for point in section.points]
    return [*said, ("Not known", unknown[0])] if said and unknown else said


def _last_group(results: Mapping[str, Any]) -> str:
    """The last stage that trained a group: what comes after it, as mixed training, is what becomes of the answer."""
    for key in ("projection", "probes"):
        data = results.get(key)
        if isinstance(data, xr.Dataset):
            groups = group_names(data)
            if mine := [stage for stage in result_order(data)[0] if stage in groups]:
                return mine[-1]
    return ""


def _trained(results: Mapping[str, Any]) -> list[str]:
    for key in ("projection", "probes", "centroids", "statistics"):
        data = results.get(key)
        if isinstance(data, xr.Dataset):
            trained, _ = result_order(data)
            if trained:
                return trained
    return []


def render(
    sections: Sequence[Section],
    store_info: Mapping[str, Any],
    *,
    title: str,
    quick: bool,
    trained: Sequence[str],
    highlights: Sequence[tuple[str, str]],
) -> str:
    """Return the page as text (all of it: style, scripts, figures, numbers)."""
    panels: dict[str, Panel] = {}
    shown = []
    for section in sections:
        names: list[str] = []
        for panel in section.panels:
            name = f"fig-{section.key}-{panel.picture.name.replace('_', '-')}"
            same = sum(other == name or other.startswith(f"{name}-nr-") for other in names)
            names.append(f"{name}-nr-{same + 1}" if same else name)  # one kind of figure may come twice
        panels.update(zip(names, section.panels, strict=True))
        shown.append({"section": section, "names": names})
    return render_page(
        "report.html",
        panels,
        trained,
        title=plain(title, 200),
        quick=quick,
        sections=shown,
        facts=header_rows(store_info),
        fine_print=fine_print(store_info),
        incomplete=plain(incomplete(store_info), 600),
        highlights=[(about, plain(text, 2000)) for about, text in highlights],
        completeness=completeness(store_info),
        groups=group_rows(store_info, trained),
    )
