"""Figures of what was computed on demand: the plots of the analyses, drawn for the page, each with its sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import panel

from stratalens.analyses.explorer.background_task import Job, Progress
from stratalens.analyses.explorer.data import Where
from stratalens.analyses.explorer.result_cache import METHODS, PAIRS, QUESTIONS, SCOPES, Answers, Question
from stratalens.analyses.explorer.widgets import Caption, Status, button, choice
from stratalens.analyses.plots.centroids import centroid_path_spec
from stratalens.analyses.plots.colors import paint
from stratalens.analyses.plots.matrices import pair_matrix_spec, scalar_map_spec
from stratalens.analyses.plots.probes import layer_sweep_spec
from stratalens.analyses.plots.render_bokeh import bokeh_figure
from stratalens.analyses.plots.spec import FigureSpec, plain
from stratalens.analyses.report import sentences as say
from stratalens.analyses.stats.estimates import extreme_pair

pn: Any = panel  # its functions have no types


Told = tuple[FigureSpec, say.Sentence]


def told(answers: Answers, question: Question, where: Where) -> list[Told]:
    """Pictures and sentences of what is known at a place, most important first."""
    here = answers.at(question, where.stage, where.layer)
    return _probes(answers, question, where, here) if question.kind == "probes" else _order(answers, question, here)


def _probes(answers: Answers, question: Question, where: Where, here: Any) -> list[Told]:
    found: list[Told] = []
    along = answers.along_layers(question, where.stage)
    if along is not None and where.layer is not None:
        picture = layer_sweep_spec(along)
        found.append((picture, say.sweep_sentence(along, picture)))
    if here is not None and here.sizes.get("pair", 1) > 1 and question.pairs == "all":
        picture = pair_matrix_spec(here)
        found.append((picture, say.matrix_sentence(here, picture)))
    everything = answers.over_everything(question, "accuracy_mean")
    if everything is not None and int(everything.notnull().any("layer").sum()) > 1:
        label = "accuracy of the first group against the last" if question.pairs == "ends" else "mean accuracy"
        found.append(_map(everything, label, (0.0, 1.0), 0.5))
    if not found and here is not None:  # a site without layers: one row of pairs is all there is
        picture = pair_matrix_spec(here)
        found.append((picture, say.matrix_sentence(here, picture)))
    return found


def _order(answers: Answers, question: Question, here: Any) -> list[Told]:
    found: list[Told] = []
    if here is not None:
        picture = centroid_path_spec(here)
        found.append((picture, say.path_sentence(here, picture)))
    everything = answers.over_everything(question, "rank_correlation")
    if everything is not None and int(everything.notnull().sum()) > 1:
        found.append(_map(everything, "rank correlation with training order", (-1.0, 1.0), 0.0))
    return found


def _map(scalar: Any, label: str, limits: tuple[float, float], null: float) -> Told:
    picture = scalar_map_spec(scalar, "stage", "layer", label, limits, null)
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


IDLE = "Nothing is computed yet for this question at this place. One task is one stage and layer, at the token above."


class AnalysisPanel:
    """Widgets and figures of what is computed on demand.

    Args:
        answers: what is known.
        where: gives the place that the page shows.
        later: runs a function in the page's own loop.
        changed: called in that loop when there is something new for the table of rows.
    """

    def __init__(
        self,
        answers: Answers,
        where: Callable[[], Where],
        later: Callable[[Callable[[], None]], None],
        changed: Callable[[], None],
    ) -> None:
        self.answers, self._where, self._later, self._changed = answers, where, later, changed
        self.kind = choice("Question", {v: k for k, v in QUESTIONS.items()}, "probes")
        self.method = choice("Method", {v: k for k, v in METHODS.items()}, "logistic")
        self.pairs = choice("Which groups", {v: k for k, v in PAIRS.items()}, "ends")
        self.scope = choice("Where", {v: k for k, v in SCOPES.items()}, "layers")
        self.start, self.stop = button("Compute", primary=True), button("Cancel")
        self.stop.disabled = True
        self.status = Status(text=IDLE, sizing_mode="stretch_width")
        self.figures = pn.FlexBox(sizing_mode="stretch_width", align_items="start", gap="0 1.5rem")
        self.job: Job | None = None
        self._theme = "light"
        self._drawn: Any = None
        self._failed: tuple[Question, Where] | None = None  # where the reader was told of a failure
        self.start.on_click(lambda event: self.compute())
        self.stop.on_click(lambda event: self.cancel())
        self.kind.param.watch(self._other, "value")
        for widget in (self.method, self.pairs):
            widget.param.watch(self._other, "value")

    def question(self) -> Question:
        """What the widgets ask."""
        where = self._where()
        asked = Question(self.kind.value, where.site, where.by, where.token)
        return replace(asked, method=self.method.value, pairs=self.pairs.value) if asked.kind == "probes" else asked

    def compute(self) -> None:
        """Begin, unless a job is at work already."""
        if self.job is not None and self.job.running:
            return
        question, where = self.question(), self._where()
        keys = self.answers.keys(question, where, self.scope.value)
        if not keys:
            self.status.say("All of this is computed already; it is shown below.")
            return
        self.start.disabled, self.stop.disabled = True, False
        self.status.say(f"Computing 0 of {len(keys)} …", "busy", 0.0)
        task = partial(self.answers.ask, question)
        keep = partial(self.answers.keep, question)
        self.job = Job(keys, task, keep, lambda progress: self._later(lambda: self._told(progress))).start()

    def cancel(self) -> None:
        """Begin no further task."""
        if self.job is not None and self.job.running:
            self.job.cancel()
            self.status.say("Stopping after the task at hand …", "busy", self.status.share)

    def _told(self, progress: Progress) -> None:
        share = progress.done / progress.total
        if progress.state == "running":
            stopping = self.status.text.startswith("Stopping")
            words = self.status.text if stopping else f"Computing: {progress.done} of {progress.total} done …"
            self.status.say(words, "busy", share)
        else:
            self.start.disabled, self.stop.disabled = False, True
            words = {
                "done": f"Done: {progress.total} of {progress.total}.",
                "cancelled": f"Cancelled: {progress.done} of {progress.total} done; what is done is kept.",
                "failed": progress.error,
            }[progress.state]
            self.status.say(words, "error" if progress.state == "failed" else "quiet")
            self._failed = (self.question(), self._where())
        self._drawn = None
        self.draw(self._theme)
        self._changed()

    def _other(self, event: Any) -> None:
        probes = self.kind.value == "probes"
        self.method.disabled = self.pairs.disabled = not probes
        self._later(self._redraw)

    def _redraw(self) -> None:
        self.draw(self._theme)
        self._changed()

    def draw(self, theme: str) -> None:
        """Show what is known about the question at the place."""
        self._theme = theme
        question, where = self.question(), self._where()
        if self._drawn == (question, where, theme):
            return
        self._drawn = (question, where, theme)
        if self.status.kind == "error" and self._failed != (question, where):
            self.status.say("")  # it is not about what is asked now
        here = told(self.answers, question, where)
        trained = self.answers.source.colours([])[0]
        self.figures[:] = [self._sized(item) for item in drawn(here, trained, theme)]
        if not here and not (self.job is not None and self.job.running) and self.status.kind == "quiet":
            self.status.say(IDLE)

    @staticmethod
    def _sized(item: Any) -> Any:
        item.styles = {"flex": "1 1 26rem", "min-width": "0"}
        return item

    def scores(self, rows: np.ndarray) -> tuple[str, list[float | None]] | None:
        """Out-of-fold probe scores of these rows where a probe is known here: (column name, values)."""
        question, where = self.question(), self._where()
        found = self.answers.at(question, where.stage, where.layer) if question.kind == "probes" else None
        if found is None or "score" not in found or "pair" not in found["score"].dims:
            return None
        pairs = [str(p) for p in found["pair"].values]
        pair = extreme_pair(found) or pairs[0]
        score = found["score"].isel(pair=pairs.index(pair))
        values = score.squeeze([d for d in score.dims if d != "entity"]).isel(entity=rows).values
        return f"score {plain(pair, 30)}", [float(v) if np.isfinite(v) else None for v in values]

    def panel(self) -> Any:
        """The widgets and figures, for the page."""
        widgets = (self.kind, self.method, self.pairs, self.scope, self.start, self.stop)
        parts = [
            pn.Column(w, styles={"flex": "0 0 auto" if w in widgets[4:] else "1 1 13rem"}, margin=0) for w in widgets
        ]
        row = pn.FlexBox(*parts, align_items="end", gap="0.2rem 1rem", sizing_mode="stretch_width")
        return pn.Column(row, self.status, self.figures, sizing_mode="stretch_width")
