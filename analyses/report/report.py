"""One standalone HTML page about a run: figures with sliders, a computed statement each, no remote request.

Text from the data never becomes markup or script: Jinja escapes it, or JSON blocks hold it. The
Content-Security-Policy of the page allows only the scripts whose hashes it names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from stratalens.analyses.data.training_order import group_names, is_ordered, result_order
from stratalens.analyses.plots.colors import group_colors, stage_colors
from stratalens.analyses.plots.html_page import PageFigure, render_page
from stratalens.analyses.plots.spec import plain_text
from stratalens.analyses.report.header import (
    completeness_table,
    group_rows,
    header_rows,
    incomplete_notice,
    provenance_rows,
)
from stratalens.analyses.report.sections import Section, build_sections, have_order, words_of
from stratalens.analyses.report.verdict import Tile, tiles, verdict
from stratalens.store.errors import InputError
from stratalens.store.files import user_path, write_text_atomic

RESULT_NAMES = (
    "projection",
    "multiclass",
    "probes",
    "cosines",
    "centroids",
    "statistics_probe",
    "matched_probe",
    "weighted_probe",
    "conditional_test",
    "residual_probe",
    "generalise",
    "statistics",
    "losses",
    "tokens",
    "control_table",
    "statistic_sets",
    "forgetting",
    "interventions",
)

# Figures of the first screen, the first one that the page has: of ordered groups, and of groups without an order.
KEY_FIGURES = {
    True: ("centroid_path", "layer_sweep", "pair_matrix"),
    False: ("layer_sweep", "centroid_map", "pair_matrix"),
}

# Figures whose statements form the summary, with the subject of each.
SUMMARY_FIGURES = {
    "centroid_path": "Order",
    "layer_sweep": "Separability",
    "group_recall": "Groups",
    "control_comparison": "Controls",
}


def report(
    results: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    store_info: Mapping[str, Any],
    notes: Sequence[str] = (),
    numbers: Sequence[str] = (),
    title: str | None = None,
    quick: bool = False,
    highlights: Sequence[str] = (),
) -> Path:
    """Write the report.

    Args:
        results: results of the analyses by name: projection (`sl.project`), multiclass (`sl.probe` of all groups at
            once), probes (`sl.probe`), cosines, centroids, statistics_probe, matched_probe, weighted_probe,
            conditional_test, residual_probe,
            generalise, statistics (result of `statistic_quantiles`), losses (DataFrame: stage, step, loss),
            control_table, statistic_sets (DataFrame: what each set of statistics leaves of an effect, with the columns
            statistics, control, bins, accuracy, left and support), tokens (`sl.probe` of one pair at many tokens, for
            its own map), forgetting (results of `forgetting_table` by name), interventions (results of `intervene` by
            name). For an absent result the page names the function that computes it.
        path: HTML file; it is written under a temporary name and then renamed.
        store_info: entries of the header: model, path, dims, sites, stages, tokens, bytes, completeness
            {stage: {site: share}}, versions, machine, date, groups {name: rows}. The page shows unknown keys unchanged.
        notes: limitations and remarks of the run, shown under "Limitations".
        numbers: headline numbers of the run as sentences, in their own section.
        title: heading of the page; None asks the question of the page, about the order of training or about the groups.
        quick: show a banner that the results are not meaningful.
        highlights: sentences of the box "Summary" at the top, in place of the verdict and its numbers. Default: the
            statements of the path, the layer sweep and the controls after the last stage that trained a group, at the
            deepest layer and the last token, and the first limitation.

    Returns:
        The path written.

    Raises:
        InputError: a result has an unknown name, or `path` is a folder.
    """
    unknown = [k for k in results if k not in RESULT_NAMES]
    if unknown:
        raise InputError(f"report: unknown result {unknown[0]!r}. Valid: {', '.join(RESULT_NAMES)}.")
    target = user_path(path)
    if target.is_dir():
        raise InputError(f"report: {target} is a folder; pass a file, for example {target / 'report.html'}")
    results = _with_order(results)
    trained, words = _trained_stages(results), words_of(results)
    if title is None:
        if words is None or (words.ordered and words.trained):
            subject = "the order of training"
        else:
            subject = words.order if words.ordered else words.by
        title = f"Do activations encode {subject}?"
    sections = build_sections(results, notes, trained, numbers)
    stage = _last_trained_group(results)
    summary = [("", text) for text in highlights] or summary_sentences(sections, stage)
    page = render_report(
        sections,
        store_info,
        title=title,
        quick=quick,
        trained=trained,
        summary=summary,
        groups=_legend(results),
        answer="" if highlights else verdict(results, stage),
        numbers=() if highlights else tiles(results, stage),
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    return write_text_atomic(target, page)


def summary_sentences(sections: Sequence[Section], stage: str = "") -> list[tuple[str, str]]:
    """Return (subject, statement) of the main figures and the first limitation.

    Args:
        sections: sections of the report.
        stage: stage at which the figures are described, if they have it; else their initial slider values.
    """
    figures: dict[str, PageFigure] = {}
    for shown in (figure for section in sections for figure in section.figures):
        figures.setdefault(shown.spec.name, shown)  # the first of a kind is the most important one
    summary = []
    for name, subject in SUMMARY_FIGURES.items():
        figure = figures.get(name)
        if figure is None or figure.spec.message:
            continue
        slider_values = figure.spec.default_values()
        if stage in figure.spec.sliders.get("stage", ()):
            slider_values["stage"] = stage
        summary.append((subject, figure.sentence(slider_values)))
    limitations = [point for section in sections if section.key == "unknown" for point in section.points]
    return [*summary, ("Limitations", limitations[0])] if summary and limitations else summary


def _last_trained_group(results: Mapping[str, Any]) -> str:
    """Return the last stage that trained a group.

    Later stages, such as mixed training, change the answer.
    """
    for key in ("projection", "probes"):
        data = results.get(key)
        if isinstance(data, xr.Dataset):
            groups = group_names(data) if is_ordered(data) else []
            if stages := [stage for stage in result_order(data)[0] if stage in groups]:
                return stages[-1]
    return ""


def _with_order(results: Mapping[str, Any]) -> dict[str, Any]:
    """Add the attribute `ordered` to results without it, from those that have it."""
    known = [data.attrs["ordered"] for data in results.values() if "ordered" in getattr(data, "attrs", {})]
    if not known:
        return dict(results)

    def add(data: Any) -> Any:
        grouped = isinstance(data, xr.Dataset | xr.DataArray) and "ordered" not in data.attrs
        return data.assign_attrs(ordered=known[0]) if grouped else data

    return {name: add(data) for name, data in results.items()}


def _legend(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the colour of every group, or of every trained stage where the groups have an order."""
    for key in ("projection", "centroids", "multiclass", "probes", "statistics"):
        data = results.get(key)
        if isinstance(data, xr.Dataset) and group_names(data):
            trained = result_order(data)[0] if is_ordered(data) else []
            return stage_colors(trained, trained) if trained else group_colors(data)
    return {}


def _trained_stages(results: Mapping[str, Any]) -> list[str]:
    """Return the names that have the colours of an order, in order; empty for groups without one."""
    if not have_order(results):
        return []
    for key in ("projection", "probes", "centroids", "statistics"):
        data = results.get(key)
        if isinstance(data, xr.Dataset):
            trained, _ = result_order(data)
            if trained:
                return trained
    return []


def render_report(
    sections: Sequence[Section],
    store_info: Mapping[str, Any],
    *,
    title: str,
    quick: bool,
    trained: Sequence[str],
    summary: Sequence[tuple[str, str]],
    groups: Mapping[str, str],
    answer: str = "",
    numbers: Sequence[Tile] = (),
) -> str:
    """Return the complete page as text.

    The arguments are those of `report`; `trained` are the names in order, `groups` the colour of each group, `answer`
    the verdict and `numbers` the tiles of the first screen.
    """
    figures: dict[str, PageFigure] = {}
    rendered = []
    for section in sections:
        names: list[str] = []
        for figure in section.figures:
            name = f"fig-{section.key}-{figure.spec.name.replace('_', '-')}"
            same = sum(other == name or other.startswith(f"{name}-nr-") for other in names)
            names.append(f"{name}-nr-{same + 1}" if same else name)  # a section may have two figures of one kind
        figures.update(zip(names, section.figures, strict=True))
        rendered.append({"section": section, "names": names})
    kinds = KEY_FIGURES[bool(trained) or not groups]
    ranked = {kinds.index(f.spec.name): name for name, f in reversed(figures.items()) if _can_be_key(f, kinds)}
    return render_page(
        "report.html",
        figures,
        trained,
        title=plain_text(title, 200),
        quick=quick,
        sections=rendered,
        header=header_rows(store_info),
        provenance=provenance_rows(store_info),
        incomplete=plain_text(incomplete_notice(store_info), 600),
        answer=plain_text(answer, 600),
        tiles=numbers,
        key=ranked[min(ranked)] if ranked else "",
        summary=[(subject, plain_text(text, 2000)) for subject, text in summary],
        completeness=completeness_table(store_info),
        groups=group_rows(store_info, groups),
        in_order=bool(trained),
    )


def _can_be_key(figure: PageFigure, kinds: Sequence[str]) -> bool:
    return figure.spec.name in kinds and not figure.spec.message
