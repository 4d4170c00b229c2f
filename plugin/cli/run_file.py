"""The run file: one YAML page that says what a capture records and that replays it.

What lives here: the keys, their defaults, their checks, reading and writing.
What does not: doing any of it (`stratalens.plugin.cli.store_jobs`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from fsspec.core import url_to_fs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stratalens.store.errors import InputError, suggest
from stratalens.store.files import write_text_atomic
from stratalens.store.storage.base import PRIVATE
from stratalens.store.storage.resolve import is_url

if TYPE_CHECKING:
    from stratalens.plugin.capture.spec import CaptureOptions


class StageEntry(BaseModel):
    """One checkpoint to record: a folder, a revision of the model on its hub, or a LoRA adapter on it.

    With none of `path`, `revision` and `adapter` the stage is the model itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    path: Path | None = None
    revision: str | None = None
    adapter: Path | None = None
    order: int | None = None

    @model_validator(mode="after")
    def _one_source(self) -> StageEntry:
        given = [key for key in ("path", "revision", "adapter") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"stage {self.name!r} gives {' and '.join(given)}; a stage has one source, keep one of them"
            )
        return self


class RunFile(BaseModel):
    """Everything `stratalens capture` needs to know.

    Relative paths are taken from the folder of the run file, so that a run
    replays from any working directory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: Path
    store: Path | str  # a folder, or an fsspec URL such as s3://bucket/run.zarr
    model: str | None = None  # a hub name or a folder; not needed where every stage has a path
    stages: tuple[StageEntry, ...] = ()
    sites: tuple[str, ...] = ("resid_post",)
    layers: tuple[int, ...] | None = None
    positions: tuple[str, ...] | Literal["all"] = ("last",)
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    compression: Literal["none", "zstd"] = "none"
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    device: str | None = None
    statistics: bool | tuple[str, ...] = True
    allow_same_weights: bool = False
    by: str = "trained_stage"

    def capture_options(self) -> CaptureOptions:
        """Return the options of the capture that this file describes."""
        from stratalens.plugin.capture.spec import CaptureOptions

        return CaptureOptions(
            sites=self.sites,
            layers=self.layers,
            positions=self.positions,
            dtype=self.dtype,
            statistics=self.statistics,
            compression=self.compression,
            batch_size=self.batch_size,
            device=self.device,
            allow_same_weights=self.allow_same_weights,
        )

    @field_validator("store", mode="before")
    @classmethod
    def _place(cls, given: Any) -> Any:
        """A URL stays text; as a path it would lose a slash."""
        if not isinstance(given, str | Path) or not str(given):
            raise ValueError("must be a folder, or a URL such as s3://bucket/run.zarr")
        return str(given) if is_url(str(given)) else Path(str(given).removeprefix("file://"))

    @field_validator("stages", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """`{base: folder}` and `[base]` mean what they look like."""
        if isinstance(given, dict):
            return tuple({"name": name, "path": path} for name, path in given.items())
        if isinstance(given, list | tuple):
            return tuple({"name": entry} if isinstance(entry, str) else entry for entry in given)
        raise ValueError("must be a list such as [{name: base, path: checkpoints/base}], or {base: checkpoints/base}")

    @model_validator(mode="after")
    def _some_model(self) -> RunFile:
        without = [stage.name for stage in self.stages if stage.path is None]
        if self.model is None and (without or not self.stages):
            who = f"stage {without[0]!r} has no path" if without else "there are no stages with a path"
            raise ValueError(f"model: missing, and {who}; add a line `model: NAME or FOLDER`")
        return self

    @model_validator(mode="after")
    def _distinct_stages(self) -> RunFile:
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stage names must differ; given more than once: {', '.join(map(repr, twice))}")
        return self


def read_run_file(path: str | Path) -> RunFile:
    """Read and check a run file.

    Parameters
    ----------
    path
        A YAML file with the keys of `RunFile`.

    Raises
    ------
    InputError
        The file is missing, is not YAML, has unknown keys (the near ones are
        named) or values of the wrong kind (which key, what was given).
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(_folder_given(path))
    if not path.is_file():
        raise InputError(f"run file {path} does not exist. Give the path of a YAML file; its keys are {_keys()}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"run file {path} is not readable as YAML: {error}") from error
    return _anchored(_validated(text, path), path.resolve().parent)


def _folder_given(path: Path) -> str:
    if not (path / PRIVATE).is_dir():
        return f"{path} is a folder; give the YAML file that says what to record. Its keys are {_keys()}"
    run = beside(path)
    made = f"; {run} is the one it was recorded with" if isinstance(run, Path) and run.is_file() else ""
    return f"{path} is a store, not a run file: give the YAML file that says what to record{made}"


def _validated(text: str, path: str | Path) -> RunFile:
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"run file {path} is not readable as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"run file {path} must hold `key: value` lines; its keys are {_keys()}")
    try:
        return RunFile.model_validate(raw)
    except ValidationError as error:
        raise InputError(_explain(path, error)) from error


def write_run_file(run: RunFile, path: str | Path) -> None:
    """Write the complete run, defaults spelled out, so that it replays exactly; to a file or an fsspec URL."""
    text = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if is_url(path):
        filesystem, place = url_to_fs(str(path))
        filesystem.pipe_file(place, text.encode())
    else:
        write_text_atomic(path, text)


def beside(store: str | Path) -> str | Path:
    """Where the run file of a store lies.

    >>> beside("s3://bucket/run.zarr/"), beside(Path("runs/run.zarr")).name
    ('s3://bucket/run.zarr.run.yaml', 'run.zarr.run.yaml')
    """
    text = f"{str(store).rstrip('/')}.run.yaml"
    return text if is_url(text) else Path(text)


def read_beside(store: str | Path) -> RunFile | None:
    """The run that a store was recorded with, or None where no run file lies beside it."""
    path = beside(store)
    if isinstance(path, Path):
        return read_run_file(path) if path.is_file() else None
    filesystem, place = url_to_fs(path)
    if not filesystem.exists(place):
        return None
    return _validated(filesystem.cat_file(place).decode(), path)


def _anchored(run: RunFile, folder: Path) -> RunFile:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    stages = tuple(
        stage.model_copy(update={"path": absolute(stage.path), "adapter": absolute(stage.adapter)})
        for stage in run.stages
    )
    # A model may be a hub name or a folder; only a folder that is there is a path.
    model = str(folder / run.model) if run.model and (folder / run.model).is_dir() else run.model
    update: dict[str, Any] = {
        "model": model,
        "stages": stages,
        "prompts": absolute(run.prompts),
        "store": absolute(run.store) if isinstance(run.store, Path) else run.store,
    }
    return run.model_copy(update=update)


def _keys() -> str:
    return ", ".join(RunFile.model_fields)


def _explain(path: str | Path, error: ValidationError) -> str:
    lines = [f"run file {path} is wrong:"]
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if not _is_union_branch(part)) or "the whole file"
        if problem["type"] == "extra_forbidden":
            key = str(problem["loc"][-1])
            valid = StageEntry.model_fields if problem["loc"][0] == "stages" else RunFile.model_fields
            lines.append(f"  {where}: unknown key {key!r}; {suggest(key, valid)}")
        elif problem["type"] == "missing":
            lines.append(f"  {where}: missing; add a line `{problem['loc'][-1]}: ...`")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"  {where}: {message} (given: {problem['input']!r})" if problem["loc"] else f"  {message}")
    return "\n".join(dict.fromkeys(lines))


def _is_union_branch(part: object) -> bool:
    # pydantic adds the tried type of a union to the location; the user never wrote it
    return isinstance(part, str) and (
        part.startswith(("literal[", "tuple[", "function-", "constrained-")) or part in {"int", "bool"}
    )
