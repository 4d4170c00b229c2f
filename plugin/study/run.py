"""The whole line of the study: corpus, training, recording, analyses, report.

Every step finds what an earlier run with the same settings finished and goes
on from there. What is measured is in `findings`, how training works in `train`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratalens.plugin.study.config.presets import DEMO_REASONS, get_preset
from stratalens.plugin.study.config.settings import StudySettings, read_settings, write_settings
from stratalens.plugin.study.corpus.balance import describe_largest_differences
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.forecast import check_device
from stratalens.plugin.study.models.base_model import BaseModelSource
from stratalens.plugin.study.models.smollm import find_gguf
from stratalens.plugin.study.recording.answers import ANSWERS_FOLDER, ask_checkpoints
from stratalens.plugin.study.recording.stores import (
    CONFLICT_STORE,
    LAST_STORE,
    STORE,
    record_conflict,
    record_last,
    record_stages,
    recorded_stages,
)
from stratalens.plugin.study.training.checkpoints import remove_unneeded_weights, retained_stages, stages_still_needed
from stratalens.plugin.study.training.self_report import run_self_report
from stratalens.plugin.study.training.train import loss_curves, train_stages
from stratalens.plugin.study.training.trainer import Step
from stratalens.plugin.terminal import PhaseProgress, format_duration
from stratalens.store.errors import InputError
from stratalens.store.files import write_text_atomic

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from stratalens.plugin.study.findings.analyses import Findings
    from stratalens.plugin.study.findings.headline import Row


RUN_FILE = "run.yaml"


# Usual shares of the whole time, for the estimate of the time left.
SHARES = {"corpus": 0.04, "training": 0.66, "recording": 0.12, "analyses": 0.15, "report": 0.03}


@dataclass(frozen=True)
class Outcome:
    """Where a run left what it made."""

    folder: Path
    store: Path
    report: Path
    summary: Path


def run_study(
    settings: StudySettings,
    out: str | Path,
    *,
    resume: bool = True,
    notes: Sequence[str] = (),
    smoke_test: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Run the study, or what is left of it; with `seeds`, each in a folder of its own, and a table over them.

    Args:
        settings: the whole run; written to `out`/run.yaml.
        out: folder for everything the run makes.
        resume: go on from an earlier run with the same settings; False
            refuses a folder that has one.
        notes: remarks that the report shows under its limits.
        smoke_test: say so at the top of the report.
        quiet: no progress on standard error.

    Returns:
        Where it all is; with `seeds` the store is that of the first one.

    Raises:
        InputError: the folder holds a run with other settings, or (with
            resume=False) any run; a part of the environment is missing.
    """
    check_device(settings)
    folder = Path(out)
    _claim_folder(folder, settings, resume)
    if not settings.seeds:
        return _run_one_seed(settings, folder, PhaseProgress(SHARES, quiet)).write(folder, notes, smoke_test)
    from stratalens.plugin.study.findings.seeds import describe_seeds, make_seed_table, summarize_seeds

    made: list[FinishedSeed] = []
    for number, seed in enumerate(settings.seeds, 1):
        watch = PhaseProgress(SHARES, quiet)
        watch.say(f"seed {seed} ({number} of {len(settings.seeds)})")
        alone = settings.model_copy(update={"seed": seed, "seeds": ()})
        own = folder / f"seed-{seed}"
        _claim_folder(own, alone, True)
        made.append(_run_one_seed(alone, own, watch))
        made[-1].write(own, notes, smoke_test)
    rows = summarize_seeds({run.settings.seed: run.rows() for run in made})
    write_text_atomic(folder / "seeds.csv", make_seed_table(rows).to_csv(index=False))
    first, last = settings.seeds[0], settings.seeds[-1]
    elsewhere = f"Figures and remarks are of seed {first}; every seed has its own report, as in seed-{last}/."
    outcome = made[0].write(folder, (elsewhere, *notes), smoke_test, rows=rows, highlights=describe_seeds(rows))
    PhaseProgress(SHARES, quiet).say(f"All seeds done. Open {outcome.report} in a browser; numbers: {outcome.summary}")
    return outcome


@dataclass(frozen=True)
class FinishedSeed:
    """One seed, run and analysed, ready to be written down."""

    settings: StudySettings
    folder: Path
    ds: xr.Dataset
    found: Findings
    curves: Sequence[Mapping[str, Any]]
    described: Mapping[str, Any]
    limits: Sequence[str]
    watch: PhaseProgress

    def rows(self) -> list[Row]:
        """Every headline number."""
        from stratalens.plugin.study.findings.output import headline_rows

        return [*headline_rows(self.found, self.ds, self.settings), *self.found.rows]

    def write(
        self,
        folder: Path,
        notes: Sequence[str],
        smoke_test: bool,
        rows: list[Row] | None = None,
        highlights: Sequence[str] = (),
    ) -> Outcome:
        """Write report.html and summary.json to a folder."""
        from stratalens.plugin.study.findings.output import write_report

        with self.watch.phase("report", f"writing {folder / 'report.html'} and summary.json"):
            report, summary = write_report(
                self.found,
                self.ds,
                self.settings,
                folder,
                self.curves,
                {"store": self.folder / STORE, **self.described},
                (*self.limits, *notes),
                smoke_test,
                rows=self.rows() if rows is None else rows,
                highlights=highlights,
            )
        times = {name: round(seconds, 1) for name, seconds in self.watch.seconds.items()}
        (self.folder / "seconds.json").write_text(json.dumps(times) + "\n", encoding="utf-8")
        if rows is None:
            total = format_duration(sum(self.watch.seconds.values()))
            self.watch.say(f"All done in {total}. Open {report} in a browser; numbers: {summary}")
        return Outcome(folder, self.folder / STORE, report, summary)


def _run_one_seed(settings: StudySettings, folder: Path, watch: PhaseProgress) -> FinishedSeed:
    """Train, record and analyse."""
    with watch.phase("corpus", f"making {settings.stages} x {settings.entities_per_stage} entities in {folder}"):
        source = BaseModelSource(settings, folder / "corpus")
        corpus = source.draw_corpus()
        corpus.write(folder / "corpus")
        for line in describe_largest_differences(corpus.balance):
            watch.say(f"      balance between stages, {line}")

    def record(checkpoints: dict[str, Path]) -> tuple[xr.Dataset, xr.Dataset | None, xr.Dataset | None, pd.DataFrame]:
        """Record and ask whatever is not yet, of the checkpoints so far."""
        ds = record_stages(settings, corpus, checkpoints, folder / STORE, watch)
        conflict = record_conflict(settings, source.contradicted, checkpoints, folder / CONFLICT_STORE)
        ended = settings.stage_names[-1] in checkpoints
        wide = record_last(settings, corpus, checkpoints, folder / LAST_STORE, watch) if ended else None
        asked = recorded_stages(settings, checkpoints)
        return ds, conflict, wide, ask_checkpoints(settings, corpus, asked, folder / ANSWERS_FOLDER, watch)

    def reached(checkpoints: dict[str, Path]) -> None:
        """Record what was reached before its weights go."""
        if settings.keep_checkpoints != "all":
            record(checkpoints)
            remove_unneeded_weights(checkpoints, stages_still_needed(settings, list(checkpoints)))

    with watch.phase("training", f"fine-tuning through {settings.stages} stages, one after the other"):

        def report_step(step: Step) -> None:
            watch.update(
                f"{step.stage} ({step.stage_number} of {step.stages}): step {step.step} of {step.steps}, "
                f"loss {step.loss:.2f}",
                (step.stage_number - 1) * step.steps + step.step,
                step.stages * step.steps,
            )

        checkpoints = train_stages(
            lambda: source.load_untrained(corpus),
            corpus,
            settings.train,
            folder / "checkpoints",
            seed=settings.seed,
            base=source.identity,
            device=settings.device,
            progress=report_step,
            stage_epochs=settings.stage_epochs,
            after=settings.after,
            on_course_end=reached,
        )
        curves = loss_curves(checkpoints)
        reported = run_self_report(settings, corpus, checkpoints, folder, report_step) if settings.self_report else None

    with watch.phase("recording", "recording every stage on prompts never seen in training"):
        ds, conflict, wide, answers = record(checkpoints)
        gone = remove_unneeded_weights(checkpoints, retained_stages(settings, list(checkpoints)))
        if gone:
            watch.say(f"      keep_checkpoints: {settings.keep_checkpoints}; removed the weights of {', '.join(gone)}")

    from stratalens.plugin.study.findings.analyses import run_analyses
    from stratalens.plugin.study.findings.conflicts import CONFLICT_TABLE, add_conflict_results
    from stratalens.plugin.study.findings.forgetting import add_forgetting_results
    from stratalens.plugin.study.findings.positions import add_after_results, add_token_results
    from stratalens.plugin.study.findings.self_report import describe_self_report, self_report_rows

    with watch.phase("analyses", "asking all layers and stages"):
        found = run_analyses(ds, settings, watch)
        if wide is not None:
            add_token_results(found, wide, settings)
        add_after_results(found, settings)
        if conflict is not None:
            add_conflict_results(found, ds, conflict, settings, folder / CONFLICT_TABLE)
        if settings.record.statistics:
            add_forgetting_results(found, ds, answers, settings, folder / "forgetting.csv")
        if reported is not None:
            rows = self_report_rows(reported, settings.seed)
            found.rows += rows
            found.sentences.append(describe_self_report(rows, reported["groups"]))
    limits = describe_limits(settings, corpus)
    return FinishedSeed(settings, folder, ds, found, curves, source.describe(checkpoints), limits, watch)


def describe_limits(settings: StudySettings, corpus: Corpus) -> list[str]:
    """What was cut for speed, in sentences for the report."""
    said = []
    if settings.layers is not None:
        said.append(
            f"Only the first {settings.layers} blocks of the model were kept, followed by its final norm and head; "
            "the first stage therefore also teaches the shortened model to answer at all."
        )
    if settings.vocabulary == "used":
        said.append(
            "Embedding and head were cut to the tokens that the corpus uses; hidden states do not change by it."
        )
    entities = "Entities, attributes and questions are made up"
    if settings.entities is not None:
        entities = f"Entities and attributes are those of {Path(settings.entities.file).name}"
        if settings.entities.force:
            entities += ", taken as they are, however much the stages differ (entities.force)"
    said.append(
        f"Balance of attributes between stages: {'; '.join(describe_largest_differences(corpus.balance))} (corpus/balance.csv has all)."
    )
    said.append(
        f"{entities}; {settings.entities_per_stage} entities a stage, one seed "
        f"({settings.seed}), one model. The study it follows used 2,640 entities a stage and a model of 1.2 billion "
        "parameters."
    )
    return said


def _claim_folder(folder: Path, settings: StudySettings, resume: bool) -> None:
    """Make the folder this run's own, or refuse it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the run")
    run_file = folder / RUN_FILE
    if not run_file.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder} is not empty and holds no {RUN_FILE}, so it is no earlier run. Give an empty or new folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(settings, run_file)
        return
    if not resume:
        raise InputError(f"{folder} holds a run already. Go on with it by --resume, or give another folder.")
    held = read_settings(run_file)
    if held != settings:
        differing = [
            f"{name} was {getattr(held, name)!r}, now {getattr(settings, name)!r}"
            for name in StudySettings.model_fields
            if getattr(held, name) != getattr(settings, name)
        ]
        raise InputError(
            f"{folder} holds a run with other settings: {'; '.join(differing)}. "
            "Give another folder, or delete this one."
        )


QUICK_NOTE = (
    "This is the quick setting: so few entities, questions and training steps that it proves nothing. It shows the "
    "line from training to report; for the effect itself run `stratalens demo`."
)


def run_demo(out: str | Path = "demo", *, seed: int = 1, quick: bool = False) -> Outcome:
    """Fine-tune SmolLM2-135M through six stages, record every stage, analyse, report.

    Leaves run.zarr, report.html and summary.json in `out`, beside the corpus,
    the checkpoints and run.yaml. A second run with the same seed reuses what
    is finished. It should take minutes on two idle cores (`quick`: about two).

    Args:
        out: folder for everything.
        seed: of entities, partition and training order of the data.
        quick: a tiny setting that shows the line and proves nothing.

    Raises:
        InputError: the weights are not installed (the message has the pip
            command), or `out` holds another run.
    """
    find_gguf()  # before anything is written
    settings = get_preset("smoke" if quick else "demo", seed=seed)
    notes = (QUICK_NOTE,) if quick else (DEMO_REASONS,)
    return run_study(settings, out, notes=notes, smoke_test=quick)
