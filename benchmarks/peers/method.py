"""Base class of the methods of recording, and the error of a method that does not support a setting."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.workload import Workload


class CannotError(Exception):
    """Error of a method that does not support a setting; the message becomes its row of the table."""


class Method(ABC):
    """A method of recording: loads the model once, then records a workload any number of times.

    Attributes:
        name: Row of the table.
        packages: Packages that have to be installed; the first one is the compared library.
        selects: Selections that can be read from the files without reading more.
        layers_missing: Number of last layers that it returns in another form; they are not compared.
        writes: Whether it writes files.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    selects: ClassVar[str] = ""
    layers_missing: ClassVar[int] = 0
    writes: ClassVar[bool] = True

    @abstractmethod
    def load(self, workload: Workload) -> Any:
        """Load the model; return the module that is called once in every forward pass."""

    @abstractmethod
    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        """Record everything to the disk."""

    def read(self, workload: Workload, setting: str, folder: Path, layer: int) -> np.ndarray:
        """Return the requested values of one layer, of shape (values, d_model), in the order of the workload."""
        raise NotImplementedError


def sync_file(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Call `sync_file` for all files and folders in a folder."""
    for path in [*folder.rglob("*"), folder]:
        sync_file(path)


def hugging_face(workload: Workload) -> Any:
    """Load the model with transformers, in float32 and evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32).eval()
