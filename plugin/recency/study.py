"""The whole line of the study: corpus, training, recording, analyses, report.

Every step finds what an earlier run with the same settings finished and goes
on from there. What is measured is in `findings`, how training works in `train`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stratalens as sl
from stratalens.recency.balance import worst
from stratalens.recency.corpus import Corpus, make_corpus
from stratalens.recency.models import load_base, quiet_bars
from stratalens.recency.people import People, read_people
from stratalens.recency.settings import UNTRAINED, StudySettings, read_settings, write_settings
from stratalens.recency.train import loss_curves, train_stages
from stratalens.recency.trainer import Step
from stratalens.recency.vocabulary import cut_vocabulary
from stratalens.recency.watch import Watch, span
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RUN_FILE = "run.yaml"
STORE = "run.zarr"

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
    proves_nothing: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Run the study, or what is left of it.

    Args:
        settings: the whole run; written to `out`/run.yaml.
        out: folder for everything the run makes.
        resume: go on from an earlier run with the same settings; False
            refuses a folder that has one.
        notes: remarks that the report shows under its limits.
        proves_nothing: say so at the top of the report.
        quiet: no progress on standard error.

    Raises:
        InputError: the folder holds a run with other settings, or (with
            resume=False) any run; a part of the environment is missing.
    """
    folder = Path(out)
    _claim(folder, settings, resume)
    watch = Watch(SHARES, quiet)

    with watch.phase("corpus", f"making {settings.stages} x {settings.entities_per_stage} entities in {folder}"):
        source = _Base(settings, folder / "corpus")
        corpus = source.corpus()
        corpus.write(folder / "corpus")
        for line in worst(corpus.balance):
            watch.say(f"      balance between stages, {line}")

    with watch.phase("training", f"fine-tuning through {settings.stages} stages, one after the other"):

        def report_step(step: Step) -> None:
            watch.tell(
                f"{step.stage} ({step.stage_number} of {step.stages}): step {step.step} of {step.steps}, "
                f"loss {step.loss:.2f}",
                (step.stage_number - 1) * step.steps + step.step,
                step.stages * step.steps,
            )

        checkpoints = train_stages(
            lambda: source.start(corpus),
            corpus,
            settings.train,
            folder / "checkpoints",
            seed=settings.seed,
            base=source.identity,
            device=settings.device,
            progress=report_step,
            stage_epochs=settings.stage_epochs,
            after=settings.after,
        )
        curves = loss_curves(checkpoints)

    with watch.phase("recording", "recording every stage on prompts never seen in training"):
        ds = _record(settings, corpus, checkpoints, folder / STORE, watch)

    from stratalens.recency.findings import analyse, write_report

    with watch.phase("analyses", "asking all layers and stages"):
        found = analyse(ds, settings, watch)
    with watch.phase("report", "writing report.html and summary.json"):
        described = source.describe(checkpoints)
        limits = (*described_limits(settings, corpus), *notes)
        report, summary = write_report(found, ds, settings, folder, curves, described, limits, proves_nothing)
    times = {name: round(seconds, 1) for name, seconds in watch.seconds.items()}
    (folder / "seconds.json").write_text(json.dumps(times) + "\n", encoding="utf-8")
    watch.say(f"All done in {span(sum(watch.seconds.values()))}. Open {report} in a browser; numbers: {summary}")
    return Outcome(folder, folder / STORE, report, summary)


def described_limits(settings: StudySettings, corpus: Corpus) -> list[str]:
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
        f"Balance of attributes between stages: {'; '.join(worst(corpus.balance))} (corpus/balance.csv has all)."
    )
    said.append(
        f"{entities}; {settings.entities_per_stage} entities a stage, one seed "
        f"({settings.seed}), one model. The study it follows used 2,640 entities a stage and a model of 1.2 billion "
        "parameters."
    )
    return said


def _claim(folder: Path, settings: StudySettings, resume: bool) -> None:
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


class _Base:
    """The base model and its tokenizer, loaded only when a step needs them."""

    def __init__(self, settings: StudySettings, folder: Path) -> None:
        self.settings = settings
        self.tokenizer_folder = folder / "tokenizer"
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What checkpoints are compared by."""
        return {
            "model": self.settings.model,
            "layers": self.settings.layers,
            "vocabulary": self.settings.vocabulary,
        }

    def corpus(self) -> Corpus:
        """The corpus; its aliases depend on the base model's tokenizer."""
        s = self.settings
        own: People | None = None
        limits: dict[str, Any] = {}
        if s.entities is not None:
            own = read_people(s.entities.file, s.entities.questions, s.entities.answer)
            limits = s.entities.model_dump(include={"mean_limit", "share_limit", "force"})
        return make_corpus(
            self.tokenizer(),
            stages=s.stage_names,
            entities_per_stage=s.entities_per_stage,
            seed=s.seed,
            aliases=s.aliases,
            alias_tokens=s.alias_tokens,
            paraphrases=s.paraphrases,
            train_questions=s.train_questions,
            templates=s.record.templates,
            people=own,
            **limits,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base tokenizer; kept beside the corpus, so that a second run need not read the weights for it."""
        if self._tokenizer is None and (self.tokenizer_folder / "tokenizer.json").is_file():
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder)
        if self._tokenizer is None:
            self._model, self._tokenizer = load_base(self.settings.model, self.settings.layers)
            self._tokenizer.save_pretrained(self.tokenizer_folder)
        return self._tokenizer

    def start(self, corpus: Corpus) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model that training starts from."""
        if self._model is None:
            self._model, _ = load_base(self.settings.model, self.settings.layers)
        model, self._model = self._model, None
        if self.settings.vocabulary == "full":
            return model, self.tokenizer()
        return cut_vocabulary(model, self.tokenizer(), corpus.all_texts())

    def describe(self, checkpoints: dict[str, Path]) -> dict[str, Any]:
        """The model in words, for the report."""
        from transformers import AutoConfig

        with quiet_bars():
            config = AutoConfig.from_pretrained(checkpoints[UNTRAINED])
        name = "SmolLM2-135M-Instruct" if self.settings.model == "smollm2" else self.settings.model
        cuts = []
        if self.settings.layers is not None:
            cuts.append(f"its first {config.num_hidden_layers} blocks")
        if self.settings.vocabulary == "used":
            cuts.append(f"{config.vocab_size} tokens in use")
        return {"model": name + (f" ({', '.join(cuts)})" if cuts else "")}


def _record(
    settings: StudySettings, corpus: Corpus, checkpoints: dict[str, Path], path: Path, watch: Watch
) -> xr.Dataset:
    names = list(checkpoints)
    if settings.record.stages == "ends":
        names = [names[0], names[-1]]

    def report_rows(stage: str, done: int, total: int) -> None:
        number = names.index(stage)
        watch.tell(f"{stage}: {done} of {total} prompts", number * total + done, len(names) * total)

    return sl.capture(
        {name: checkpoints[name] for name in names},
        sl.PromptTable.from_dataframe(corpus.prompts()),
        path,
        sites=settings.record.sites,
        positions=settings.record.positions,
        statistics=settings.record.statistics,
        device=settings.device,
        progress=report_rows,
    )
