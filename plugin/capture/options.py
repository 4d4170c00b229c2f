"""The options of a capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch

from stratalens.plugin.models.adapters import ForwardFunction
from stratalens.plugin.progress import ProgressFunction
from stratalens.store.format.layout import MEMORY_LIMIT

Positions = Sequence[str] | str


@dataclass(frozen=True, kw_only=True)
class CaptureOptions:
    """The choices of a capture; `stratalens.capture` documents each of them.

    Attributes:
        sites: short names or full TransformerLens names.
        layers: block indices, None for all.
        positions: position names, or "all".
        dtype: storage dtype, "auto" for the model's own.
        statistics: True for all but `running_loss`, "all", False for none, or names.
        tokenizer: None takes the model's.
        prepend_bos: True for one BOS token in front of every prompt, False for none, None for what the tokenizer adds.
        missing: "raise" or "nan" for positions that a prompt does not have.
        nonfinite: "raise" or "keep" for activations that are NaN or infinite.
        forward: forward function for your own HookedRootModule.
        compression: "none" or "zstd".
        block_size: rows that are committed together, None chooses.
        memory_limit: bytes that the two block buffers may take together.
        batch_size: rows per forward pass, or "auto".
        device: device of the models, None chooses.
        allow_same_weights: accept two stages with the same weights.
        resume: False refuses an existing store.
        force: record even where the disk seems too small.
        check: "raise" or "warn" where the sites differ from what the model computes, False to leave the check out.
        progress: True, False, a function, or None for a bar where someone watches.
        rank: (rank, number of processes) of this process.
    """

    sites: Sequence[str] | str = ("resid_post",)
    layers: Sequence[int] | None = None
    positions: Positions = ("last",)
    dtype: str = "auto"
    statistics: bool | Sequence[str] = True
    tokenizer: Any = None
    prepend_bos: bool | None = None
    missing: Literal["raise", "nan"] = "raise"
    nonfinite: Literal["raise", "keep"] = "raise"
    forward: ForwardFunction | None = None
    compression: str = "none"
    block_size: int | None = None
    memory_limit: int = MEMORY_LIMIT
    batch_size: int | Literal["auto"] = "auto"
    device: str | torch.device | None = None
    allow_same_weights: bool = False
    resume: bool = True
    force: bool = False
    check: str | bool = "raise"
    progress: bool | ProgressFunction | None = None
    rank: tuple[int, int] = (0, 1)

    @classmethod
    def of_call(cls, arguments: Mapping[str, Any]) -> Self:
        """Take the options among the arguments of a call; the other arguments are left out."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls) if field.name in arguments})
