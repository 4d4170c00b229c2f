"""Tiny checkpoint suites with the faults that users of public suites have reported.

The files are real safetensors files of a few hundred bytes; no model can be built from them.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save, save_file

SHARD = "model-0000{}-of-0000{}.safetensors"
Tensors = dict[str, np.ndarray]


def tensors(step: int, dtype: str = "float32") -> Tensors:
    """Return the weights of one step, other ones at every step."""
    generator = np.random.default_rng(step)
    names = ("embed.weight", "blocks.0.weight", "blocks.1.weight", "head.weight")
    return {name: generator.normal(size=(4, 8)).astype(dtype) for name in names}


def checkpoint(folder: Path, step: int, shards: int = 1, dtype: str = "float32", **config: object) -> Path:
    """Write a revision: its config, a tokenizer file and its weights."""
    folder.mkdir(parents=True)
    settings = {"model_type": "tiny", "torch_dtype": dtype, "hidden_size": 8, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text("{}")
    values = tensors(step, dtype)
    if shards == 1:
        save_file(values, folder / "model.safetensors")
        return folder
    names = list(values)
    weight_map = {}
    for number in range(shards):
        path = SHARD.format(number + 1, shards)
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: values[name] for name in part}, folder / path)
        weight_map |= dict.fromkeys(part, path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def suite(root: Path, names: Sequence[str], shards: int = 1) -> dict[str, Path]:
    """Write a suite without faults: one folder for each revision, by name."""
    return {name: checkpoint(root / name, number, shards) for number, name in enumerate(names)}


def copy_weights(suite: Mapping[str, Path], source: str, target: str, *paths: str) -> None:
    """Give a revision the weights of another one; with `paths`, only those files."""
    for path in paths or [p.name for p in suite[source].glob("*.safetensors")]:
        shutil.copyfile(suite[source] / path, suite[target] / path)


def pickle_weights(folder: Path) -> None:
    """Leave only pickled weights; nothing ever reads their bytes."""
    for path in sorted(folder.glob("*.safetensors")):
        path.rename(path.with_name(path.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def truncate(folder: Path, bytes_lost: int = 40) -> None:
    """Cut the end off the weights, as an interrupted upload does."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-bytes_lost])


def pointer(folder: Path) -> None:
    """Replace the weights by the pointer file of LFS, as an upload without LFS does."""
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def without_tensor(folder: Path, name: str, step: int) -> None:
    """Save the weights without one tensor."""
    values = tensors(step)
    del values[name]
    (folder / "model.safetensors").write_bytes(save(values))
