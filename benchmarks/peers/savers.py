"""Five ways to save gathered values to files after a forward pass, as a researcher would write them.

A saver gets `put(rows, values)` for each batch, with values as a float16 tensor of shape (layers, values, d_model), and
then `finish()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from benchmarks.peers.method import sync_file, sync_tree
from benchmarks.peers.workload import Workload


class Saver(ABC):
    """A saver: call `put` for each batch, then `finish`."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    selects: ClassVar[str]

    def __init__(self, workload: Workload, setting: str, folder: Path) -> None:
        self.workload, self.setting, self.folder = workload, setting, folder
        self.shape = (workload.layers, workload.total(setting), workload.width)
        self.count = 0

    @abstractmethod
    def put(self, rows: np.ndarray, values: torch.Tensor) -> None:
        """Save the values of one batch."""

    def finish(self) -> None:
        """Wait until all values are on the disk."""
        sync_tree(self.folder)

    @abstractmethod
    def read(self, layer: int) -> np.ndarray:
        """Return the values of one layer, in the order of the workload."""

    def sorted(self, parts: list[np.ndarray]) -> np.ndarray:
        """Return the batches in the order of the workload."""
        out = np.empty(self.shape[1:], np.float16)
        for (rows, _, _), part in zip(self.workload.batches(self.setting), parts, strict=True):
            out[self.workload.places(self.setting, rows)] = part
        return out


class TorchSave(Saver):
    """A file for every batch."""

    name = "torch.save"
    selects = "a batch, all layers of it"

    def put(self, rows: np.ndarray, values: torch.Tensor) -> None:
        torch.save({"rows": torch.from_numpy(rows), "values": values}, self.folder / f"{self.count:05d}.pt")
        self.count += 1

    def read(self, layer: int) -> np.ndarray:
        files = sorted(self.folder.glob("*.pt"))
        return self.sorted([torch.load(f, weights_only=True)["values"][layer].numpy() for f in files])


class Safetensors(Saver):
    """A file for every batch, a tensor for every layer."""

    name = "safetensors"
    packages = ("safetensors",)
    selects = "a layer of a batch"

    def put(self, rows: np.ndarray, values: torch.Tensor) -> None:
        from safetensors.torch import save_file

        tensors = {f"layer.{n}": v.clone() for n, v in enumerate(values)}
        save_file(tensors, self.folder / f"{self.count:05d}.safetensors")
        self.count += 1

    def read(self, layer: int) -> np.ndarray:
        from safetensors import safe_open

        parts = []
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, "np") as opened:
                parts.append(opened.get_tensor(f"layer.{layer}"))
        return self.sorted(parts)


class NumpySave(Saver):
    """All values in memory, one file at the end."""

    name = "np.save"
    selects = "anything, by number (mmap_mode)"

    @cached_property
    def out(self) -> np.ndarray:
        return np.zeros(self.shape, np.float16)

    def put(self, rows: np.ndarray, values: torch.Tensor) -> None:
        self.out[:, self.workload.places(self.setting, rows)] = values.numpy()

    def finish(self) -> None:
        np.save(self.folder / "values.npy", self.out)
        super().finish()

    def read(self, layer: int) -> np.ndarray:
        return np.array(np.load(self.folder / "values.npy", mmap_mode="r")[layer])


class Memmap(Saver):
    """One memory-mapped file of the final size."""

    name = "np.memmap"
    selects = "anything, by number"

    @cached_property
    def out(self) -> np.memmap:
        return np.memmap(self.folder / "values.bin", np.float16, "w+", shape=self.shape)

    def put(self, rows: np.ndarray, values: torch.Tensor) -> None:
        self.out[:, self.workload.places(self.setting, rows)] = values.numpy()

    def finish(self) -> None:
        self.out.flush()
        sync_file(self.folder / "values.bin")
        super().finish()

    def read(self, layer: int) -> np.ndarray:
        return np.array(np.memmap(self.folder / "values.bin", np.float16, "r", shape=self.shape)[layer])


class Arrow(Saver):
    """A Hugging Face dataset: a row for every prompt, a column for every layer, a shard for every batch."""

    name = "Hugging Face Arrow"
    packages = ("datasets",)
    selects = "a prompt, columns of layers"

    def put(self, rows: np.ndarray, values: torch.Tensor) -> None:
        from datasets import Array2D, Dataset, Features, Value

        counts = [len(self.workload.index[self.setting][r]) for r in rows]
        first = None if len(set(counts)) > 1 or self.setting == "all" else counts[0]
        columns = {f"layer.{n}": Array2D((first, self.workload.width), "float16") for n in range(self.workload.layers)}
        ends = np.cumsum(counts)[:-1]
        table = {f"layer.{n}": np.split(v, ends) for n, v in enumerate(values.numpy())}
        shard = Dataset.from_dict({"row": rows, **table}, features=Features({"row": Value("int64"), **columns}))
        shard.save_to_disk(str(self.folder / f"{self.count:05d}"))
        self.count += 1

    def read(self, layer: int) -> np.ndarray:
        from datasets import load_from_disk

        parts = []
        for folder in sorted(self.folder.iterdir()):
            column = load_from_disk(str(folder)).with_format("numpy")[f"layer.{layer}"][:]
            parts.append(np.concatenate(list(column)))
        return self.sorted(parts)


SAVERS: tuple[type[Saver], ...] = (TorchSave, NumpySave, Memmap, Safetensors, Arrow)
