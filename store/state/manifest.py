"""Coordinates that are not labels, as they lie on disk: stages, layers, tokens, and those that variables bring."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import DamagedError, InputError, StratalensError
from stratalens.store.format import label_codec as labels
from stratalens.store.format import metadata
from stratalens.store.format.int8 import summarize_errors
from stratalens.store.format.layout import ArrayLayout, Geometry
from stratalens.store.format.metadata import FORMAT_VERSION, Json
from stratalens.store.format.schema import Variable
from stratalens.store.state import commit_log as commits
from stratalens.store.storage.base import Storage
from stratalens.store.storage.resolve import no_store_error


@dataclass(frozen=True)
class Coordinate:
    """One array of one dim.

    Parameters
    ----------
    dim
        Its dim.
    values
        [array, shape: (n,)] as `labels.normalise` gives them.
    chunk
        Values in one file.
    attributes
        Of the array.
    """

    dim: str
    values: NDArray[Any]
    chunk: int
    attributes: Json = field(default_factory=dict)

    @property
    def data_type(self) -> str:
        """zarr data type of the values."""
        return labels.data_type(self.values)

    def document(self) -> Json:
        """Its zarr.json."""
        return metadata.label_metadata(self.dim, len(self.values), self.chunk, self.data_type, self.attributes)

    def files(self, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of its files, from the file `first` on."""
        yield from enumerate(labels.encode_chunks(self.values[first * self.chunk :], self.chunk), first)


@dataclass(frozen=True)
class StageEntry:
    """One recorded training checkpoint."""

    name: str
    order: int
    fingerprint: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Plain dict for the root zarr.json."""
        return {
            "name": self.name,
            "order": self.order,
            "fingerprint": self.fingerprint,
            "provenance": dict(self.provenance),
        }


@dataclass(frozen=True)
class Store:
    """A store as its root zarr.json describes it at one moment."""

    storage: Storage
    block_size: int
    entities: int
    layers: tuple[int, ...]
    tokens: tuple[str, ...] | tuple[int, ...]
    groups: tuple[tuple[Variable, ...], ...]
    label_types: Mapping[str, str]
    label_digest: str
    provenance: Mapping[str, Any]
    recorded_with: Mapping[str, Any]
    stages: tuple[StageEntry, ...] = ()
    #: For each scaled variable and stage: [largest error, mean error, rows], or None (`measured`).
    measured: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    #: Label columns whose files lie at their second place (`label_key`).
    second_place: tuple[str, ...] = ()
    checksum: str = ""

    @property
    def path(self) -> str:
        """Where the store is."""
        return str(self.storage.root)

    @cached_property
    def geometry(self) -> Geometry:
        """How entities are cut into blocks."""
        full = bool(self.tokens) and isinstance(self.tokens[0], int)
        return Geometry(self.block_size, self.entities, len(self.layers), len(self.tokens), full)

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """Layout of every data variable, `recorded` flags included."""
        return {v.name: self.geometry.layout(v) for group in self.groups for v in group}

    @cached_property
    def group_of(self) -> dict[str, int]:
        """Which group each variable was added with."""
        return {v.name: number for number, group in enumerate(self.groups) for v in group}

    @property
    def label_chunk(self) -> int:
        """Labels in one chunk file."""
        return min(labels.LABEL_CHUNK, self.entities)

    def label_key(self, column: str, number: int) -> str:
        """Key of one chunk file of a label column; a change of labels goes to the place that is not in use."""
        return f"{column}/{number}" if column in self.second_place else f"{column}/c.{number}"

    def stage_index(self, name: str) -> int | None:
        """Position of a stage along the stage axis on disk."""
        return next((i for i, s in enumerate(self.stages) if s.name == name), None)

    def commits(self) -> commits.Commits:
        """What is committed at this moment."""
        return commits.load(self.storage, [s.name for s in self.stages], len(self.groups), self.geometry.blocks)

    def extends(self, old: Store, *, labels_too: bool = False) -> bool:
        """Whether this is `old`, or that with stages or variables added (or, with `labels_too`, other labels)."""
        if old.checksum and old.checksum == self.checksum:
            return True
        fixed = ["block_size", "entities", "layers", "tokens", "provenance"]
        fixed += [] if labels_too else ["label_types", "label_digest"]
        return (
            all(getattr(old, name) == getattr(self, name) for name in fixed)
            and self.groups[: len(old.groups)] == old.groups
            and self.stages[: len(old.stages)] == old.stages
        )

    # -- documents ------------------------------------------------------------------
    def coordinates(self) -> dict[str, Coordinate]:
        """The coordinates that are not labels."""
        found: dict[str, Coordinate] = {}

        def add(name: str, values: Any, chunk: int = 0, dim: str = "", **attributes: Any) -> None:
            column = labels.normalise(name, values)
            found[name] = Coordinate(dim or name, column, chunk or len(column), attributes)

        names = np.array([s.name for s in self.stages], dtype=object)
        orders = np.array([s.order for s in self.stages], dtype=np.int64)
        prints = np.array([s.fingerprint for s in self.stages], dtype=object)
        # One stage in one file: adding a stage leaves the files of the others alone.
        add("stage", names, 1, long_name="training checkpoint that was recorded")
        add("stage_order", orders, 1, dim="stage", long_name="place of the stage in training")
        add("weights_fingerprint", prints, 1, dim="stage", long_name="hash of the weights of the stage")
        if self.layers:
            add("layer", np.array(self.layers, dtype=np.int64), long_name="block index")
        tokens = np.array(self.tokens, dtype=np.int64 if isinstance(self.tokens[0], int) else object)
        add("token", tokens, long_name="recorded position")
        for group in self.groups:
            for variable in group:
                for dim, values in variable.coords.items():
                    add(dim, np.array(values, dtype=np.int64))
        return found

    def arrays(self) -> dict[str, Json]:
        """zarr.json of every array."""
        documents = {name: coordinate.document() for name, coordinate in self.coordinates().items()}
        for name, dtype in self.label_types.items():
            documents[name] = metadata.label_metadata("entity", self.entities, self.label_chunk, dtype, {})
            if name in self.second_place:
                documents[name]["chunk_key_encoding"] = metadata.SECOND_PLACE
        for name, layout in self.layouts.items():
            documents[name] = metadata.variable_metadata(layout, len(self.stages), self.entities)
            documents[name]["attributes"] |= summarize_errors(self.measured.get(name, ()))
        return documents

    def attributes(self) -> Json:
        """Attributes of the root group."""
        # By the CF conventions: xarray gives these as coordinates to a reader that knows nothing of this package.
        auxiliary = ["stage_order", "weights_fingerprint", *sorted({*self.label_types} - {"entity"})]
        return {
            "coordinates": " ".join(name for name in auxiliary if len(name.split()) == 1),
            "stratalens": {
                "format_version": FORMAT_VERSION,
                "block_size": self.block_size,
                "entities": self.entities,
                "layers": list(self.layers),
                "tokens": list(self.tokens),
                "groups": [[v.to_json() for v in group] for group in self.groups],
                "labels": dict(self.label_types),
                "label_digest": self.label_digest,
                "provenance": dict(self.provenance),
                "recorded_with": dict(self.recorded_with),
                "stages": [s.to_json() for s in self.stages],
                **({"measured": dict(self.measured)} if self.measured else {}),
                **({"second_place": list(self.second_place)} if self.second_place else {}),
            },
        }

    def root(self) -> bytes:
        """The root zarr.json."""
        return metadata.encode_root(self.attributes(), self.arrays())


def load(storage: Storage, *, copy: bool = False) -> Store:
    """Read the root zarr.json (or the copy of it that the store keeps)."""
    key = metadata.ROOT_COPY if copy else metadata.ROOT
    raw = storage.get(key)
    if raw is None:
        raise no_store_error(storage)
    try:
        return Store(storage=storage, **_fields(raw, str(storage.path(key)), str(storage.root)))
    except _NoStateError as problem:
        kept = storage.get(metadata.ROOT_COPY) is not None
        raise _stateless(storage, str(problem), kept) from problem.__cause__


class _NoStateError(Exception):
    """A root zarr.json without our attribute; the text says that it is not JSON, or nothing."""


@lru_cache(maxsize=4)
def _fields(raw: bytes, where: str, root: str) -> dict[str, Any]:
    """What a root zarr.json says, as fields of a `Store`; remembered, since writers ask again and again."""
    try:
        document = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _NoStateError(f"it is not JSON ({error})") from error
    state = document.get("attributes", {}).get("stratalens") if isinstance(document, dict) else None
    if not isinstance(state, dict):
        raise _NoStateError
    version = str(state.get("format_version", ""))
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise InputError(
            f"{root} has format version {version!r}; this stratalens reads {FORMAT_VERSION.split('.')[0]}.x. "
            "Install a newer one: pip install --upgrade stratalens"
        )
    state = metadata.decode_root(raw, where)["attributes"]["stratalens"]
    return {
        "block_size": state["block_size"],
        "entities": state["entities"],
        "layers": tuple(state["layers"]),
        "tokens": tuple(state["tokens"]),
        "groups": tuple(tuple(Variable.from_json(v) for v in group) for group in state["groups"]),
        "label_types": dict(state["labels"]),
        "label_digest": state["label_digest"],
        "provenance": dict(state["provenance"]),
        "recorded_with": dict(state["recorded_with"]),
        "stages": tuple(
            StageEntry(s["name"], s["order"], s["fingerprint"], dict(s["provenance"])) for s in state["stages"]
        ),
        "measured": state.get("measured", {}),
        "second_place": tuple(state.get("second_place", ())),
        "checksum": state["checksum"],
    }


def _stateless(storage: Storage, problem: str, kept: bool) -> StratalensError:
    """The error for a root zarr.json that says nothing of a store; `kept` is whether there is a copy of it."""
    if kept:
        said = f"was damaged or edited: {problem.split(' (')[0]}" if problem else "lost its `stratalens` attribute"
        return DamagedError(
            f"{storage.path(metadata.ROOT)} {said}. `stratalens verify --repair` puts back the copy that the store "
            "keeps."
        )
    if problem:
        return InputError(f"{storage.root} holds a zarr.json, but {problem}: it is no store")
    return InputError(
        f"{storage.root} is a zarr hierarchy that stratalens did not write: open it with xarray.open_zarr, or choose "
        "another path to record to"
    )
