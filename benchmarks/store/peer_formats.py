"""Other formats for activations: NumPy, safetensors, torch.save, HDF5 and Arrow; and the list of all formats.

Each format follows the documentation of its library, with a layout that suits the four queries. Optional packages are
imported when a format is created.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.store.formats import DTYPE, Format
from benchmarks.store.zarr_formats import OursByTensorStore, OursByZarr, TensorStore, ZarrDefault, Zarrs, ZarrSharded


class Memmap(Format):
    """One .npy file for each stage, (layers, entities, tokens, d_model), through np.memmap."""

    name = "np.memmap"

    def begin(self) -> None:
        super().begin()
        self.maps = [
            np.lib.format.open_memmap(self.folder / f"{stage}.npy", "w+", DTYPE, self.shape[1:])
            for stage in range(self.shape[0])
        ]

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        self.maps[stage][:, start : start + values.shape[1]] = values

    def finish(self, sync: bool) -> None:
        if sync:
            for each in self.maps:
                each.flush()
        del self.maps
        super().finish(sync)

    def open(self) -> Any:
        return [np.load(self.folder / f"{stage}.npy", mmap_mode="r") for stage in range(self.shape[0])]

    def stage(self, handle: Any, stage: int) -> np.ndarray:
        return np.array(handle[stage])

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        return np.array(handle[stage][layer])

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        return np.array(handle[stage][:, row])

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        return np.array(handle[stage][:, :, token])


class Safetensors(Format):
    """One file for each put, one tensor for each layer."""

    name, module = "safetensors", "safetensors"

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        import_module("safetensors.numpy").save_file(
            {f"layer.{n}": layer for n, layer in enumerate(values)}, self.folder / f"{stage}.{start:09d}.safetensors"
        )

    def open(self) -> Any:
        open_file = import_module("safetensors").safe_open
        return [
            [open_file(p, framework="np") for p in sorted(self.folder.glob(f"{stage}.*"))]
            for stage in range(self.shape[0])
        ]

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        parts = [file.get_tensor(f"layer.{layer}") for file in handle[stage]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        per_file = self.rows if len(handle[stage]) > 1 else self.shape[2]
        file, row = handle[stage][row // per_file], row % per_file
        return np.stack([file.get_slice(f"layer.{n}")[row : row + 1][0] for n in range(self.shape[1])])

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        at = slice(token, token + 1)
        parts = [[f.get_slice(f"layer.{n}")[:, at][:, 0] for f in handle[stage]] for n in range(self.shape[1])]
        return np.stack([np.concatenate(p) if len(p) > 1 else p[0] for p in parts])


class TorchSave(Format):
    """One torch.save for each put, a dict of one tensor for each layer; read with mmap=True and weights_only=True."""

    name, module = "torch.save", "torch"

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        torch = import_module("torch")
        # A view would save the storage of the full block with every layer.
        layers = {n: torch.from_numpy(layer).clone() for n, layer in enumerate(values)}
        torch.save(layers, self.folder / f"{stage}.{start:09d}.pt")

    def open(self) -> Any:
        load = import_module("torch").load
        return [
            [load(p, mmap=True, weights_only=True) for p in sorted(self.folder.glob(f"{stage}.*"))]
            for stage in range(self.shape[0])
        ]

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        parts = [file[layer].numpy() for file in handle[stage]]
        return np.array(parts[0]) if len(parts) == 1 else np.concatenate(parts)

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        per_file = self.rows if len(handle[stage]) > 1 else self.shape[2]
        file, row = handle[stage][row // per_file], row % per_file
        return np.stack([file[n][row].numpy() for n in range(self.shape[1])])

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        layers = range(self.shape[1])
        return np.stack([np.concatenate([f[n][:, token].numpy() for f in handle[stage]]) for n in layers])


class Hdf5(Format):
    """One contiguous dataset for each stage."""

    name, module = "HDF5", "h5py"

    def begin(self) -> None:
        super().begin()
        self.file = import_module("h5py").File(self.folder / "all.h5", "w")
        for stage in range(self.shape[0]):
            self.file.create_dataset(str(stage), self.shape[1:], DTYPE, **self.chunking())

    def chunking(self) -> dict[str, Any]:
        return {}

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        self.file[str(stage)][:, start : start + values.shape[1]] = values

    def finish(self, sync: bool) -> None:
        self.file.close()
        super().finish(sync)

    def open(self) -> Any:
        return import_module("h5py").File(self.folder / "all.h5", "r")

    def close(self, handle: Any) -> None:
        handle.close()

    def stage(self, handle: Any, stage: int) -> np.ndarray:
        return np.asarray(handle[str(stage)][...])

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        return np.asarray(handle[str(stage)][layer])

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        return np.asarray(handle[str(stage)][:, row])

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        return np.asarray(handle[str(stage)][:, :, token])


class Hdf5Chunked(Hdf5):
    """Chunks of one layer x one block, as ours, with HDF5's checksum (fletcher32)."""

    name, checksums = "HDF5, chunked, fletcher32", True

    def chunking(self) -> dict[str, Any]:
        return {"chunks": (1, self.rows, *self.shape[3:]), "fletcher32": True}


class Arrow(Format):
    """Files of Hugging Face datasets: an Arrow stream with one row an entity and one column of lists a layer."""

    name, module = "Arrow (datasets)", "datasets"

    def begin(self) -> None:
        super().begin()
        self.writers: dict[int, Any] = {}

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        pa = import_module("pyarrow")
        size = self.shape[3] * self.shape[4]
        columns = [pa.FixedSizeListArray.from_arrays(pa.array(layer.reshape(-1)), size) for layer in values]
        batch = pa.record_batch(columns, names=[f"layer_{n}" for n in range(len(columns))])
        if stage not in self.writers:
            self.writers[stage] = pa.ipc.new_stream(str(self.folder / f"{stage}.arrow"), batch.schema)
        self.writers[stage].write_batch(batch)

    def finish(self, sync: bool) -> None:
        for writer in self.writers.values():
            writer.close()
        super().finish(sync)

    def open(self) -> Any:
        dataset = import_module("datasets").Dataset
        files = [str(self.folder / f"{stage}.arrow") for stage in range(self.shape[0])]
        return [dataset.from_file(file).with_format("numpy") for file in files]

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        column = f"layer_{layer}"
        return handle[stage].select_columns([column])[:][column].reshape(self.shape[2:])

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        return np.stack(list(handle[stage][row].values())).reshape(self.shape[1], *self.shape[3:])


PEERS: tuple[type[Format], ...] = (
    Memmap, Safetensors, TorchSave, Hdf5, Hdf5Chunked, Arrow, ZarrDefault, ZarrSharded, Zarrs, TensorStore,
)  # fmt: skip
READERS_OF_OURS: tuple[type[Format], ...] = (OursByTensorStore, OursByZarr)
