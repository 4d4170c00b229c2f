"""The files of one revision: its weights, the tensors in each of them, and whether a model can be loaded from them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub.errors import EntryNotFoundError

from stratalens.plugin.hub.client import Hub, HubFile
from stratalens.plugin.hub.revisions import HubRevision
from stratalens.store.errors import join_names

WeightFormat = Literal["safetensors", "pickle", "none"]

CONFIG = "config.json"
INDEX = {"safetensors": "model.safetensors.index.json", "pickle": "pytorch_model.bin.index.json"}
SINGLE = {"safetensors": "model.safetensors", "pickle": "pytorch_model.bin"}
_SHARD = {
    "safetensors": re.compile(r"model-(\d+)-of-(\d+)\.safetensors"),
    "pickle": re.compile(r"pytorch_model-(\d+)-of-(\d+)\.bin"),
}
_TOKENIZER = re.compile(
    r"tokenizer.*|vocab\..*|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template.*|.*\.model|.*\.tiktoken"
)
_LOADED = (CONFIG, "generation_config.json")

# Buffers that some versions of transformers save and others compute, and an output layer that may be tied.
_OPTIONAL = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(bias|masked_bias)|masked_bias|lm_head\.weight|embed_out\.weight|"
    r"position_ids)$"
)

LONGEST_HEADER = 100_000_000  # the limit of safetensors


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        tensors: dtype and shape of every tensor, by name.
        problem: what is wrong with the file, "" where nothing is.
    """

    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    problem: str = ""


@dataclass
class RevisionFiles:
    """The files of one revision, as the hub lists them.

    Attributes:
        revision: the revision.
        files: all files at the top of the repository, by path.
        format: format of the weights that would be loaded.
        weights: paths of the weight files that exist.
        index: path of the file that assigns tensors to shards, "" where there is none.
        tensors_of: names of the tensors in each shard, from the index.
        missing: weight files that the index or the names of other shards call for, and that do not exist.
    """

    revision: HubRevision
    files: Mapping[str, HubFile]
    format: WeightFormat = "none"
    weights: tuple[str, ...] = ()
    index: str = ""
    tensors_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.format, self.weights = weight_paths(self.files)
        index = INDEX.get(self.format, "")
        self.index = index if index in self.files and self.weights != (SINGLE[self.format],) else ""
        self.missing = _missing_by_name(self.format, self.weights)

    @property
    def digests(self) -> dict[str, str]:
        """Hash of every weight file."""
        return {path: self.files[path].digest for path in self.weights}

    def read_index(self, document: Mapping[str, Any]) -> None:
        """Take the shards and their tensors from the content of the index file."""
        weight_map = document.get("weight_map")
        if not isinstance(weight_map, Mapping):
            return
        tensors: dict[str, list[str]] = {}
        for name, path in weight_map.items():
            tensors.setdefault(str(path), []).append(str(name))
        self.tensors_of = {path: tuple(names) for path, names in sorted(tensors.items())}
        self.missing = tuple(sorted({*self.missing, *(path for path in tensors if path not in self.files)}))

    def tokenizer_files(self) -> tuple[str, ...]:
        """Return the files of the tokenizer."""
        return tuple(path for path in self.files if _TOKENIZER.fullmatch(path) and not path.endswith(".safetensors"))

    def to_download(self) -> tuple[str, ...]:
        """Return the files from which the model is loaded."""
        small = [path for path in _LOADED if path in self.files]
        return (*small, *((self.index,) if self.index else ()), *self.tokenizer_files(), *self.weights)

    def nbytes(self) -> int:
        """Return the bytes of `to_download`."""
        return sum(self.files[path].size for path in self.to_download())


def weight_paths(files: Mapping[str, HubFile]) -> tuple[WeightFormat, tuple[str, ...]]:
    """Return the format and the weight files that transformers would load: safetensors first, one file before shards.

    Example:
        >>> weight_paths(dict.fromkeys(["config.json", "pytorch_model.bin", "model-00001-of-00002.safetensors"]))
        ('safetensors', ('model-00001-of-00002.safetensors',))
    """
    formats: Sequence[WeightFormat] = ("safetensors", "pickle")
    for kind in formats:
        if SINGLE[kind] in files:
            return kind, (SINGLE[kind],)
        if shards := sorted(path for path in files if _SHARD[kind].fullmatch(path)):
            return kind, tuple(shards)
    return "none", ()


def _missing_by_name(kind: WeightFormat, weights: Sequence[str]) -> tuple[str, ...]:
    """Return the shards that the "-of-00003" of the others calls for."""
    missing = set()
    for path in weights:
        if match := _SHARD[kind].fullmatch(path):
            for number in range(1, int(match[2]) + 1):
                digits = str(number).zfill(len(match[1]))
                missing.add(path[: match.start(1)] + digits + path[match.end(1) :])
    return tuple(sorted(missing - set(weights)))


def read_header(hub: Hub, repository: str, commit: str, file: HubFile) -> Header:
    """Read the header of a safetensors file by ranges, and compare it with the size of the file."""
    try:
        length = int.from_bytes(hub.read(repository, commit, file.path, 0, 8), "little") if file.size >= 8 else 0
        if not 2 <= length <= LONGEST_HEADER or 8 + length > file.size:
            return Header(problem=f"the {file.size:,} bytes are no safetensors file, or only its beginning")
        text = hub.read(repository, commit, file.path, 8, 8 + length)
        return parse_header(text, file.size - 8 - length)
    except EntryNotFoundError:
        return Header(problem="the hub lists it and does not have it")


def parse_header(text: bytes, data_bytes: int) -> Header:
    """Parse the JSON of a safetensors header.

    Args:
        text: the JSON.
        data_bytes: bytes of the file behind the header.

    Example:
        >>> parse_header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', 6).problem
        'it ends 2 bytes too early: the tensors need 8 bytes, and 6 are there'
    """
    try:
        entries = json.loads(text)
        tensors = {
            str(name): (str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        needed = max((int(e["data_offsets"][1]) for n, e in entries.items() if n != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return Header(problem=f"its header cannot be read ({type(error).__name__})")
    if needed > data_bytes:
        return Header(
            tensors,
            f"it ends {needed - data_bytes:,} bytes too early: the tensors need {needed:,} bytes, and {data_bytes:,} "
            "are there",
        )
    return Header(tensors)


def compare_headers(header: Header, usual: Header) -> str:
    """Say how the tensors of a file differ from those of the same file in most revisions; "" where they do not.

    Example:
        >>> usual = Header({"a": ("F32", (2,)), "b": ("F32", (3,))})
        >>> compare_headers(Header({"a": ("F16", (2,))}), usual)
        'it has no tensor b'
    """
    if absent := sorted(name for name in usual.tensors if name not in header.tensors and not _OPTIONAL.search(name)):
        noun = "tensor" if len(absent) == 1 else f"{len(absent)} tensors:"
        return f"it has no {noun} {join_names(absent, 3)}"
    both = [name for name in header.tensors if name in usual.tensors]
    if other := [name for name in both if header.tensors[name] != usual.tensors[name]]:
        name = other[0]
        (dtype, shape), (usual_dtype, usual_shape) = header.tensors[name], usual.tensors[name]
        return (
            f"{len(other)} of its {len(header.tensors)} tensors have another dtype or shape: {name} is {dtype} "
            f"{list(shape)}, in most revisions {usual_dtype} {list(usual_shape)}"
        )
    return ""
