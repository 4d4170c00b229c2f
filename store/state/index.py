"""The index of a shared store: its commit records in one object, and where its label files are in another.

`stratalens push` writes both objects. A reader of a URL needs two requests for what would take hundreds. The index
names the root that it was made from, and a reader ignores it with any other root. Writers remove it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stratalens.store.errors import DamagedError
from stratalens.store.format.checksum import crc32c
from stratalens.store.state import commit_log as commits
from stratalens.store.state.capture_plan import PLANNED
from stratalens.store.state.history import HISTORY
from stratalens.store.state.manifest import Store
from stratalens.store.storage.base import PRIVATE, Storage
from stratalens.store.storage.object_store import RemoteStorage
from stratalens.store.storage.snapshot import Snapshot
from stratalens.store.threads import NETWORK_THREADS

INDEX = f"{PRIVATE}/index.json"
LABELS = f"{PRIVATE}/labels.bin"

_VERSION = 1
_TEXTS = (PLANNED, HISTORY)  # with the commit records, the small objects that readers ask for


def build_index(
    store: Store, texts: Mapping[str, bytes], labels: Iterable[tuple[str, bytes]], sizes: Mapping[str, int]
) -> dict[str, bytes]:
    """Build the two objects of an index.

    Args:
        store: the store, with the root that readers will see.
        texts: content of every commit record, of the history and of the capture plan, by key.
        labels: key and content of every label file.
        sizes: bytes of every file of a compressed variable, by key.

    Returns:
        Content of `LABELS` and of `INDEX`, by key, in the order in which they have to be written.
    """
    places: dict[str, list[int]] = {}
    bundle = bytearray()
    for key, content in labels:
        places[key] = [len(bundle), len(content), crc32c(content)]
        bundle += content
    document = {
        "version": _VERSION,
        "root": _identity(store),
        "texts": {key: content.decode() for key, content in texts.items()},
        "labels": places,
        "sizes": dict(sizes),
    }
    return {LABELS: bytes(bundle), INDEX: encode_document(document)}


def encode_document(document: dict[str, Any]) -> bytes:
    """Encode the document of an index: a line of JSON, and a line with its crc32c."""
    body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    return body + b"%08x\n" % crc32c(body)


def _identity(store: Store) -> str:
    return f"{store.checksum} {store.label_digest} {len(store.stages)}"


def remove_index(storage: Storage) -> None:
    """Remove the index, because the store is about to change; only under the lock of a writer."""
    keys = [key for key in (INDEX, LABELS) if storage.size(key) is not None]
    if keys:
        storage.delete(keys)


def attach_index(store: Store) -> None:
    """Let the storage of a remote store answer from the index, where a valid one exists.

    Without one, the commit records are requested at the same time, and forgotten by `detach_records`. A local store
    is left as it is.
    """
    storage = store.storage
    if not isinstance(storage, RemoteStorage):
        return
    storage.snapshot = None
    names = storage.list(commits.FOLDER) if storage.lists_folders else None
    storage.snapshot = _read_index(store, storage, names) or _read_records(store, storage, names)


def detach_records(storage: Storage) -> None:
    """Forget commit records that no index proves to belong together, so that later calls read them again."""
    if not isinstance(storage, RemoteStorage) or storage.snapshot is None:
        return
    if storage.lists_folders and not storage.snapshot.bundle:
        storage.snapshot = None


def _read_index(store: Store, storage: RemoteStorage, names: Sequence[str] | None) -> Snapshot | None:
    """Return the content of the index; None if there is none, or if it is damaged or older than the store."""
    raw = storage.get(INDEX)
    if raw is None:
        return None
    body, tail = raw[:-9], raw[-9:]
    try:
        if tail != b"%08x\n" % crc32c(body):
            raise ValueError("it differs from its checksum")
        document = json.loads(body)
        if document["version"] != _VERSION or document["root"] != _identity(store):
            return None
        files = {str(key): text.encode() for key, text in document["texts"].items()}
        labels = {str(key): (int(o), int(n), int(crc)) for key, (o, n, crc) in document["labels"].items()}
        sizes = {str(key): int(n) for key, n in document["sizes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(
            f"the index {storage.path(INDEX)} is damaged ({error}), so opening takes more requests. "
            "`stratalens push` writes it again",
            UserWarning,
            stacklevel=2,
        )
        return None
    recorded = sorted(key.rpartition("/")[2] for key in files if key.startswith(f"{commits.FOLDER}/"))
    if names is not None and recorded != sorted(names):
        return None  # rows were recorded since
    return Snapshot(files, frozenset({PRIVATE, commits.FOLDER}), sizes=sizes, bundle=LABELS, labels=labels)


def _read_records(store: Store, storage: RemoteStorage, names: Sequence[str] | None) -> Snapshot:
    """Request the commit records, several at the same time.

    Block records are removed only after the compacted record of their stage exists, so it is requested last.
    """
    blocks = range(store.geometry.blocks)
    groups = [(stage, group) for stage in range(len(store.stages)) for group in range(len(store.groups))]
    stage_keys = [commits.stage_key(stage, group) for stage, group in groups]
    files: dict[str, bytes] = {}

    def request(keys: Sequence[str]) -> None:
        if keys:
            with ThreadPoolExecutor(min(NETWORK_THREADS, len(keys)), thread_name_prefix="stratalens-open") as pool:
                contents = list(pool.map(storage.get, keys))
            files.update({key: content for key, content in zip(keys, contents, strict=True) if content is not None})

    if names is not None:
        known = [f"{commits.FOLDER}/{name}" for name in names]
        request([key for key in known if key not in stage_keys])
        request(stage_keys)
    else:  # a web server lists no folders; the names are known
        request(stage_keys)
        absent = [(stage, group) for stage, group in groups if commits.stage_key(stage, group) not in files]
        request([commits.block_key(stage, block, group) for stage, group in absent for block in blocks])
        request([commits.stage_key(stage, group) for stage, group in absent])
        if stage_keys and not files and storage.get(HISTORY) is None:
            raise DamagedError(
                f"{storage.root} has no folder {PRIVATE}, which says what was recorded: a copy or a server that leaves "
                "hidden folders out loses it. Copy the store with all files, and let the server deliver them"
            )
    folders = {commits.FOLDER} if names is not None else {commits.FOLDER, PRIVATE}
    if names is None:
        request(list(_TEXTS))
    return Snapshot(files, frozenset(folders))
