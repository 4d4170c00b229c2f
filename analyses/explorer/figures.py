"""Figures of what was computed on demand: the plots of the analyses, drawn for the page, each with its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import panel

from stratalens.analyses.explorer.answers import Answers, Question
from stratalens.analyses.explorer.inks import paint
from stratalens.analyses.explorer.source import Where
from stratalens.analyses.explorer.widgets import Caption
from stratalens.analyses.plots.embed import bokeh_figure
from stratalens.analyses.plots.grids import pair_matrix_picture, scalar_map_picture
from stratalens.analyses.plots.paths import centroid_path_picture
from stratalens.analyses.plots.picture import Picture
from stratalens.analyses.plots.sweeps import layer_sweep_picture
from stratalens.analyses.reporting import sentences as say

pn: Any = panel  # its functions have no types
Told = tuple[Picture, say.Sentence]


def told(answers: Answers, question: Question, where: Where) -> list[Told]:
    """Pictures and sentences of what is known at a place, most important first."""
    here = answers.at(question, where.stage, where.layer)
    return _probes(answers, question, where, here) if question.kind == "probes" else _order(answers, question, here)


def _probes(answers: Answers, question: Question, where: Where, here: Any) -> list[Told]:
    found: list[Told] = []
    along = answers.along_layers(question, where.stage)
    if along is not None and where.layer is not None:
        picture = layer_sweep_picture(along)
        found.append((picture, say.sweep_sentence(along, picture)))
    if here is not None and here.sizes.get("pair", 1) > 1 and question.pairs == "all":
        picture = pair_matrix_picture(here)
        found.append((picture, say.matrix_sentence(here, picture)))
    everything = answers.over_everything(question, "accuracy_mean")
    if everything is not None and int(everything.notnull().any("layer").sum()) > 1:
        label = "accuracy of the first group against the last" if question.pairs == "ends" else "mean accuracy"
        found.append(_map(everything, label, (0.0, 1.0), 0.5))
    if not found and here is not None:  # a site without layers: one row of pairs is all there is
        picture = pair_matrix_picture(here)
        found.append((picture, say.matrix_sentence(here, picture)))
    return found


def _order(answers: Answers, question: Question, here: Any) -> list[Told]:
    found: list[Told] = []
    if here is not None:
        picture = centroid_path_picture(here)
        found.append((picture, say.path_sentence(here, picture)))
    everything = answers.over_everything(question, "rank_correlation")
    if everything is not None and int(everything.notnull().sum()) > 1:
        found.append(_map(everything, "rank correlation with training order", (-1.0, 1.0), 0.0))
    return found


def _map(scalar: Any, label: str, limits: tuple[float, float], null: float) -> Told:
    picture = scalar_map_picture(scalar, "stage", "layer", label, limits, null)
    return picture, say.map_sentence(scalar, picture, label, null)


def drawn(told_here: Sequence[Told], trained: Sequence[str], theme: str) -> list[Any]:
    """Panel objects of these pictures."""
    out = []
    for picture, sentence in told_here:
        place = picture.default()
        figure = bokeh_figure(picture, place)
        paint(figure, trained, theme)
        caption = Caption(title=picture.heading(place), sentence=sentence(place), sizing_mode="stretch_width")
        pane = pn.pane.Bokeh(figure, sizing_mode="stretch_width", height=picture.height)
        out.append(pn.Column(caption, pane, sizing_mode="stretch_width", min_width=260))
    return out
