"""Base class of the methods of recording, and the error of a method that does not support a setting."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.workload import Workload


class CannotError(Exception):
    """A way has no such thing; the message is the row of the table."""


class Method(ABC):
    """Loads the model once, then records a `Work` as often as it is asked to.

    Attributes:
        name: row of the table.
        packages: what has to be installed; the first one is the library that is compared.
        selects: what can be read from the files without reading more than that.
        layers_missing: layers at the end that it gives in another form, and that are not compared.
        writes: whether it leaves files at all.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    selects: ClassVar[str] = ""
    layers_missing: ClassVar[int] = 0
    writes: ClassVar[bool] = True

    @abstractmethod
    def load(self, workload: Workload) -> Any:
        """Load the model; returns the module that is called once in every forward pass."""

    @abstractmethod
    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        """Record everything; it is on the disk afterwards."""

    def read(self, workload: Workload, setting: str, folder: Path, layer: int) -> np.ndarray:
        """Wanted values of one layer (value, d_model), in the order of `Work`."""
        raise NotImplementedError


def sync_file(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync_file` for everything in a folder, and for the folders."""
    for path in [*folder.rglob("*"), folder]:
        sync_file(path)


def hugging_face(workload: Workload) -> Any:
    """The model as transformers loads it, float32, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32).eval()
