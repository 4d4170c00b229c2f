"""Files in a store that no reader uses: superseded labels, data without a record, and files of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from stratalens.store.errors import DamagedError, join_names, quote
from stratalens.store.format import metadata
from stratalens.store.integrity.metadata_checks import Roots
from stratalens.store.state import commit_log as commits
from stratalens.store.state.manifest import Store
from stratalens.store.storage.base import PRIVATE

_SHOWN = 5  # names in one note

_PRIVATE_NAMES = {"root.json", "history.jsonl", "planned.json", "lock", "structure.lock", "leases"}
_INDEX_NAMES = {"index.json", "labels.bin", "pushing.json"}
_CARD_NAMES = {"README.md", "figure.png", ".gitattributes"}


def list_unused_files(roots: Roots) -> list[str]:
    """Name the files of a store that `verify` does not check because nothing refers to them.

    Args:
        roots: root metadata of the store.

    Returns:
        One sentence for each kind and folder.
    """
    return [*_foreign_names(roots), *_superseded_labels(roots), *_foreign_data(roots), *_foreign_records(roots.store)]


def _documents(roots: Roots) -> set[str]:
    states = [roots.store] if roots.ahead is None else [roots.store, roots.ahead]
    return {name for state in states for name in state.arrays()}


def _foreign_names(roots: Roots) -> Iterator[str]:
    storage = roots.store.storage
    known = {*_documents(roots), PRIVATE, metadata.ROOT, *_CARD_NAMES}
    if names := [quote(name) for name in storage.list("") if name not in known]:
        yield f"{storage.root} also has {join_names(names, _SHOWN)}; no part of the store refers to it"
    folders = {"commits", "claims", "tmp"}
    if names := [quote(n) for n in storage.list(PRIVATE) if n not in _PRIVATE_NAMES | _INDEX_NAMES | folders]:
        yield f"{storage.path(PRIVATE)} also has {join_names(names, _SHOWN)}; no part of the store refers to it"


def _superseded_labels(roots: Roots) -> Iterator[str]:
    store = roots.store
    chunks = -(-store.entities // store.label_chunk)
    for name in store.label_types:
        names = set(store.storage.list(name)) - {"zarr.json"}
        current = {store.label_key(name, number).rpartition("/")[2] for number in range(chunks)}
        other = {f"c.{number}" for number in range(chunks)} | {str(number) for number in range(chunks)}
        if superseded := sorted((names & other) - current):
            files = "one file" if len(superseded) == 1 else f"{len(superseded)} files"
            yield f"label column {quote(name)} has {files} of superseded labels"
        if foreign := sorted(names - other):
            yield _belongs_to_nothing(store, name, foreign)


def _foreign_data(roots: Roots) -> Iterator[str]:
    """Name files in the folders of variables and coordinates that belong to no stage and block."""
    store = roots.store
    stages = len((roots.ahead or store).stages)
    for name, layout in store.layouts.items():
        known = {layout.file_name(stage, b) for stage in range(stages) for b in range(store.geometry.blocks)}
        if foreign := sorted(set(store.storage.list(name)) - known - {"zarr.json"}):
            yield _belongs_to_nothing(store, name, foreign)
    for name, coordinate in store.coordinates().items():
        count = stages if coordinate.dim == "stage" else -(-len(coordinate.values) // coordinate.chunk)
        known = {f"c.{number}" for number in range(count)}
        if foreign := sorted(set(store.storage.list(name)) - known - {"zarr.json"}):
            yield _belongs_to_nothing(store, name, foreign)


def _foreign_records(store: Store) -> Iterator[str]:
    """Name commit records of a stage that is not the one of the store, which readers ignore."""
    names = {f"{stage:04d}": entry.name for stage, entry in enumerate(store.stages)}
    foreign = []
    for name in store.storage.list(commits.FOLDER):
        with suppress(DamagedError):
            raw = store.storage.get(f"{commits.FOLDER}/{name}")
            stage = None if raw is None else commits.decode(raw, name)["stage_name"]
            if stage is not None and name[:4] in names and stage != names[name[:4]]:
                foreign.append(f"{name} of stage {quote(stage)}")
    if foreign:
        yield f"commit records of other stages are ignored: {join_names(foreign, _SHOWN)}"


def _belongs_to_nothing(store: Store, folder: str, names: list[str]) -> str:
    listed = join_names(map(quote, names), _SHOWN)
    return f"{store.storage.path(folder)} also has {listed}, which no reader uses"
