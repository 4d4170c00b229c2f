"""A store as its root document describes it: stages, variables, label columns and coordinates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import DamagedError, InputError, StratalensError
from stratalens.store.format import label_codec as labels
from stratalens.store.format import metadata
from stratalens.store.format.checksum import crc32c
from stratalens.store.format.int8 import summarize_errors
from stratalens.store.format.layout import ArrayLayout, Geometry
from stratalens.store.format.metadata import FORMAT_VERSION, Json
from stratalens.store.format.schema import Variable
from stratalens.store.state import commit_log as commits
from stratalens.store.state.root_checks import check_root_state
from stratalens.store.storage.base import Storage
from stratalens.store.storage.resolve import no_store_error


@dataclass(frozen=True)
class Coordinate:
    """A one-dimensional coordinate that is not a label column.

    Args:
        dim: its dim.
        values: array of shape (n,), a normalised column.
        chunk: number of values in one file.
        attributes: attributes of the array.
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
        """Return the zarr.json of the array."""
        return metadata.label_metadata(self.dim, len(self.values), self.chunk, self.data_type, self.attributes)

    def files(self, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield number and bytes of each file, from the file `first` on."""
        yield from enumerate(labels.encode_chunks(self.values[first * self.chunk :], self.chunk), first)


@dataclass(frozen=True)
class StageEntry:
    """One recorded training checkpoint.

    Args:
        name: name of the stage.
        order: place of the stage in training.
        fingerprint: hash of the weights.
        provenance: fields that must match when the stage is resumed.
    """

    name: str
    order: int
    fingerprint: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Return a plain dict for the root zarr.json."""
        return asdict(self)


@dataclass(frozen=True)
class Store:
    """A store as its root zarr.json describes it at one moment.

    Args:
        storage: the storage.
        block_size: entity rows of one block.
        entities: number of entity rows.
        layers: indices of the recorded layers.
        tokens: names of positions, or offsets of a full sequence.
        groups: variables, in the groups in which they were added.
        label_types: zarr data type of each label column.
        label_digest: sha256 of all label columns.
        provenance: fields that must match when data is added.
        recorded_with: names and versions for information.
        stages: recorded stages, in the order of the stage axis on disk.
        measured: for each scaled variable and stage (largest error, mean error, rows), or None.
        alternate_label_files: label columns whose current values use the alternate file names.
        label_orders: categories of each ordered label column, in order, as text.
        checksum: checksum of the root document.
    """

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
    measured: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    alternate_label_files: tuple[str, ...] = ()
    label_orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checksum: str = ""

    @property
    def path(self) -> str:
        """Path or URL of the store."""
        return str(self.storage.root)

    @cached_property
    def geometry(self) -> Geometry:
        """Division of the entities into blocks."""
        full_sequence = bool(self.tokens) and isinstance(self.tokens[0], int)
        return Geometry(self.block_size, self.entities, len(self.layers), len(self.tokens), full_sequence)

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """Layout of every data variable, `recorded` flags included."""
        return {v.name: self.geometry.layout(v) for group in self.groups for v in group}

    @cached_property
    def group_of(self) -> dict[str, int]:
        """Number of the group of each variable."""
        return {v.name: number for number, group in enumerate(self.groups) for v in group}

    @cached_property
    def _alternate(self) -> frozenset[str]:
        """The label columns of `alternate_label_files`; thousands of columns are looked up one by one."""
        return frozenset(self.alternate_label_files)

    @property
    def label_chunk(self) -> int:
        """Number of labels in one chunk file."""
        return min(labels.LABEL_CHUNK, self.entities)

    def label_key(self, column: str, number: int) -> str:
        """Return the key of one chunk file of a label column.

        A column has two sets of file names; a change of labels writes to the set that is not in use.
        """
        return f"{column}/{number}" if column in self._alternate else f"{column}/c.{number}"

    def stage_index(self, name: str) -> int | None:
        """Return the position of a stage along the stage axis on disk, or None if it is not recorded."""
        return next((i for i, s in enumerate(self.stages) if s.name == name), None)

    def commits(self) -> commits.Commits:
        """Read which blocks are committed at this moment."""
        return commits.load(self.storage, [s.name for s in self.stages], len(self.groups), self.geometry.blocks)

    def extends(self, old: Store, *, labels_too: bool = False) -> bool:
        """Return whether this store is `old`, possibly with stages or variables added.

        With `labels_too`, the labels may differ as well.
        """
        if old.checksum and old.checksum == self.checksum:
            return True
        fixed = ["block_size", "entities", "layers", "tokens", "provenance"]
        fixed += [] if labels_too else ["label_types", "label_digest", "label_orders"]
        return (
            all(getattr(old, name) == getattr(self, name) for name in fixed)
            and self.groups[: len(old.groups)] == old.groups
            and self.stages[: len(old.stages)] == old.stages
        )

    # -- documents ------------------------------------------------------------------
    def coordinates(self) -> dict[str, Coordinate]:
        """Return the coordinates that are not label columns, by name."""
        coordinates: dict[str, Coordinate] = {}

        def add(name: str, values: Any, chunk: int = 0, dim: str = "", **attributes: Any) -> None:
            column = labels.normalise(name, values)
            coordinates[name] = Coordinate(dim or name, column, chunk or len(column), attributes)

        names = np.array([s.name for s in self.stages], dtype=object)
        orders = np.array([s.order for s in self.stages], dtype=np.int64)
        fingerprints = np.array([s.fingerprint for s in self.stages], dtype=object)
        # One file for each stage: adding a stage does not touch the files of other stages.
        add("stage", names, 1, long_name="training checkpoint that was recorded")
        add("stage_order", orders, 1, dim="stage", long_name="place of the stage in training")
        add("weights_fingerprint", fingerprints, 1, dim="stage", long_name="hash of the weights of the stage")
        if self.layers:
            add("layer", np.array(self.layers, dtype=np.int64), long_name="block index")
        tokens = np.array(self.tokens, dtype=np.int64 if isinstance(self.tokens[0], int) else object)
        add("token", tokens, long_name="recorded position")
        for group in self.groups:
            for variable in group:
                for dim, values in variable.coords.items():
                    add(dim, np.array(values, dtype=np.int64))
        return coordinates

    def arrays(self) -> dict[str, Json]:
        """Return the zarr.json of every array, by name."""
        documents = {name: coordinate.document() for name, coordinate in self.coordinates().items()}
        for name, dtype in self.label_types.items():
            attributes: Json = (
                {"ordered_categories": list(self.label_orders[name])} if name in self.label_orders else {}
            )
            documents[name] = metadata.label_metadata("entity", self.entities, self.label_chunk, dtype, attributes)
            if name in self._alternate:
                documents[name]["chunk_key_encoding"] = metadata.ALTERNATE_KEYS
        for name, layout in self.layouts.items():
            documents[name] = metadata.variable_metadata(layout, len(self.stages), self.entities)
            documents[name]["attributes"] |= summarize_errors(self.measured.get(name, ()))
        return documents

    def attributes(self) -> Json:
        """Return the attributes of the root group."""
        # By the CF conventions, xarray shows these as coordinates to a reader without this package.
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
                **({"second_place": list(self.alternate_label_files)} if self.alternate_label_files else {}),
                **({"label_orders": {k: list(v) for k, v in self.label_orders.items()}} if self.label_orders else {}),
            },
        }

    def root(self) -> bytes:
        """Encode the root zarr.json."""
        return metadata.encode_root(self.attributes(), self.arrays())


def load(storage: Storage, *, copy: bool = False) -> Store:
    """Read a store from its root zarr.json, or with `copy` from the copy of the root.

    Raises:
        InputError: there is no store, or its format is newer than this package.
        DamagedError: the root was damaged or edited.
    """
    key = metadata.ROOT_COPY if copy else metadata.ROOT
    raw = storage.get(key)
    if raw is None:
        raise no_store_error(storage)
    try:
        document = _RootDocument(crc32c(raw), len(raw), raw)
        return Store(storage=storage, **_parse_root(document, str(storage.path(key)), str(storage.root)))
    except _NoStateError as problem:
        raise _no_state_error(storage, str(problem)) from problem.__cause__


class _NoStateError(Exception):
    """A root zarr.json without the attribute `stratalens`; the text is empty unless it is not JSON."""


@dataclass(frozen=True)
class _RootDocument:
    """Bytes of a root, compared by checksum and size: it may have megabytes, and writers load it many times."""

    checksum: int
    nbytes: int
    raw: bytes = field(compare=False, repr=False)


@lru_cache(maxsize=4)
def _parse_root(root_document: _RootDocument, where: str, root: str) -> dict[str, Any]:
    """Parse a root zarr.json into the fields of a `Store`."""
    raw = root_document.raw
    try:
        document = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _NoStateError(f"it is not JSON ({error})") from error
    attributes = document.get("attributes") if isinstance(document, dict) else None
    state = attributes.get("stratalens") if isinstance(attributes, dict) else None
    if not isinstance(state, dict):
        raise _NoStateError
    version = str(state.get("format_version", ""))
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise InputError(
            f"{root} has format version {version!r}; this stratalens reads {FORMAT_VERSION.split('.')[0]}.x. "
            "Install a newer one: pip install --upgrade stratalens"
        )
    state = metadata.decode_root(raw, where)["attributes"]["stratalens"]
    try:
        check_root_state(state)
        return _store_fields(state)
    except (InputError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedError(
            f"{where} has a correct checksum, but its content is not that of a store: {error}"
        ) from error


def _store_fields(state: Json) -> dict[str, Any]:
    """Return the fields of a `Store` from the attribute `stratalens` of its root."""
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
        "alternate_label_files": tuple(state.get("second_place", ())),
        "label_orders": {name: tuple(order) for name, order in state.get("label_orders", {}).items()},
        "checksum": state["checksum"],
    }


def _no_state_error(storage: Storage, problem: str) -> StratalensError:
    """Return the error for a root zarr.json that does not describe a store."""
    if (storage.get(metadata.ROOT_COPY) or b"").startswith(b"{"):  # some web servers answer with a page for any address
        damage = f"was damaged or edited: {problem.split(' (')[0]}" if problem else "lost its `stratalens` attribute"
        return DamagedError(
            f"{storage.path(metadata.ROOT)} {damage}. `stratalens verify --repair` restores it from the copy that "
            "the store keeps."
        )
    if problem:
        return InputError(f"{storage.root} contains a zarr.json, but {problem}: it is no store")
    return InputError(
        f"{storage.root} is a zarr hierarchy that stratalens did not write: open it with xarray.open_zarr, or choose "
        "another path to record to"
    )
