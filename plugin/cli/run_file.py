"""Run files: YAML files that say what a capture records, and that repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from fsspec.core import url_to_fs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stratalens.store.errors import InputError, quote, suggest
from stratalens.store.files import user_path, write_text_atomic
from stratalens.store.names import check_distinct, parse_yaml
from stratalens.store.storage.base import PRIVATE
from stratalens.store.storage.resolve import is_url

if TYPE_CHECKING:
    from stratalens.plugin.capture.options import CaptureOptions


def _checked_path(value: Any) -> Any:
    """Refuse a text that no file system takes as a path."""
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        raise ValueError("has a character that no path can have")
    return value


class StageEntry(BaseModel):
    """One stage of a run file: a checkpoint folder, a hub revision of the model, or a LoRA adapter.

    A stage without `path`, `revision` and `adapter` is the model itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    path: Path | None = None
    revision: str | None = None
    adapter: Path | None = None
    order: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None

    @field_validator("path", "adapter", mode="before")
    @classmethod
    def _check_path(cls, value: Any) -> Any:
        return _checked_path(value)

    @field_validator("name", mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value
        raise ValueError(
            "a stage name is text, and YAML reads no, on, yes and off without quotes as true or false, and 007 and "
            '1e3 as numbers; write the name in quotes, for example "no"'
        )

    @model_validator(mode="after")
    def _check_source(self) -> StageEntry:
        sources = [key for key in ("path", "revision", "adapter") if getattr(self, key) is not None]
        if len(sources) > 1:
            raise ValueError(f"stage {self.name!r} has {' and '.join(sources)}; keep one of them")
        return self


class RunFile(BaseModel):
    """Settings of `stratalens capture`.

    Relative paths start at the folder of the run file, so that a run file works
    from any working directory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: Path
    store: Path | str  # a folder, or an fsspec URL such as s3://bucket/run.zarr
    model: str | None = None  # a hub name or a folder; not needed if every stage has a path
    model_kwargs: dict[str, Any] = Field(default_factory=dict)  # of from_pretrained, such as device_map: auto
    stages: tuple[StageEntry, ...] = ()
    revisions: str | tuple[str, ...] | None = None  # of the model on the hub: "step*", "log:16" or names
    faults: Literal["raise", "skip_known", "skip", "record"] = "raise"  # revisions that are not what they claim
    scratch: Path | None = None  # folder for the checkpoints of `revisions`
    sites: tuple[str, ...] = ("resid_post",)
    layers: tuple[int, ...] | None = None
    positions: tuple[str, ...] | Literal["all"] = ("last",)
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    compression: Literal["none", "zstd"] = "none"
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    device: str | None = None
    statistics: bool | Literal["all"] | tuple[str, ...] = True
    prepend_bos: bool | None = None
    add_generation_prompt: bool = False  # of tables of chats
    allow_same_weights: bool = False
    by: str = "trained_stage"
    title: str | None = None  # heading of the report

    def capture_options(self) -> CaptureOptions:
        """Return the options of the capture that this file describes."""
        from stratalens.plugin.capture.options import CaptureOptions

        return CaptureOptions(
            sites=self.sites,
            layers=self.layers,
            positions=self.positions,
            dtype=self.dtype,
            statistics=self.statistics,
            compression=self.compression,
            batch_size=self.batch_size,
            device=self.device,
            prepend_bos=self.prepend_bos,
            allow_same_weights=self.allow_same_weights,
        )

    @field_validator("store", mode="before")
    @classmethod
    def _path_or_url(cls, value: Any) -> Any:
        """Keep a URL as text; a Path would drop one of its slashes."""
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError("must be a folder, or a URL such as s3://bucket/run.zarr")
        _checked_path(value)
        return str(value) if is_url(str(value)) else Path(str(value).removeprefix("file://"))

    @field_validator("prompts", "scratch", mode="before")
    @classmethod
    def _check_prompts(cls, value: Any) -> Any:
        return _checked_path(value)

    @field_validator("stages", mode="before")
    @classmethod
    def _as_entries(cls, value: Any) -> Any:
        """Accept `{base: folder}` and `[base]` as short forms."""
        if isinstance(value, dict):
            return tuple({"name": name, "path": path} for name, path in value.items())
        if isinstance(value, list | tuple):
            return tuple(entry if isinstance(entry, dict | StageEntry) else {"name": entry} for entry in value)
        raise ValueError("must be a list such as [{name: base, path: checkpoints/base}], or {base: checkpoints/base}")

    @model_validator(mode="after")
    def _check_model(self) -> RunFile:
        without = [stage.name for stage in self.stages if stage.path is None]
        if self.model is None and (without or not self.stages):
            reason = f"stage {without[0]!r} has no path" if without else "there are no stages with a path"
            raise ValueError(f"model: missing, and {reason}; add a line `model: NAME or FOLDER`")
        return self

    @model_validator(mode="after")
    def _check_revisions(self) -> RunFile:
        if self.revisions is None:
            if self.faults != "raise" or self.scratch is not None:
                raise ValueError("faults and scratch are about `revisions`, which is missing; add it or remove them")
        elif self.stages:
            raise ValueError("stages and revisions: keep one of them; `revisions` names stages of the model on the hub")
        elif not self.revisions:
            raise ValueError('revisions: is empty; write a pattern such as "step*", "log:16", or a list of names')
        return self

    @model_validator(mode="after")
    def _check_stage_names(self) -> RunFile:
        check_distinct([stage.name for stage in self.stages], "stage", remedy="give every stage its own name")
        return self


def read_run_file(path: str | Path) -> RunFile:
    """Read and check a run file.

    Args:
        path: a YAML file with the keys of `RunFile`.

    Raises:
        InputError: the file is missing or not YAML, a key is unknown (similar keys are named), or a value has the
            wrong type (the key and the value are named).
    """
    path = user_path(path)
    if path.is_dir():
        raise InputError(_folder_message(path))
    if not path.is_file():
        raise InputError(f"run file {path} does not exist. Give the path of a YAML file; its keys are {_keys()}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"run file {path} is not readable as YAML: {error}") from error
    return _anchored(_validated(text, path), path.resolve().parent)


def _folder_message(path: Path) -> str:
    if not (path / PRIVATE).is_dir():
        return f"{path} is a folder; give the YAML file that says what to record. Its keys are {_keys()}"
    run = run_file_of(path)
    hint = f"; {run} is the run file of this store" if isinstance(run, Path) and run.is_file() else ""
    return f"{path} is a store, not a run file: give the YAML file that says what to record{hint}"


def _validated(text: str, path: str | Path) -> RunFile:
    raw = parse_yaml(text, f"run file {path}")
    if not isinstance(raw, dict):
        raise InputError(f"run file {path} must hold `key: value` lines; its keys are {_keys()}")
    try:
        return RunFile.model_validate(raw)
    except ValidationError as error:
        raise InputError(_explain(path, error)) from error


def write_run_file(run: RunFile, path: str | Path) -> None:
    """Write all settings of a run, defaults included, to a file or an fsspec URL."""
    text = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if is_url(path):
        filesystem, place = url_to_fs(str(path))
        filesystem.pipe_file(place, text.encode())
    else:
        write_text_atomic(path, text)


def make_parent(store: str | Path) -> None:
    """Create the folder of a local store."""
    if isinstance(store, Path):
        store.parent.mkdir(parents=True, exist_ok=True)


def run_file_of(store: str | Path) -> str | Path:
    """Return the path of the run file of a store.

    >>> run_file_of("s3://bucket/run.zarr/"), run_file_of(Path("runs/run.zarr")).name
    ('s3://bucket/run.zarr.run.yaml', 'run.zarr.run.yaml')
    """
    text = f"{str(store).rstrip('/')}.run.yaml"
    return text if is_url(text) else Path(text)


def read_run_file_of(store: str | Path) -> RunFile | None:
    """Read the run file next to a store; return None if there is none."""
    path = run_file_of(store)
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
    # A model is a hub name or a folder; only an existing folder is a path.
    model = str(folder / run.model) if run.model and (folder / run.model).is_dir() else run.model
    update: dict[str, Any] = {
        "model": model,
        "stages": stages,
        "prompts": absolute(run.prompts),
        "scratch": absolute(run.scratch),
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
            lines.append(f"  {where}: unknown key {quote(key)}; {suggest(key, valid)}")
        elif problem["type"] == "missing":
            lines.append(f"  {where}: missing; add a line `{problem['loc'][-1]}: ...`")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"  {where}: {message} (got {quote(problem['input'])})" if problem["loc"] else f"  {message}")
    return "\n".join(dict.fromkeys(lines))


def _is_union_branch(part: object) -> bool:
    # pydantic adds the type of a union that it tried to the location; the user did not write it
    return isinstance(part, str) and (
        part.startswith(("literal[", "tuple[", "function-", "constrained-")) or part in {"int", "bool"}
    )
