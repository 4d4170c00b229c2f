"""Settings of a study and of its parts; each class is one block of a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from stratalens.plugin.study.config.templates import TEMPLATES
from stratalens.store.errors import InputError, suggest
from stratalens.store.files import write_text_atomic
from stratalens.store.names import parse_yaml

UNTRAINED = "untrained"
MEAN_LIMIT = 0.25  # standardised mean difference between stages
SHARE_LIMIT = 0.1  # difference of shares of a category


class _Block(BaseModel):
    """A block of a run file: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraSettings(_Block):
    """Settings of the LoRA adapter that train.method lora trains through all stages."""

    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] | None = None  # ends of module names, such as q_proj; None: all linear ones but the head


class TrainSettings(_Block):
    """Training of one stage; optimiser and schedule restart at every stage."""

    method: Literal["full", "lora"] = "full"
    lora: LoraSettings = LoraSettings()
    epochs: PositiveFloat = 5.0
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 5e-5
    optimizer: Literal["adafactor", "adamw", "sgd"] = "adafactor"
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    packing: bool = False  # several texts a row, without attention between them and almost without padding
    # auto: bfloat16 mixed precision where the processor multiplies it in hardware, else float32
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    save: Literal["no", "epoch"] = "no"  # epoch: an interrupted stage resumes after its last complete epoch


class EntitiesSettings(_Block):
    """Your own entities, read from a table, instead of generated ones."""

    file: str  # csv, tsv, jsonl or parquet; a relative path starts at the folder of the run file
    questions: dict[str, tuple[str, ...]] = {}  # question templates by column, {x} for the name
    answer: str | None = None  # the column whose value is the answer to the recorded prompts
    mean_limit: PositiveFloat = MEAN_LIMIT
    share_limit: PositiveFloat = SHARE_LIMIT
    force: bool = False  # accept stages that differ more


class AfterSettings(_Block):
    """A training course after the last stage, on entities that the stages taught."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    train_on: tuple[str, ...] = ()  # stages whose questions it repeats; empty: all of them, mixed
    epochs: PositiveFloat | None = None  # None: as a stage
    learning_rate: PositiveFloat | None = None
    checkpoints: PositiveInt = 1  # evenly spaced; each is recorded as a stage

    @property
    def checkpoint_names(self) -> tuple[str, ...]:
        """Names of the checkpoints, in order.

        >>> AfterSettings(name="mixed", checkpoints=2).checkpoint_names
        ('mixed-1', 'mixed-2')
        """
        if self.checkpoints == 1:
            return (self.name,)
        return tuple(f"{self.name}-{number}" for number in range(1, self.checkpoints + 1))


class ConflictSettings(_Block):
    """Additional entities that an earlier and a later stage teach different answers."""

    stages: tuple[str, str] | None = None  # None: the first and the last
    entities: Annotated[int, Field(ge=4)] = 100
    attribute: str | None = None  # the contradicted attribute; None: the answer of the recorded prompts


class SelfReportSettings(_Block):
    """Fine-tuning on the question which of two stages taught an entity."""

    stages: tuple[str, str] | None = None  # None: the first and the last
    epochs: PositiveFloat = 5.0
    learning_rate: PositiveFloat | None = None  # None: as a stage
    batch_size: PositiveInt | None = None


Dose = Annotated[float, Field(allow_inf_nan=False)]


class InterventionSettings(_Block):
    """Steering and ablation along the recency axis; the outcomes are the self-report and contradicting answers."""

    layers: tuple[NonNegativeInt, ...] | None = None  # None: the middle and the last block
    positions: tuple[str, ...] = ("last", "entity_last")  # of record.positions; where the axis is made and applied
    # in distances between the centroids of the first and the last group
    doses: Annotated[tuple[Dose, ...], Field(min_length=1)] = (-4, -2, -1, 1, 2, 4)
    null_doses: Annotated[tuple[Dose, ...], Field(min_length=2)] = (-2, 2)  # for directions without a meaning, too
    random: Annotated[int, Field(ge=20)] = 20  # directions of each null

    @model_validator(mode="after")
    def _check_doses(self) -> InterventionSettings:
        for name in ("layers", "positions", "doses", "null_doses"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"interventions.{name}: list each value once")
        if 0 in (*self.doses, *self.null_doses):
            raise ValueError("interventions: a dose of 0 changes nothing; leave it out")
        return self


def check_template_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names if each is a template.

    Raises:
        ValueError: a name is no template.
    """
    for name in names:
        if name not in TEMPLATES:
            raise ValueError(f"unknown template {name!r}: {suggest(name, TEMPLATES)}")
    return names


TemplateNames = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(check_template_names)]
StoreDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class LastSettings(_Block):
    """A wider recording of the last stage, in a separate store (last.zarr)."""

    templates: TemplateNames = tuple(TEMPLATES)
    sites: tuple[str, ...] = ("resid_post",)
    positions: tuple[str, ...] = ("last", "-2", "-3", "-4", "-5", "-6", "-7", "-8", "entity_last")
    dtype: StoreDtype = "auto"


class RecordSettings(_Block):
    """The recording of every stage."""

    templates: TemplateNames = ("who",)
    sites: tuple[str, ...] = ("resid_post", "ln_final")
    positions: tuple[str, ...] = ("last", "entity_last")
    dtype: StoreDtype = "auto"
    stages: Literal["all", "ends"] = "all"  # ends: only the untrained and the last stage
    # entities of each stage that are recorded at all stages; None: all. The untrained and the last stage are then also
    # recorded with all entities, in ends.zarr, from which the headline numbers come
    sample: Annotated[int, Field(ge=12)] | None = None
    statistics: bool = True
    # questions that every checkpoint answers, out of all answers: one of every entity, all of them, or none
    answers: Literal["one", "all", "none"] = "one"
    last: LastSettings | None = None


class AnalysisSettings(_Block):
    """Regularisation, folds and resampling of the analyses."""

    C: PositiveFloat = 0.1
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: PositiveInt = 20
    permutations: NonNegativeInt = 1000  # of the projection, for the headline numbers
    sweep_permutations: NonNegativeInt = 200  # of the projection, at every stage, layer and token
    probe_permutations: NonNegativeInt = 200  # of the probes, for the headline numbers
    bins: Annotated[int, Field(ge=2)] = 5
    statistic_sets: bool = False  # what each set of statistics leaves of the effect (controls.csv)
    matching_bins: tuple[Annotated[int, Field(ge=2)], ...] = (2, 3, 5, 8)  # of each statistic, for statistic_sets
    set_permutations: PositiveInt = 100  # labels drawn from the statistics, for statistic_sets


class StudySettings(_Block):
    """All settings of a study; `run.yaml` in its output folder holds them."""

    preset: str = "custom"
    model: str = "smollm2"  # from the package index; or a folder or hub name
    layers: PositiveInt | None = None  # keep the first blocks only; None keeps all
    vocabulary: Literal["used", "full"] = "full"  # used: cut to the tokens in use
    aliases: Literal["letters", "natural"] = "letters"
    alias_tokens: PositiveInt | None = None
    stages: Annotated[int, Field(ge=3, le=26)] = 6  # an order needs three
    entities: EntitiesSettings | None = None  # None: generated
    entities_per_stage: PositiveInt = 2640
    train_questions: PositiveInt = 5  # for every entity; up to the number of kinds (6 for generated entities)
    paraphrases: PositiveInt = 1  # question templates in use for every kind (up to 3 for generated entities)
    seed: NonNegativeInt = 0
    seeds: tuple[NonNegativeInt, ...] = ()  # several, instead of `seed`: each runs in its own folder
    device: str | None = None
    gpu: bool = False  # refuse a machine without a GPU, unless `device` is set
    train: TrainSettings = TrainSettings()
    stage_epochs: dict[str, PositiveFloat] = {}  # other epochs for some stages, such as {s3: 15}
    after: tuple[AfterSettings, ...] = ()
    self_report: SelfReportSettings | None = None
    conflict: ConflictSettings | None = None
    interventions: InterventionSettings | None = None
    record: RecordSettings = RecordSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    # weights that a finished run keeps: of all checkpoints, of the last ones, or of none; the run removes the others
    # once the stores and answers hold what it records of them
    keep_checkpoints: Literal["all", "last", "none"] = "all"

    @model_validator(mode="after")
    def _check_names(self) -> StudySettings:
        for course in self.after:
            if course.name in (UNTRAINED, *self.stage_names):
                raise ValueError(f"after: {course.name!r} is the name of a stage; choose another name")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {', '.join(map(str, self.seeds))}; list each seed once")
        names = [course.name for course in self.after]
        if len(set(names)) < len(names):
            raise ValueError(f"after: names must differ; they are {', '.join(names)}")
        reported: tuple[str, ...] = (self.self_report.stages if self.self_report else None) or ()
        contradicted: tuple[str, ...] = (self.conflict.stages if self.conflict else None) or ()
        for key, pair in (("self_report", reported), ("conflict", contradicted)):
            if len(set(pair)) < len(pair):
                raise ValueError(f"{key}.stages: give two different stages, not {pair[0]!r} twice")
        if self.interventions is not None:
            self._check_interventions(self.interventions)
        order = [self.stage_names.index(name) for name in contradicted if name in self.stage_names]
        if order != sorted(order):
            raise ValueError(f"conflict.stages: {', '.join(contradicted)} are not in training order; swap them")
        repeated = [stage for course in self.after for stage in course.train_on]
        for name in (*reported, *contradicted, *self.stage_epochs, *repeated):
            if name not in self.stage_names:
                raise ValueError(f"there is no stage {name!r}: {suggest(name, self.stage_names)}")
        return self

    def _check_interventions(self, own: InterventionSettings) -> None:
        if self.self_report is None and self.conflict is None:
            raise ValueError(
                "interventions: they change the self-report and contradicting answers; add self_report or conflict"
            )
        if "resid_post" not in self.record.sites:
            raise ValueError("interventions: the axis is made from resid_post; add it to record.sites")
        for position in own.positions:
            if position not in self.record.positions:
                raise ValueError(
                    f"interventions.positions: {position!r} is not recorded: "
                    f"{suggest(position, self.record.positions)}; add it to record.positions"
                )

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the training stages, in training order."""
        return tuple(f"s{number}" for number in range(1, self.stages + 1))

    @property
    def end_stages(self) -> tuple[str, str]:
        """The first and the last training stage.

        >>> StudySettings(stages=4).end_stages
        ('s1', 's4')
        """
        return self.stage_names[0], self.stage_names[-1]


def read_settings(path: str | Path) -> StudySettings:
    """Read the run file of a study (YAML with the keys of `StudySettings`).

    Raises:
        InputError: the file is missing or not YAML, or a key or value is wrong.
    """
    source = Path(path)
    if not source.is_file():
        raise InputError(f"Run file {source} does not exist. Give a YAML file, or a --preset")
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"Run file {source} is not readable as YAML: {error}") from error
    values = parse_yaml(text, f"Run file {source}")
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
    """Return whether a run file is of a study: it has no key of a capture."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False  # the function that reads the file reports the error
    return isinstance(values, dict) and not {"prompts", "store", "sites", "positions", "by"} & set(values)


def write_settings(settings: StudySettings, path: str | Path) -> None:
    """Write all settings, defaults included, so that the run can be repeated."""
    write_text_atomic(path, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


def validate_settings(values: dict[str, Any], where: str) -> StudySettings:
    """Turn plain values into settings.

    Args:
        values: the keys of a run file.
        where: their source, for error messages.

    Raises:
        InputError: a key or value is wrong; the message names each.
    """
    try:
        return StudySettings.model_validate(values)
    except ValidationError as error:
        lines = [f"{where} is wrong:"]
        for problem in error.errors():
            *parents, key = problem["loc"] or ("",)
            place = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"  {place}: unknown key; {suggest(str(key), _valid_keys(parents))}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"  {place}: {message} (value: {problem['input']!r})")
        raise InputError("\n".join(lines)) from error


def _valid_keys(place: list[int | str]) -> list[str]:
    """List the valid keys of a block, also inside lists and optional blocks."""
    model: type[BaseModel] = StudySettings
    for part in place:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        types = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        block = next((kind for kind in types if issubclass(kind, BaseModel)), None)
        if block is None:
            break
        model = block
    return list(model.model_fields)
