"""The files of a shared copy of a store, in the order in which they are written.

Data files come first and the root last, as a writer does it: an interrupted copy shows nothing that is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from stratalens.store.errors import DamagedError, MismatchError
from stratalens.store.format import metadata
from stratalens.store.format.layout import ArrayLayout
from stratalens.store.integrity.data_checks import check_file, chunk_damage
from stratalens.store.state import commit_log as commits
from stratalens.store.state.capture_plan import PLANNED
from stratalens.store.state.history import HISTORY
from stratalens.store.state.index import build_index
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.store_files import check_store_files
from stratalens.store.storage.base import Storage


@dataclass(frozen=True)
class DataFile:
    """One committed data file.

    Attributes:
        key: its key in the store.
        nbytes: its size.
        stage: position of its stage on disk.
        block: its row block.
        digest: digest in its commit record.
    """

    key: str
    nbytes: int
    stage: int
    block: int
    layout: ArrayLayout
    digest: int


@dataclass(frozen=True)
class PushPlan:
    """A store at one moment, as it is copied.

    Attributes:
        store: the source.
        root: bytes of its root document.
        data: its committed data files.
        documents: labels, coordinates and array metadata, by key.
        records: commit records, by key: one for each complete stage and group, else one for each block.
        texts: history and capture plan, by key.
        index: the objects of the index, by key.
    """

    store: Store
    root: bytes
    data: tuple[DataFile, ...]
    documents: dict[str, bytes]
    records: dict[str, bytes]
    texts: dict[str, bytes]
    index: dict[str, bytes]

    @property
    def nbytes(self) -> int:
        """Bytes of the data files."""
        return sum(file.nbytes for file in self.data)

    @property
    def identity(self) -> str:
        """A hash of everything that is copied."""
        state = hashlib.sha256(self.root)
        for content in self.records.values():
            state.update(content)
        return state.hexdigest()


def plan_push(storage: Storage) -> PushPlan:
    """List what a shared copy of a store consists of, and read everything but the data files.

    Args:
        storage: storage of the source.

    Raises:
        InputError: there is no store.
        DamagedError: metadata, a label file or a commit record is damaged or missing.
        MismatchError: the store changed while it was read.
    """
    store = load(storage)
    check_store_files(store)
    root = storage.get(metadata.ROOT) or b""
    records, data = {}, []
    sizes = {name: storage.sizes(name) for name, layout in store.layouts.items() if layout.compressed}
    singles = commits.block_records(storage)
    for stage, entry in enumerate(store.stages):
        for group, variables in enumerate(store.groups):
            blocks = store.geometry.blocks
            digests = commits.read_stage(storage, stage, group, blocks, name=entry.name, singles=singles)
            names = [variable.name for variable in variables]
            committed = [b for b in range(blocks) if all(b in digests.get(name, {}) for name in names)]
            if len(committed) == blocks:
                record = commits.stage_record(stage, entry.name, group, digests, blocks)
                records[commits.stage_key(stage, group)] = record
            else:  # the names of the records change with every block that is recorded later
                for block in committed:
                    files = {name: digests[name][block] for name in names}
                    record = commits.block_record(stage, entry.name, block, group, files)
                    records[commits.block_key(stage, block, group)] = record
            for name in names:
                layout = store.layouts[name]
                for block in committed:
                    file = layout.file_name(stage, block)
                    nbytes = sizes[name].get(file, 0) if layout.compressed else layout.file_nbytes
                    data.append(DataFile(layout.key(stage, block), nbytes, stage, block, layout, digests[name][block]))
    documents = {f"{name}/zarr.json": metadata.canonical(document) for name, document in store.arrays().items()}
    for name, coordinate in store.coordinates().items():
        documents |= {f"{name}/c.{number}": content for number, content in coordinate.files(0)}
    labels = dict(_label_files(store))
    texts = {key: content for key in (HISTORY, PLANNED) if (content := storage.get(key)) is not None}
    if load(storage).checksum != store.checksum or f'"{store.checksum}"'.encode() not in root:
        raise MismatchError(f"{storage.root} changed while it was read: wait until its writer has finished")
    compressed = {file.key: file.nbytes for file in data if file.layout.compressed}
    index = build_index(store, {**records, **texts}, labels.items(), compressed)
    return PushPlan(store, root, tuple(data), {**documents, **labels}, records, texts, index)


def _label_files(store: Store) -> Iterator[tuple[str, bytes]]:
    for name in sorted(store.label_types):
        for number in range(-(-store.entities // store.label_chunk)):
            key = store.label_key(name, number)
            content = store.storage.get(key)
            if content is None:
                raise DamagedError(
                    f"label column {name!r} has no file {store.storage.path(key)}: run `stratalens verify --repair "
                    f"{store.path}`"
                )
            yield key, content


def check_data_file(plan: PushPlan, file: DataFile) -> None:
    """Raise DamagedError unless a data file is the intact one that was committed."""
    result = check_file(plan.store.storage, file.layout, file.key)
    number, what = (*result.faults, (None, "the file is intact but not the one that was committed"))[0]
    if result.faults or result.digest != file.digest:
        damage = chunk_damage(plan.store, file.stage, file.block, file.layout, number, what)
        raise DamagedError(
            f"{damage}; the store was not pushed. Mark it as missing with `stratalens verify --repair`, then run the "
            "capture again to record it again."
        )


def check_same_store(plan: PushPlan, target: Store) -> None:
    """Raise MismatchError unless the source is the target store, possibly with more stages, variables or labels."""
    if not plan.store.extends(target, labels_too=True):
        raise MismatchError(
            f"{target.path} holds another store than {plan.store.path}: other rows, layers, positions, provenance or "
            "stages. Push to another address"
        )
