"""What a stage is: a model in memory, a function that makes one, a checkpoint folder, a hub revision, an adapter.

Every kind can be loaded, recorded and freed again. Weights are read from
safetensors only. How stages are told apart (fingerprints) is in fingerprints.py,
what is recorded from them in capturing.py.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stratalens.plugin.stages.checkpoints import as_loadable
from stratalens.store.errors import InputError, suggest
from stratalens.store.errors import join_names as joined
from stratalens.store.state.manifest import StageEntry

Source = Any  # a hooked model, a zero-argument function, a folder, or one of the classes below


@dataclass(frozen=True)
class Stage:
    """One training checkpoint to be recorded.

    Attributes:
        name: its name in the store.
        order: its place in training order.
        source: where its model comes from.
    """

    name: str
    order: int
    source: Source

    def describe(self) -> dict[str, Any]:
        """Where it came from, as far as that can be written down."""
        source = as_loadable(self.source)
        return source.describe() if source is not None else {}


def parse_stages(stages: Any) -> list[Stage]:
    """Read `stages` as capture() takes them: one source (stage "model"), or a mapping in training order.

    Raises:
        InputError: no stage, or a name that is unusable.
    """
    if isinstance(stages, list | tuple) and stages and all(isinstance(s, Stage) for s in stages):
        listed = list(stages)
    elif isinstance(stages, list | tuple | set | frozenset):
        raise InputError(
            f"stages is a {type(stages).__name__}: it is one model, or a mapping {{name: folder}} in training order, "
            f"because every stage needs a name; {_as_mapping(list(stages))}"
        )
    elif isinstance(stages, Mapping):
        listed = [Stage(name, order, source) for order, (name, source) in enumerate(stages.items())]
    else:
        listed = [Stage("model", 0, stages)]
    if not listed:
        raise InputError("stages is empty. Pass one model, or {name: model, function or checkpoint folder}.")
    for stage in listed:
        check_stage_name(stage.name)
    names = [s.name for s in listed]
    if doubled := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"stage {doubled[0]!r} is listed twice. Give every stage a name of its own.")
    return listed


def _as_mapping(sources: list[Any]) -> str:
    """How stages that were listed without names would be given.

    >>> _as_mapping(["checkpoints/base"]), _as_mapping([])
    ("give {'base': 'checkpoints/base'}", "give {'base': 'checkpoints/base'}, for example")
    """
    folders = [str(s) for s in sources if isinstance(s, str | os.PathLike)]
    if not folders:
        return "give {'base': 'checkpoints/base'}, for example"
    given = ", ".join(f"{Path(f).name!r}: {f!r}" for f in folders[:3]) + (", ..." if len(folders) > 3 else "")
    return f"give {{{given}}}"


def resolve_stage_order(listed: Sequence[Stage], held: Sequence[StageEntry], named: bool) -> dict[str, int]:
    """Place in training order of every stage.

    Stages of a new store are numbered as listed. On a store that has stages already, known
    ones keep their number and others follow the one listed before them; where none is known,
    all follow the last one of the store.

    >>> resolve_stage_order([Stage("b", 0, None)], [StageEntry("a", 0, "")], True)
    {'b': 1}
    """
    if not held or not named:
        return {s.name: s.order for s in listed}
    known = {s.name: s.order for s in held}
    last = -1 if any(s.name in known for s in listed) else max(known.values())
    found: dict[str, int] = {}
    for stage in listed:
        order = known.get(stage.name, last + 1)
        if order <= last:
            there = [s.name for s in sorted(held, key=lambda s: s.order)]
            raise InputError(stage_order_error(stage.name, there, [s.name for s in listed]))
        found[stage.name] = last = order
    return found


def stage_order_error(name: str, there: Sequence[str], here: Sequence[str]) -> str:
    """What is wrong where a stage of the store comes too late in a job, and what to do; names in both orders."""
    where = (
        f"stage {name!r} is number {there.index(name) + 1} of {len(there)} in the store ({joined(there)}) and "
        f"number {here.index(name) + 1} of {len(here)} in this job ({joined(here)})"
    )
    before = here[: here.index(name)]
    known = [other for other in here if other in there]
    if swapped := [other for other in before if other in there[there.index(name) :]]:
        right = joined(sorted(known, key=there.index))
        return f"{where}, where it comes after {swapped[0]!r}. List these stages in the order of the store: {right}"
    new = [other for other in before if other not in there]
    return (
        f"{where}: {joined(new)} would stand before it, and the store, which numbers its stages, has no number free "
        f"there. Record all of them to another store; listing {joined(new)} last ({joined([*known, *new])}) would call "
        f"{'it' if len(new) == 1 else 'them'} the latest in training"
    )


def check_stage_name(name: Any) -> str:
    """Return the name, or say why it cannot be one.

    >>> check_stage_name("step 1000")
    'step 1000'
    """
    valid = "Use a short text without slashes or control characters, for example 'stage-1'."
    if not isinstance(name, str):
        raise InputError(f"stage name {name!r} is {type(name).__name__}, not text. {valid}")
    if not name.strip() or name != name.strip():
        raise InputError(f"stage name {name!r} is empty or has blanks at its ends. {valid}")
    if name in (".", ".."):
        raise InputError(f"stage name {name!r} means a folder. {valid}")
    for character in name:
        if character in "/\\" or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise InputError(f"stage name {name!r} holds {character!r}. {valid}")
    if len(name) > 200:
        raise InputError(f"stage name {name[:40]!r}... is {len(name)} characters long. {valid}")
    return name


@contextmanager
def loaded_model(stage: Stage, tokenizer: Any, device: str | torch.device | None) -> Iterator[nn.Module]:
    """The stage's model, on the device; a model of the caller's own goes back to where it was."""
    _check_device(device)
    loadable = as_loadable(stage.source)
    if loadable is None and isinstance(stage.source, nn.Module):
        with _on_device(stage.source, device):
            yield stage.source
        return
    if loadable is not None:
        yield loadable.load(tokenizer, device)
    elif callable(stage.source):
        yield _called(stage, device)
    else:
        kinds = ["model", "function", "folder", "Checkpoint", "Revision", "LoraAdapter"]
        raise InputError(
            f"stage {stage.name!r} is {type(stage.source).__name__}, from which no model can be had. "
            f"{suggest(type(stage.source).__name__, kinds)}"
        )


def _check_device(device: str | torch.device | None) -> None:
    """Refuse a device that is not there before anything is loaded."""
    if device is None:
        return
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={str(device)!r} is none that PyTorch knows; e.g. 'cpu', 'cuda', 'cuda:1'") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={str(device)!r}, but PyTorch sees no CUDA device; leave it out to take what is there")


def _called(stage: Stage, device: str | torch.device | None) -> nn.Module:
    make: Callable[[], Any] = stage.source
    model = make()
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
