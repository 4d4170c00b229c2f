"""The parts of a study's settings: how it trains, what it records, whom it is about, what it asks afterwards.

Every class is one block of a run file; the whole is `settings.StudySettings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stratalens.plugin.study.config import templates as texts
from stratalens.store.errors import InputError, suggest
from stratalens.store.files import write_text_atomic

Positive = Annotated[int, Field(ge=1)]


UNTRAINED = "untrained"
MEAN_LIMIT = 0.25  # standardised mean difference between stages
SHARE_LIMIT = 0.1  # difference of shares of a category


class LoraSettings(BaseModel):
    """The adapter that train.method lora trains: one, trained on from stage to stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: Positive = 8
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] | None = None  # ends of module names, such as q_proj; None: every linear one but the head


class TrainSettings(BaseModel):
    """How one stage is trained; optimiser and schedule restart at every stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["full", "lora"] = "full"
    lora: LoraSettings = LoraSettings()
    epochs: Annotated[float, Field(gt=0)] = 5.0
    batch_size: Positive = 256
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    optimizer: Literal["adafactor", "adamw", "sgd"] = "adafactor"
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    # auto: bfloat16 mixed precision where the processor multiplies it in hardware, else float32
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    save: Literal["no", "epoch"] = "no"  # epoch: an interrupted stage goes on from its last whole epoch


class EntitiesSettings(BaseModel):
    """Entities of one's own instead of made-up ones; how their table looks is in `people`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str  # csv, tsv, jsonl or parquet; a relative path is taken from the folder of the run file
    questions: dict[str, tuple[str, ...]] = {}  # wordings by column, {x} for the name
    answer: str | None = None  # the column whose value recorded prompts are scored on
    mean_limit: Annotated[float, Field(gt=0)] = MEAN_LIMIT
    share_limit: Annotated[float, Field(gt=0)] = SHARE_LIMIT
    force: bool = False  # go on with stages that differ more


class AfterSettings(BaseModel):
    """A course of training after the last stage, on entities that the stages have taught already."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    train_on: tuple[str, ...] = ()  # stages whose questions it repeats; none given: all of them, mixed
    epochs: Annotated[float, Field(gt=0)] | None = None  # None: as a stage
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    checkpoints: Positive = 1  # evenly spaced along it; each is recorded as a stage


class ConflictSettings(BaseModel):
    """Further entities that are taught one answer in an earlier stage and another one in a later."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stages: tuple[str, str] | None = None  # None: the first and the last
    entities: Annotated[int, Field(ge=4)] = 100
    attribute: str | None = None  # which answer is contradicted; None: the one that recorded prompts are scored on


class SelfReportSettings(BaseModel):
    """Fine-tuning on the question which of two stages an entity was learned in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stages: tuple[str, str] | None = None  # None: the first and the last
    epochs: Annotated[float, Field(gt=0)] = 5.0
    learning_rate: Annotated[float, Field(gt=0)] | None = None  # None: as a stage
    batch_size: Positive | None = None


def check_template_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if each is a template."""
    for name in names:
        if name not in texts.TEMPLATES:
            raise ValueError(f"unknown template {name!r}: {suggest(name, texts.TEMPLATES)}")
    return names


TemplateNames = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(check_template_names)]


StoreDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class LastSettings(BaseModel):
    """What is recorded of the last stage beyond the others, in a store of its own (last.zarr)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    templates: TemplateNames = tuple(texts.TEMPLATES)
    sites: tuple[str, ...] = ("resid_post",)
    positions: tuple[str, ...] = ("last", "-2", "-3", "-4", "-5", "-6", "-7", "-8", "entity_last")
    dtype: StoreDtype = "auto"


class RecordSettings(BaseModel):
    """What is recorded at every stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    templates: TemplateNames = ("who",)
    sites: tuple[str, ...] = ("resid_post", "ln_final")
    positions: tuple[str, ...] = ("last", "entity_last")
    dtype: StoreDtype = "auto"
    stages: Literal["all", "ends"] = "all"  # ends: only the untrained and the last stage
    statistics: bool = True
    # questions asked of every checkpoint, the answer chosen among all: one of every entity, all of them, or none
    answers: Literal["one", "all", "none"] = "one"
    last: LastSettings | None = None


class AnalysisSettings(BaseModel):
    """How much the analyses resample."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    C: Annotated[float, Field(gt=0)] = 0.1
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Positive = 20
    permutations: Annotated[int, Field(ge=0)] = 1000  # of the plane, at the headline place
    sweep_permutations: Annotated[int, Field(ge=0)] = 200  # of the plane, everywhere
    probe_permutations: Annotated[int, Field(ge=0)] = 200  # of the probes, at the headline place
    bins: Annotated[int, Field(ge=2)] = 5


class StudySettings(BaseModel):
    """A whole run of the study; `run.yaml` in its output folder is one of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "custom"
    model: str = "smollm2"  # from the package index; or a folder or hub name
    layers: Positive | None = None  # keep the first blocks only; None keeps all
    vocabulary: Literal["used", "full"] = "full"  # used: cut to the tokens in use
    aliases: Literal["letters", "natural"] = "letters"
    alias_tokens: Positive | None = None
    stages: Annotated[int, Field(ge=3, le=26)] = 6  # an order needs three
    entities: EntitiesSettings | None = None  # None: made up
    entities_per_stage: Positive = 2640
    train_questions: Positive = 5  # of every entity; up to the number of kinds (made-up people: 6)
    paraphrases: Positive = 1  # wordings in use (made-up people: up to 3)
    seed: Annotated[int, Field(ge=0)] = 0
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()  # several, instead of `seed`: each runs in its own folder
    device: str | None = None
    gpu: bool = False  # refuse a machine without one, unless `device` is given
    train: TrainSettings = TrainSettings()
    stage_epochs: dict[str, Annotated[float, Field(gt=0)]] = {}  # other epochs for some stages, such as {s3: 15}
    after: tuple[AfterSettings, ...] = ()
    self_report: SelfReportSettings | None = None
    conflict: ConflictSettings | None = None
    record: RecordSettings = RecordSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    # weights of checkpoints: all of them, those of the end (last), or none. What is not kept is removed once the
    # stores and answers hold what is recorded of it
    keep_checkpoints: Literal["all", "last", "none"] = "all"

    @model_validator(mode="after")
    def _known_stages(self) -> StudySettings:
        for extra in self.after:
            if extra.name in (UNTRAINED, *self.stage_names):
                raise ValueError(f"after: the name {extra.name!r} is taken by a stage; give another")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: each once, given {', '.join(map(str, self.seeds))}")
        names = [extra.name for extra in self.after]
        if len(set(names)) < len(names):
            raise ValueError(f"after: names must differ, given {', '.join(names)}")
        told: tuple[str, ...] = (self.self_report.stages if self.self_report else None) or ()
        against: tuple[str, ...] = (self.conflict.stages if self.conflict else None) or ()
        for key, pair in (("self_report", told), ("conflict", against)):
            if len(set(pair)) < len(pair):
                raise ValueError(f"{key}.stages: give two stages, not {pair[0]!r} twice")
        order = [self.stage_names.index(name) for name in against if name in self.stage_names]
        if order != sorted(order):
            raise ValueError(f"conflict.stages: the earlier one comes first, given {', '.join(against)}")
        for name in (*told, *against, *self.stage_epochs, *(stage for extra in self.after for stage in extra.train_on)):
            if name not in self.stage_names:
                raise ValueError(f"there is no stage {name!r}: {suggest(name, self.stage_names)}")
        return self

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the training stages, in training order."""
        return tuple(f"s{number}" for number in range(1, self.stages + 1))


def read_settings(path: str | Path) -> StudySettings:
    """Read a study's run file (YAML with the keys of `StudySettings`).

    Raises:
        InputError: the file is missing or not YAML, or a key or value is wrong.
    """
    source = Path(path)
    if not source.is_file():
        raise InputError(f"Run file {source} does not exist. Give a YAML file, or a --preset")
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"Run file {source} is not readable as YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(
            f"Run file {source} must hold `key: value` lines; keys: {', '.join(StudySettings.model_fields)}"
        )
    settings = validate_settings(values, f"run file {source}")
    if settings.entities is None:
        return settings
    file = str((source.parent / Path(settings.entities.file).expanduser()).resolve())
    return settings.model_copy(update={"entities": settings.entities.model_copy(update={"file": file})})


def is_study_file(path: Path) -> bool:
    """Whether a run file is one of a study: it has no key that only a capture has."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False  # whoever reads it says what is wrong
    return isinstance(values, dict) and not {"prompts", "store", "sites", "positions", "by"} & set(values)


def write_settings(settings: StudySettings, path: str | Path) -> None:
    """Write the complete settings, defaults spelled out, so that the run replays."""
    write_text_atomic(path, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


def validate_settings(values: dict[str, Any], where: str) -> StudySettings:
    """Settings from plain values; wrong ones are an InputError that names each."""
    try:
        return StudySettings.model_validate(values)
    except ValidationError as error:
        lines = [f"{where} is wrong:"]
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(
                    f"  {place}: unknown key; {suggest(str(problem['loc'][-1]), _valid_keys(problem['loc'][:-1]))}"
                )
            else:
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"  {place}: {message} (given: {problem['input']!r})")
        raise InputError("\n".join(lines)) from error


def _valid_keys(place: tuple[int | str, ...]) -> list[str]:
    """Keys that are valid at a place of the settings, also inside lists and what may be left out."""
    model: type[BaseModel] = StudySettings
    for part in place:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        found = next((kind for kind in inner if issubclass(kind, BaseModel)), None)
        if found is None:
            break
        model = found
    return list(model.model_fields)
