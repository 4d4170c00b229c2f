"""zarr-python, zarrs and TensorStore, with their own files and as readers of ours."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.store.formats import DTYPE, Format


class ZarrDefault(Format):
    """zarr-python with its defaults: automatic chunks, zstd."""

    name = "zarr-python, defaults"

    def begin(self) -> None:
        super().begin()
        self.array = self.create(self.folder / "array.zarr")

    def create(self, path: Path) -> Any:
        return zarr.create_array(str(path), shape=self.shape, dtype=DTYPE)

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        self.array[stage, :, start : start + values.shape[1]] = values

    def open(self) -> Any:
        return zarr.open_array(str(self.folder / "array.zarr"), mode="r")

    def stage(self, handle: Any, stage: int) -> np.ndarray:
        return np.asarray(handle[stage])

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        return np.asarray(handle[stage, layer])

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        return np.asarray(handle[stage, :, row])

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        return np.asarray(handle[stage, :, :, token])


class ZarrSharded(ZarrDefault):
    """zarr-python with our geometry and codecs: the same bytes as ours."""

    name, checksums = "zarr-python, sharded, crc32c", True

    def create(self, path: Path) -> Any:
        _, layers, _, tokens, width = self.shape
        return zarr.create_array(
            str(path), shape=self.shape, dtype=DTYPE, chunks=(1, 1, self.rows, tokens, width),
            shards=(1, layers, self.rows, tokens, width), compressors=[zarr.codecs.Crc32cCodec()], filters=None,
            config={"write_empty_chunks": True},
        )  # fmt: skip


class Zarrs(ZarrSharded):
    """The same through zarrs, a codec pipeline in Rust for zarr-python."""

    name, module = "zarrs (zarr-python's pipeline)", "zarrs"

    def begin(self) -> None:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            super().begin()

    def open(self) -> Any:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            return super().open()


class TensorStore(Format):
    """TensorStore with our geometry and codecs; up to two pending blocks, as in ours, and no copies."""

    name, module, checksums = "TensorStore", "tensorstore", True

    def begin(self) -> None:
        super().begin()
        stages, layers, entities, tokens, width = self.shape
        inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [1, 1, self.rows, tokens, width],
            "codecs": inner,
            "index_codecs": inner,
            "index_location": "end",
        }
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(self.folder / "array.zarr")},
            "metadata": {
                "shape": [stages, layers, entities, tokens, width],
                "data_type": DTYPE.name,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [1, layers, self.rows, tokens, width]},
                },
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            },
            "create": True,
        }
        self.array = import_module("tensorstore").open(spec).result()
        self.under_way: list[Any] = []

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        part = self.array[stage, :, start : start + values.shape[1]]
        self.under_way.append(part.write(values, can_reference_source_data_indefinitely=True))
        if len(self.under_way) > 2:
            self.under_way.pop(0).result()

    def finish(self, sync: bool) -> None:
        for write in self.under_way:
            write.result()
        super().finish(sync)

    def path(self) -> Path:
        return self.folder / "array.zarr"

    def open(self) -> Any:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(self.path())}}
        return import_module("tensorstore").open(spec, open=True).result()

    def stage(self, handle: Any, stage: int) -> np.ndarray:
        return np.asarray(handle[stage].read().result())

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        return np.asarray(handle[stage, layer].read().result())

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        return np.asarray(handle[stage, :, row].read().result())

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        return np.asarray(handle[stage, :, :, token].read().result())


class OursByTensorStore(TensorStore):
    """Our store, read by TensorStore; the folder is that of `Ours`."""

    name = "stratalens's files by TensorStore"

    def path(self) -> Path:
        return self.folder / "run.zarr" / "resid_post"


class OursByZarr(ZarrDefault):
    """Our store, read by zarr-python."""

    name, checksums = "stratalens's files by zarr-python", True

    def open(self) -> Any:
        return zarr.open_array(str(self.folder / "run.zarr" / "resid_post"), mode="r")
