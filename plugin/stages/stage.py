"""Stage: one training checkpoint to record; how stages are parsed, ordered, named and loaded."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stratalens.plugin.stages.checkpoints import Checkpoint, StoredModel
from stratalens.store.errors import InputError, join_names
from stratalens.store.names import check_distinct
from stratalens.store.state.manifest import StageEntry

Source = Any  # a hooked model, a function that returns one, a checkpoint folder or a StoredModel


@dataclass(frozen=True)
class Stage:
    """One training checkpoint to be recorded.

    Attributes:
        name: its name in the store.
        order: its place in training order.
        source: where its model comes from; after `parse_stages`, folders are Checkpoints.
    """

    name: str
    order: int
    source: Source


def parse_stages(stages: Any) -> list[Stage]:
    """Read and check stages: one source (stage "model"), a mapping in training order, or a list of Stages.

    Returns:
        The stages, their sources resolved.

    Raises:
        InputError: there is no stage, or a name or a source is invalid.
    """
    if isinstance(stages, list | tuple) and stages and all(isinstance(s, Stage) for s in stages):
        parsed = list(stages)
    elif isinstance(stages, list | tuple | set | frozenset):
        raise InputError(
            f"stages is a {type(stages).__name__}. Pass one model, or a mapping {{name: folder}} in training order, "
            f"because every stage needs a name: {_as_mapping(list(stages))}"
        )
    elif isinstance(stages, Mapping):
        parsed = [Stage(name, order, source) for order, (name, source) in enumerate(stages.items())]
    else:
        parsed = [Stage("model", 0, stages)]
    if not parsed:
        raise InputError("stages is empty. Pass one model, or {name: model, function or checkpoint folder}.")
    names = [check_stage_name(stage.name) for stage in parsed]
    check_distinct(names, "stage", remedy="give every stage its own name")
    return [replace(stage, source=_resolve_source(stage)) for stage in parsed]


def _as_mapping(sources: list[Any]) -> str:
    """Write unnamed stages as the mapping that the caller should pass.

    Example:
        >>> _as_mapping(["checkpoints/base"]), _as_mapping([])
        ("{'base': 'checkpoints/base'}", "{'base': 'checkpoints/base'}, for example")
    """
    folders = [str(s) for s in sources if isinstance(s, str | os.PathLike)]
    if not folders:
        return "{'base': 'checkpoints/base'}, for example"
    entries = ", ".join(f"{Path(f).name!r}: {f!r}" for f in folders[:3])
    return f"{{{entries}{', ...' if len(folders) > 3 else ''}}}"


def _resolve_source(stage: Stage) -> Source:
    source = stage.source
    if isinstance(source, str | Path):
        return Checkpoint(source)
    if isinstance(source, nn.Module | StoredModel) or callable(source):
        return source
    raise InputError(
        f"stage {stage.name!r} is of type {type(source).__name__}. Pass a model, a function that returns one, a "
        "checkpoint folder, Checkpoint, Revision or LoraAdapter."
    )


def resolve_stage_order(stages: Sequence[Stage], stored: Sequence[StageEntry], named: bool) -> dict[str, int]:
    """Decide the place of every stage in training order.

    Stages of a new store are numbered as listed. In a store that has stages already, known stages keep their number
    and each new one follows the stage listed before it. Where none is known, all follow the last one of the store.

    Args:
        stages: the stages to record.
        stored: the stages of the store.
        named: whether the caller gave names alone; False takes the orders of `stages` as they are.

    Returns:
        Order by stage name.

    Raises:
        InputError: the job lists the stages in another order than the store.

    Example:
        >>> resolve_stage_order([Stage("b", 0, None)], [StageEntry("a", 0, "")], True)
        {'b': 1}
    """
    if not stored or not named:
        return {s.name: s.order for s in stages}
    known = {s.name: s.order for s in stored}
    last = -1 if any(s.name in known for s in stages) else max(known.values())
    orders: dict[str, int] = {}
    for stage in stages:
        order = known.get(stage.name, last + 1)
        if order <= last:
            in_store = [s.name for s in sorted(stored, key=lambda s: s.order)]
            raise InputError(stage_order_error(stage.name, in_store, [s.name for s in stages]))
        orders[stage.name] = last = order
    return orders


def stage_order_error(name: str, in_store: Sequence[str], in_job: Sequence[str]) -> str:
    """Explain which stage of a job is in the wrong place, and the remedy.

    Args:
        name: the stage of the store that the job lists too late.
        in_store: stages of the store, in order.
        in_job: stages of the job, in order.
    """
    place = (
        f"stage {name!r} is number {in_store.index(name) + 1} of {len(in_store)} in the store "
        f"({join_names(in_store)}) and number {in_job.index(name) + 1} of {len(in_job)} in this job "
        f"({join_names(in_job)})"
    )
    before = in_job[: in_job.index(name)]
    known = [other for other in in_job if other in in_store]
    if swapped := [other for other in before if other in in_store[in_store.index(name) :]]:
        right = join_names(sorted(known, key=in_store.index))
        return f"{place}, after {swapped[0]!r}. List these stages in the order of the store: {right}"
    new = [other for other in before if other not in in_store]
    return (
        f"{place}. The store cannot insert {join_names(new)} before {name!r}, because it has already assigned "
        f"consecutive order numbers. Record all stages into a new store, or list {join_names(new)} last "
        f"({join_names([*known, *new])}) if {'it' if len(new) == 1 else 'they'} really came last in training"
    )


def check_stage_name(name: Any) -> str:
    """Return the name if it can be the name of a stage.

    Raises:
        InputError: the name is not a short text without slashes and control characters.

    Example:
        >>> check_stage_name("step 1000")
        'step 1000'
    """
    valid = "Use a short text without slashes or control characters, for example 'stage-1'."
    if not isinstance(name, str):
        raise InputError(f"stage name {name!r} is {type(name).__name__}, not text. {valid}")
    if not name.strip():
        raise InputError(f"stage name {name!r} is empty. {valid}")
    check_distinct([name], "stage name")
    if name in (".", ".."):
        raise InputError(f"stage name {name!r} means a folder. {valid}")
    for character in name:
        if character in "/\\" or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise InputError(f"stage name {name!r} contains {character!r}. {valid}")
    if len(name) > 200:
        raise InputError(f"stage name {name[:40]!r}... is {len(name)} characters long. {valid}")
    return name


@contextmanager
def loaded_model(stage: Stage, tokenizer: Any, device: str | torch.device | None) -> Iterator[nn.Module]:
    """Load the model of a parsed stage onto the device; the caller's own model goes back to its device afterwards.

    Raises:
        InputError: the device does not exist, or the source does not give a hooked model.
    """
    _check_device(device)
    if isinstance(stage.source, nn.Module):
        with _on_device(stage.source, device):
            yield stage.source
    elif isinstance(stage.source, StoredModel):
        yield stage.source.load(tokenizer, device)
    else:
        yield _call_source(stage, device)


def _check_device(device: str | torch.device | None) -> None:
    if device is None:
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(
            f"device={str(device)!r} is unknown to PyTorch. Pass a device such as 'cpu', 'cuda' or 'cuda:1'."
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={str(device)!r}, but PyTorch sees no CUDA device. Leave it out to use the CPU.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device={str(device)!r}, but PyTorch sees no MPS device. Leave it out to use the CPU.")
    if kind == "meta":
        raise InputError("device='meta' computes no values. Pass a device such as 'cpu', 'cuda' or 'cuda:1'.")


def _call_source(stage: Stage, device: str | torch.device | None) -> nn.Module:
    model = stage.source()
    if not isinstance(model, nn.Module):
        raise InputError(f"stage {stage.name!r}: its function returned {type(model).__name__}, not a hooked model.")
    return model.to(device) if device is not None else model


@contextmanager
def _on_device(model: nn.Module, device: str | torch.device | None) -> Iterator[None]:
    here = next((p.device for p in model.parameters()), None)
    target = torch.device(device) if device is not None else here
    moved = here is not None and target is not None and (target.type, target.index or 0) != (here.type, here.index or 0)
    try:
        if moved:
            model.to(target)
        yield
    finally:
        if moved:
            model.to(here)
