"""What a study run is made of: every knob, checked (those of its parts are in `parts`); run files.

The settings that come with the package are in `presets`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stratalens.recency.parts import (
    UNTRAINED,
    AfterSettings,
    AnalysisSettings,
    ConflictSettings,
    EntitiesSettings,
    Positive,
    RecordSettings,
    SelfReportSettings,
    TrainSettings,
)
from stratalens.store.atomic import write_text
from stratalens.store.errors import InputError, near


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
                raise ValueError(f"there is no stage {name!r}: {near(name, self.stage_names)}")
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
    settings = validate(values, f"run file {source}")
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
    write_text(path, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


def validate(values: dict[str, Any], where: str) -> StudySettings:
    """Settings from plain values; wrong ones are an InputError that names each."""
    try:
        return StudySettings.model_validate(values)
    except ValidationError as error:
        lines = [f"{where} is wrong:"]
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"  {place}: unknown key; {near(str(problem['loc'][-1]), _keys(problem['loc'][:-1]))}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"  {place}: {message} (given: {problem['input']!r})")
        raise InputError("\n".join(lines)) from error


def _keys(place: tuple[int | str, ...]) -> list[str]:
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
