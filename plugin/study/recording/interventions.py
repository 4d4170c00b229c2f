"""Interventions along the recency axis: what they do to the self-report and to contradicting answers.

Every job of `stratalens.intervene` has its own result in the folder `interventions`, so an interrupted run resumes.
The entities whose answers are scored never make the directions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import stratalens as sl
from stratalens.analyses.results import read_results
from stratalens.analyses.stats.bootstrap import cluster_bootstrap
from stratalens.plugin.progress import PhaseProgress, suppress_progress_bars
from stratalens.plugin.stages.stage import loaded_model, parse_stages
from stratalens.plugin.study.config.settings import InterventionSettings, StudySettings
from stratalens.plugin.study.config.templates import PROMPT_FORMAT
from stratalens.plugin.study.corpus.conflicts import ContradictedEntity
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.questions import split_for_self_report
from stratalens.plugin.study.recording.intervention_questions import contradiction_table, group_rows, letter_table
from stratalens.plugin.study.recording.recency_axis import (
    ANSWER,
    SITE,
    RecencyAxis,
    label_vectors,
    make_recency_axis,
)
from stratalens.plugin.study.recording.self_report import teach_condition
from stratalens.plugin.study.recording.stores import prepend_bos_of
from stratalens.plugin.study.training.checkpoints import RECORD, has_weights, require_weights, save_stage
from stratalens.plugin.study.training.trainer import Step
from stratalens.store.errors import InputError, join_names
from stratalens.store.files import write_text_atomic

FOLDER = "interventions"
SELF_REPORT, SHUFFLED, CONTRADICTIONS = "self-report", "self-report of shuffled groups", "contradictions"
UNRELATED = 16  # questions about other entities, for the side effect
_STATE = "state.json"
_FILES = {SELF_REPORT: "self_report", SHUFFLED: "shuffled_report", CONTRADICTIONS: "contradictions"}
_CONDITIONS = {SELF_REPORT: "true", SHUFFLED: "shuffled"}


@dataclass(frozen=True)
class Place:
    """One place of one outcome.

    Attributes:
        outcome: `SELF_REPORT`, `SHUFFLED` or `CONTRADICTIONS`.
        layer: block of the intervention.
        token: its position.
        unit: length of dose 1, the distance between the centroids of the two groups.
        shift: distance of the unseen groups along the axis in the model that is asked, in units of dose, with its
            95 % interval (shift_low, shift_high); None for contradictions.
    """

    outcome: str
    layer: int
    token: str
    unit: float
    shift: float | None = None
    shift_low: float | None = None
    shift_high: float | None = None

    @property
    def file(self) -> str:
        """Start of the names of its results."""
        return f"{_FILES[self.outcome]}-layer{self.layer}-{self.token}"


@dataclass(frozen=True, eq=False)
class InterventionResults:
    """Results of all jobs.

    Attributes:
        stage: the checkpoint that made the axis.
        pair: the two training stages of the axis.
        places: all places.
        jobs: {name: result of `stratalens.intervene`}; the name is `Place.file` with "-doses" (all doses, no null),
            or "-steer_" or "-ablate_" and the null: "random", "orthogonal" or "shuffled".
    """

    stage: str
    pair: tuple[str, str]
    places: tuple[Place, ...]
    jobs: Mapping[str, xr.Dataset]


def run_interventions(
    settings: StudySettings,
    corpus: Corpus,
    contradicted: Sequence[ContradictedEntity],
    checkpoints: Mapping[str, Path],
    ds: xr.Dataset,
    folder: Path,
    progress: PhaseProgress,
) -> InterventionResults:
    """Run all interventions, or what an earlier run left of them.

    Args:
        settings: the settings of the study, with `interventions`.
        corpus: the entities.
        contradicted: the contradicted entities.
        checkpoints: {stage: folder}.
        ds: the store of all stages.
        folder: of the run; receives the folder `interventions`.
        progress: shows the number of jobs done.

    Raises:
        InputError: a layer does not exist, or the last checkpoint has no weights any more.
    """
    job = _Jobs(settings, corpus, tuple(contradicted), checkpoints, ds, folder, progress)
    return job.run()


@dataclass(frozen=True, eq=False)
class _Asked:
    """A model with the questions that it is asked.

    Attributes:
        model: the hooked model.
        table: the questions with their answers under steering.
        true: the same under ablation; None for contradictions.
        recorded: activations of a fine-tuned model on the questions about all entities; None for contradictions.
        prepend_bos: as for `stratalens.capture`: contradictions are asked as the store was recorded, a self-report as
            it was taught.
    """

    model: Any
    table: sl.PromptTable
    true: sl.PromptTable | None = None
    recorded: xr.Dataset | None = None
    prepend_bos: bool | None = None


def read_interventions(folder: Path) -> InterventionResults:
    """Read the results of a complete run.

    Args:
        folder: of the run.

    Raises:
        InputError: the interventions are not complete.
    """
    file = folder / FOLDER / _STATE
    state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not state.get("complete"):
        raise InputError(
            f"{folder} has no complete interventions; run: stratalens study {folder}/run.yaml --out {folder}"
        )
    places = tuple(Place(**place) for place in state["places"])
    jobs = read_results(folder / FOLDER / "results")
    first, last = state["pair"]
    return InterventionResults(state["stage"], (first, last), places, jobs)


class _Jobs:
    """The jobs of one run."""

    def __init__(
        self,
        settings: StudySettings,
        corpus: Corpus,
        contradicted: tuple[ContradictedEntity, ...],
        checkpoints: Mapping[str, Path],
        ds: xr.Dataset,
        folder: Path,
        progress: PhaseProgress,
    ) -> None:
        assert settings.interventions is not None
        self.settings, self.own, self.corpus, self.contradicted = settings, settings.interventions, corpus, contradicted
        self.checkpoints, self.ds, self.run_folder, self.progress = checkpoints, ds, folder, progress
        self.folder = folder / FOLDER
        self.stage = settings.stage_names[-1]
        self.pair = (settings.self_report.stages if settings.self_report else None) or settings.end_stages
        self.halves = split_for_self_report(corpus, self.pair, settings.seed) if settings.self_report else None
        self.outcomes = list(_CONDITIONS) if self.halves else []
        self.outcomes += [CONTRADICTIONS] if contradicted else []
        self.identity: dict[str, Any] = {}
        self.device = settings.device
        self.done = self.total = 0

    def run(self) -> InterventionResults:
        """Run, or read the results of a complete run."""
        grid = _grid(self.own, self.ds)
        state = self._state()
        self.identity = state["identity"]
        if not state.get("complete"):
            require_weights(self.checkpoints[self.stage], "an intervention")
            self.total = len(grid) * sum(4 if outcome == CONTRADICTIONS else 7 for outcome in self.outcomes)
            places = [asdict(place) for outcome in self.outcomes for place in self._run_outcome(outcome, grid)]
            state |= {"stage": self.stage, "pair": list(self.pair), "places": places, "complete": True}
            write_text_atomic(self.folder / _STATE, json.dumps(state, indent=1) + "\n")
            for outcome in _CONDITIONS:
                shutil.rmtree(self._taught_folder(outcome), ignore_errors=True)
        return read_interventions(self.run_folder)

    def _state(self) -> dict[str, Any]:
        """Read the state of an earlier run with the same settings, or start again from nothing."""
        recorded = json.loads((self.checkpoints[self.stage] / RECORD).read_text(encoding="utf-8"))
        settings = self.settings.model_dump(mode="json")
        identity = {
            "checkpoint": recorded["identity"],
            "seed": self.settings.seed,
            **{name: settings[name] for name in ("interventions", "self_report", "conflict")},
            "templates": settings["record"]["templates"],
            "fit": {name: settings["analysis"][name] for name in ("C", "folds")},
        }
        file = self.folder / _STATE
        if file.is_file():
            earlier: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if earlier.get("identity") == identity:
                return earlier
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "results").mkdir(parents=True)
        write_text_atomic(file, json.dumps({"identity": identity}, indent=1) + "\n")
        return {"identity": identity}

    def _run_outcome(self, outcome: str, grid: Sequence[tuple[int, str]]) -> list[Place]:
        """Run all jobs of one outcome."""
        if outcome == CONTRADICTIONS:
            entities = tuple(e.entity_id for e in self.corpus.entities if e.trained_stage in self.pair)
            with self._loaded(self.checkpoints[self.stage]) as model:
                bos = prepend_bos_of(self.checkpoints[self.stage])
                asked = _Asked(model, contradiction_table(self.contradicted), prepend_bos=bos)
                return [self._run_place(outcome, layer, token, entities, asked) for layer, token in grid]
        assert self.halves is not None
        folder = self._teach(outcome)
        rows, taught = (group_rows(self.halves, self.corpus, asked=half) for half in (True, False))
        entities = tuple(entity for entity, _ in self.halves.taught)
        later, true = (letter_table(rows, true=signed) for signed in (False, True))
        with self._loaded(folder) as model:
            recorded = self._record(outcome, model, [*taught, *rows], sorted({layer for layer, _ in grid}))
            asked = _Asked(model, later, true, recorded)
            return [self._run_place(outcome, layer, token, entities, asked) for layer, token in grid]

    @contextmanager
    def _loaded(self, folder: Path) -> Iterator[Any]:
        """Load a checkpoint once for all of its jobs."""
        with (
            suppress_progress_bars(),
            loaded_model(parse_stages({"model": str(folder)})[0], None, self.device) as model,
        ):
            yield model

    def _taught_folder(self, outcome: str) -> Path:
        """Folder of a fine-tuned model; an adapter names the untrained model next to it."""
        return self.checkpoints[self.stage].parent / f"self-report-{_CONDITIONS[outcome]}"

    def _teach(self, outcome: str) -> Path:
        """Fine-tune the model that is asked, or reuse that of an interrupted run."""
        assert self.halves is not None
        target, condition = self._taught_folder(outcome), _CONDITIONS[outcome]
        identity = {**self.identity, "condition": condition}
        record = target / RECORD
        if has_weights(target) and json.loads(record.read_text(encoding="utf-8"))["identity"] == identity:
            return target
        shutil.rmtree(target, ignore_errors=True)

        def report(step: Step) -> None:
            self._say(f"{outcome}: fine-tuning, step {step.step} of {step.steps}")

        taught = teach_condition(condition, self.settings, self.halves, self.checkpoints, self.run_folder, report)
        save_stage(*taught, target, {"identity": identity, "stage": target.name, "order": 0, "losses": []})
        return target

    def _record(self, outcome: str, model: Any, rows: list[dict[str, Any]], layers: list[int]) -> xr.Dataset:
        """Record a fine-tuned model on the questions of the self-report about all entities."""
        with suppress_progress_bars():
            return sl.capture(
                {self.stage: model},
                sl.PromptTable.from_dataframe(pd.DataFrame(rows)),
                self.folder / f"{_FILES[outcome]}.zarr",
                sites=[SITE],
                layers=layers,
                positions=list(self.own.positions),
                statistics=False,
                device=self.device,
                progress=False,
            )

    def _run_place(self, outcome: str, layer: int, token: str, entities: tuple[str, ...], asked: _Asked) -> Place:
        """Run all jobs at one place."""
        axis = make_recency_axis(self.ds, self.pair, self.stage, layer, token, entities, self.settings, self.own.random)
        place = Place(outcome, layer, token, axis.unit)
        if asked.recorded is None:
            vectors, shuffled = axis.of_checkpoint(axis.vectors), axis.of_checkpoint(axis.shuffled)
        else:  # two directions of the model before fine-tuning, one of the fine-tuned model: of no checkpoint
            answer, place = self._compare_with_answers(asked.recorded, axis, place)
            vectors, shuffled = xr.concat([axis.vectors, answer], "direction"), axis.shuffled
        tested = sl.directions(vectors, site=SITE, entities=axis.entities)
        unlabelled = sl.directions(shuffled, site=SITE, entities=axis.entities)

        def measure(name: str, kind: Any, doses: Sequence[float], null: Any = "covariance", random: int = 0) -> None:
            what = f"{outcome}, layer {layer}, {token}: {name}"
            table = asked.table if asked.true is None or kind == "steer" else asked.true
            with suppress_progress_bars():
                sl.intervene(
                    {self.stage: asked.model},
                    table,
                    tested,
                    kind,
                    [dose * axis.unit for dose in doses],
                    "answer_difference",
                    (token,),
                    random,
                    self.settings.seed,
                    null=null,
                    unrelated=self._unrelated(UNRELATED if name == "doses" else 1),
                    path=self.folder / "results" / f"{place.file}-{name}.zarr",
                    prepend_bos=asked.prepend_bos,
                    device=self.device,
                    progress=lambda _, done, total: self._say(f"{what}, {done} of {total} rows", done / max(total, 1)),
                )
            self.done += 1

        nulls: dict[str, Any] = {"random": "covariance", "orthogonal": "orthogonal", "shuffled": unlabelled}
        measure("doses", "steer", self.own.doses)
        for name, null in nulls.items():
            measure(f"steer_{name}", "steer", self.own.null_doses, null, self.own.random)
        for name, null in nulls.items() if asked.recorded is not None else ():
            measure(f"ablate_{name}", "ablate", (), null, self.own.random)
        return place

    def _compare_with_answers(
        self, recorded: xr.Dataset, axis: RecencyAxis, place: Place
    ) -> tuple[xr.DataArray, Place]:
        """Make the direction of the answer of a fine-tuned model, and measure where unseen groups lie on the axis."""
        at = recorded[SITE].isel(stage=0).sel(layer=place.layer, token=place.token)
        values = np.asarray(at.values, dtype=np.float64).reshape(recorded.sizes["entity"], -1)
        group = recorded["group"].values.astype(int)
        taught = np.isin(recorded["entity_id"].values.astype(str), axis.entities)
        answer = values[taught & (group == 1)].mean(axis=0) - values[taught & (group == 0)].mean(axis=0)
        along = values[~taught] @ axis.vectors.values[0, 0] / axis.unit**2
        side = group[~taught]
        # With groups of equal size, the mean of +-2 (x - mean) is the difference of their means.
        signed = 2 * (2 * side - 1) * (along - along.mean())
        low, high = cluster_bootstrap(signed, np.arange(len(along)), strata=side, seed=self.settings.seed)
        measured = replace(place, shift=float(signed.mean()), shift_low=float(low), shift_high=float(high))
        return label_vectors([answer], [ANSWER], place.layer), measured

    def _unrelated(self, count: int) -> sl.PromptTable:
        """Questions about entities of no scored group."""
        aliases = {e.entity_id: e.alias for e in self.corpus.entities if e.trained_stage not in self.pair}
        questions = (*self.corpus.test, *(q for stage in self.corpus.train.values() for q in stage))
        rows = [
            {
                "prompt": PROMPT_FORMAT.format(question=q.question),
                "entity": aliases[q.entity_id],
                "entity_id": q.entity_id,
            }
            for q in questions
            if q.entity_id in aliases
        ]
        return sl.PromptTable.from_dataframe(pd.DataFrame(rows[:count]))

    def _say(self, what: str, part: float = 0.0) -> None:
        self.progress.update(what, self.done + part, self.total)


def _grid(own: InterventionSettings, ds: xr.Dataset) -> list[tuple[int, str]]:
    """List layers and positions; after the last block, earlier tokens have no effect on the answer.

    Raises:
        InputError: the model does not have a layer.
    """
    blocks = [int(layer) for layer in ds["layer"].values]
    layers = list(own.layers) if own.layers is not None else [blocks[len(blocks) // 2], blocks[-1]]
    layers = list(dict.fromkeys(layers))
    if unknown := [layer for layer in layers if layer not in blocks]:
        raise InputError(f"interventions.layers: the model has no block {unknown[0]}; valid: {join_names(blocks)}")
    grid = [(layer, token) for token in own.positions for layer in layers]
    grid = [(layer, token) for layer, token in grid if layer != blocks[-1] or token in ("last", "-1")]
    if not grid:
        raise InputError("interventions: after the last block only the last token has an effect; add an earlier layer")
    return grid
