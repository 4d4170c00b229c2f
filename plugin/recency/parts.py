"""The parts of a study's settings: how it trains, what it records, whom it is about, what it asks afterwards.

Every class is one block of a run file; the whole is `settings.StudySettings`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from stratalens.recency.corpus import texts
from stratalens.recency.corpus.balance import MEAN_LIMIT, SHARE_LIMIT
from stratalens.store.errors import near

Positive = Annotated[int, Field(ge=1)]
UNTRAINED = "untrained"


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
    mean_limit: Annotated[float, Field(gt=0)] = MEAN_LIMIT  # standardised mean difference between stages
    share_limit: Annotated[float, Field(gt=0)] = SHARE_LIMIT  # difference of shares of a category
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


def known_templates(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if each is a template."""
    for name in names:
        if name not in texts.TEMPLATES:
            raise ValueError(f"unknown template {name!r}: {near(name, texts.TEMPLATES)}")
    return names


Templates = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(known_templates)]
StoreDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class LastSettings(BaseModel):
    """What is recorded of the last stage beyond the others, in a store of its own (last.zarr)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    templates: Templates = tuple(texts.TEMPLATES)
    sites: tuple[str, ...] = ("resid_post",)
    positions: tuple[str, ...] = ("last", "-2", "-3", "-4", "-5", "-6", "-7", "-8", "entity_last")
    dtype: StoreDtype = "auto"


class RecordSettings(BaseModel):
    """What is recorded at every stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    templates: Templates = ("who",)
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
