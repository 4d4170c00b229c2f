"""The whole pipeline of the study: corpus, training, recording, analyses, report.

Every step reuses the results of an earlier run with the same settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratalens.plugin.progress import PhaseProgress
from stratalens.plugin.study.config.presets import DEMO_REASONS, DEMO_RESULTS, DEMO_SEED, get_preset
from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings, read_settings, write_settings
from stratalens.plugin.study.corpus.balance import describe_largest_differences
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.findings.headline import format_estimate
from stratalens.plugin.study.forecast import check_device
from stratalens.plugin.study.models.base_model import BaseModelSource
from stratalens.plugin.study.models.smollm import find_gguf
from stratalens.plugin.study.recording import stores
from stratalens.plugin.study.recording.answers import ANSWERS_FOLDER, ask_checkpoints
from stratalens.plugin.study.recording.interventions import run_interventions
from stratalens.plugin.study.recording.self_report import run_self_report
from stratalens.plugin.study.training.checkpoints import remove_unneeded_weights, retained_stages, stages_still_needed
from stratalens.plugin.study.training.train import loss_curves, train_stages
from stratalens.plugin.study.training.trainer import Step
from stratalens.store.errors import InputError
from stratalens.store.files import write_text_atomic

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from stratalens.plugin.study.findings.output import FinishedSeed, Outcome


RUN_FILE = "run.yaml"

# Usual shares of the whole time, for the estimate of the time left; measured in the demo.
SHARES = {"corpus": 0.02, "training": 0.66, "recording": 0.2, "analyses": 0.1, "report": 0.02}

QUICK_NOTE = (
    "This is the quick setting, with so few entities, questions and training steps that its results are not "
    "meaningful. It shows the pipeline from training to report; run `stratalens demo` for the effect itself."
)


def run_demo(out: str | Path = "demo", *, seed: int = 1, quick: bool = False) -> Outcome:
    """Fine-tune SmolLM2-135M through six stages, record every stage, analyse, report.

    Writes run.zarr, report.html and summary.json to `out`, next to the corpus,
    the checkpoints and run.yaml. A second run with the same seed reuses
    finished steps. The demo takes minutes on two idle cores.

    Args:
        out: folder for everything.
        seed: seed of entities, partition and training order of the data.
        quick: use a tiny setting that runs the pipeline in about two minutes;
            its results are not meaningful.

    Returns:
        Paths of the output.

    Raises:
        InputError: the weights are not installed (the message has the pip
            command), or `out` holds another run.
    """
    find_gguf()  # before anything is written
    settings = get_preset("smoke" if quick else "demo", seed=seed)
    outcome = run_study(settings, out, notes=(QUICK_NOTE if quick else DEMO_REASONS,), smoke_test=quick)
    if not quick:
        rows = json.loads(outcome.summary.read_text(encoding="utf-8"))
        for line in compare_with_documented(rows, seed):
            PhaseProgress(SHARES).say(line)
    return outcome


def compare_with_documented(rows: Sequence[Mapping[str, Any]], seed: int) -> list[str]:
    """Compare the numbers of a demo with those of its documented run, one line each.

    Args:
        rows: rows of summary.json.
        seed: the seed of the demo.

    Example:
        >>> row = {"name": "first v last accuracy", "value": 0.64, "low": 0.6, "high": 0.68}
        >>> compare_with_documented([row], 1)[1]
        '  first v last accuracy: 0.64 (95 % interval 0.60 to 0.68), documented 0.67 (0.63 to 0.70)'
    """
    same = "the same seed" if seed == DEMO_SEED else f"seed {DEMO_SEED}, so other entities"
    lines = [f"This run and the documented one ({same}; another processor changes the values by some 0.03):"]
    for row in rows:
        if row["name"] in DEMO_RESULTS and row["value"] is not None:
            value, low, high = DEMO_RESULTS[row["name"]]
            documented = f"documented {value:.2f} ({low:.2f} to {high:.2f})"
            lines.append(f"  {row['name']}: {format_estimate(row)}, {documented}")
    return lines


def run_study(
    settings: StudySettings,
    out: str | Path,
    *,
    resume: bool = True,
    notes: Sequence[str] = (),
    smoke_test: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Run the study, or resume it.

    With `seeds`, each seed runs in its own folder, and the report and summary.json summarise all of them.

    Args:
        settings: all settings; written to `out`/run.yaml.
        out: folder for everything the run writes.
        resume: resume an earlier run with the same settings; False refuses a
            folder that has one.
        notes: remarks that the report shows with its caveats.
        smoke_test: put a banner at the top of the report that its results are
            not meaningful.
        quiet: print no progress.

    Returns:
        Paths of the output; with `seeds` the store is that of the first one.

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

    runs: list[FinishedSeed] = []
    for number, seed in enumerate(settings.seeds, 1):
        progress = PhaseProgress(SHARES, quiet)
        progress.say(f"seed {seed} ({number} of {len(settings.seeds)})")
        seed_settings = settings.model_copy(update={"seed": seed, "seeds": ()})
        seed_folder = folder / f"seed-{seed}"
        _claim_folder(seed_folder, seed_settings, True)
        runs.append(_run_one_seed(seed_settings, seed_folder, progress))
        runs[-1].write(seed_folder, notes, smoke_test)
    rows = summarize_seeds({run.settings.seed: run.rows() for run in runs})
    write_text_atomic(folder / "seeds.csv", make_seed_table(rows).to_csv(index=False))
    first, last = settings.seeds[0], settings.seeds[-1]
    seed_note = f"Figures and remarks are those of seed {first}. Every seed has its own report, such as seed-{last}/."
    outcome = runs[0].write(folder, (seed_note, *notes), smoke_test, rows=rows, highlights=describe_seeds(rows))
    PhaseProgress(SHARES, quiet).say(f"All seeds done. Open {outcome.report} in a browser; numbers: {outcome.summary}")
    return outcome


def _run_one_seed(settings: StudySettings, folder: Path, progress: PhaseProgress) -> FinishedSeed:
    """Train, record and analyse one seed."""
    size = f"{settings.stages} x {settings.entities_per_stage} entities"
    with progress.phase("corpus", f"making {size} in {folder}"):
        source = BaseModelSource(settings, folder / "corpus")
        corpus = source.draw_corpus()
        corpus.write(folder / "corpus")
        for phrase in describe_largest_differences(corpus.balance):
            progress.say(f"      balance between stages, {phrase}")

    def record(checkpoints: dict[str, Path]) -> tuple[dict[str, xr.Dataset], pd.DataFrame]:
        """Record and ask the checkpoints so far, unless an earlier call has done so."""
        plans = stores.plan_stores(settings, corpus, source.contradicted, checkpoints)
        opened = {name: stores.record_store(plan, folder / name, settings, progress) for name, plan in plans.items()}
        asked = plans[stores.STORE].stages
        return opened, ask_checkpoints(settings, corpus, asked, folder / ANSWERS_FOLDER, progress)

    def record_and_remove(checkpoints: dict[str, Path]) -> None:
        """Record the checkpoints so far, then remove the weights that no step needs."""
        if settings.keep_checkpoints != "all":
            record(checkpoints)
            remove_unneeded_weights(checkpoints, stages_still_needed(settings, list(checkpoints)))

    def report_step(step: Step) -> None:
        progress.update(
            f"{step.stage} ({step.stage_number} of {step.stages}): step {step.step} of {step.steps}, "
            f"loss {step.loss:.2f}",
            (step.stage_number - 1) * step.steps + step.step,
            step.stages * step.steps,
        )

    with progress.phase("training", f"fine-tuning through {settings.stages} stages, one after the other"):
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
            on_course_end=record_and_remove,
        )
        losses = loss_curves(checkpoints)
        self_report = None
        if settings.self_report:
            self_report = run_self_report(settings, corpus, checkpoints, folder, report_step)

    with progress.phase("recording", "recording every stage on prompts never seen in training"):
        opened, answers = record(checkpoints)
        run_stages = (UNTRAINED, *settings.stage_names)
        ds = stores.with_order_of_run(opened[stores.STORE], run_stages)
        ends = None
        if stores.ENDS_STORE in opened:
            ends = stores.with_order_of_run(opened[stores.ENDS_STORE], run_stages)
        interventions = None
        if settings.interventions is not None:
            contradicted = source.contradicted
            interventions = run_interventions(settings, corpus, contradicted, checkpoints, ds, folder, progress)
        removed = remove_unneeded_weights(checkpoints, retained_stages(settings, list(checkpoints)))
        if removed:
            policy = f"keep_checkpoints: {settings.keep_checkpoints}"
            progress.say(f"      {policy}; removed the weights of {', '.join(removed)}")

    from stratalens.plugin.study.findings.analyses import run_analyses
    from stratalens.plugin.study.findings.conflicts import CONFLICT_TABLE, add_conflict_results
    from stratalens.plugin.study.findings.forgetting import add_forgetting_results
    from stratalens.plugin.study.findings.interventions import add_intervention_results
    from stratalens.plugin.study.findings.output import FinishedSeed
    from stratalens.plugin.study.findings.positions import add_after_results, add_token_results
    from stratalens.plugin.study.findings.self_report import describe_self_report, self_report_rows

    with progress.phase("analyses", "analysing all layers and stages"):
        findings = run_analyses(ds, settings, progress, ends)
        if stores.LAST_STORE in opened:
            add_token_results(findings, opened[stores.LAST_STORE], settings)
        add_after_results(findings, settings)
        if stores.CONFLICT_STORE in opened:
            add_conflict_results(findings, ds, opened[stores.CONFLICT_STORE], settings, folder / CONFLICT_TABLE)
        if settings.record.statistics:
            add_forgetting_results(findings, ds, answers, settings, folder / "forgetting.csv")
        if self_report is not None:
            rows = self_report_rows(self_report, settings.seed)
            findings.rows += rows
            findings.sentences.append(describe_self_report(rows, self_report["groups"]))
        if interventions is not None:
            add_intervention_results(findings, interventions, settings.seed)
    model, limits = source.describe(checkpoints), describe_limits(settings, corpus)
    return FinishedSeed(settings, folder, ds, findings, losses, model, limits, progress)


def describe_limits(settings: StudySettings, corpus: Corpus) -> list[str]:
    """Describe for the report what the settings cut and where the entities come from."""
    sentences = []
    if settings.layers is not None:
        sentences.append(
            f"The model has only its first {settings.layers} blocks, followed by its final norm and head; the first "
            "stage therefore also teaches the shortened model to answer at all."
        )
    if settings.vocabulary == "used":
        sentences.append(
            "Embedding and head have only the tokens that the corpus uses; hidden states do not change by this."
        )
    differences = "; ".join(describe_largest_differences(corpus.balance))
    sentences.append(f"Balance of attributes between stages: {differences} (corpus/balance.csv has all).")
    entities = "Entities, attributes and questions are generated"
    if settings.entities is not None:
        entities = f"Entities and attributes are those of {Path(settings.entities.file).name}"
        if settings.entities.force:
            entities += ", accepted however much the stages differ (entities.force)"
    sentences.append(
        f"{entities}; {settings.entities_per_stage} entities a stage, one seed ({settings.seed}), one model. The study "
        "that this one follows used 2,640 entities a stage and a model of 1.2 billion parameters."
    )
    return sentences


def _claim_folder(folder: Path, settings: StudySettings, resume: bool) -> None:
    """Write the settings to a new folder, or compare them with those of an earlier run.

    Args:
        folder: the folder of the run.
        settings: the settings of the run.
        resume: whether an earlier run is accepted.

    Raises:
        InputError: the folder holds other files, a run with other settings, or (without resume) any run.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the run")
    run_file = folder / RUN_FILE
    if not run_file.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder} is not empty and has no {RUN_FILE}, so it is no earlier run. Give an empty or new folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(settings, run_file)
        return
    if not resume:
        raise InputError(f"{folder} holds a run already. Resume it with --resume, or give another folder.")
    earlier = read_settings(run_file)
    without = settings.model_copy(update={"interventions": None})
    if earlier == without != settings:  # a finished run can be asked for interventions later
        write_settings(settings, run_file)
    elif earlier != settings:
        differences = [
            f"{name} was {getattr(earlier, name)!r}, now {getattr(settings, name)!r}"
            for name in StudySettings.model_fields
            if getattr(earlier, name) != getattr(settings, name)
        ]
        raise InputError(
            f"{folder} holds a run with other settings: {'; '.join(differences)}. "
            "Give another folder, or delete this one."
        )
