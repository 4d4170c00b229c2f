"""A store copied to a dataset repository of the Hugging Face Hub; an interrupted copy resumes.

Data files are committed in batches. The last commit has the root, the commit records, the index and the card, so the
store appears, or changes, with one commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stratalens.store.errors import InputError
from stratalens.store.format import metadata
from stratalens.store.interop.push_plan import DataFile, PushPlan, check_data_file, check_same_store
from stratalens.store.state import commit_log as commits
from stratalens.store.state.manifest import load
from stratalens.store.storage.hub import HubAddress, HubStorage, hub_errors
from stratalens.store.storage.local import LocalStorage

Progress = Callable[[int, int], None]

BATCH_FILES, BATCH_BYTES = 500, 4 << 30  # of one commit; the hub allows 128 commits an hour
FOLDER_LIMIT = 10_000  # files in one folder of a repository


def dataset_address(url: str) -> HubAddress:
    """Return the parts of the URL of a dataset repository; raise InputError for another one."""
    address = HubAddress(url)
    if address.kind != "dataset":
        raise InputError(f"{url} is no dataset repository: push to hf://datasets/{address.repository}")
    return address


def push_to_hub(
    plan: PushPlan, url: str, extra: Mapping[str, bytes], *, private: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Copy a store to a dataset repository, which is created if it does not exist.

    Args:
        plan: the source, in a local folder.
        url: hf://datasets/USER/NAME[@BRANCH][/FOLDER].
        extra: further files, such as the card, by key.
        private: create the repository as a private one.
        progress: function called with (bytes done, bytes in total).

    Returns:
        Number of data files that were sent, their bytes, and the last commit.

    Raises:
        InputError: the URL names no dataset repository, or access is refused.
        MismatchError: the repository holds another store.
        UnreachableError: the hub does not answer.
        DamagedError: a file of the source is damaged.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    address = dataset_address(url)
    source = plan.store.storage
    if not isinstance(source, LocalStorage):
        raise InputError(f"{source.root} is not on this machine: push from the folder of the store")
    _check_folder_sizes(plan)
    api = HfApi()
    repository: dict[str, Any] = {"repo_id": address.repository, "repo_type": "dataset"}
    hub_errors(address, lambda: api.create_repo(**repository, private=private or None, exist_ok=True))
    branch = address.revision or "main"
    if address.revision is not None:
        hub_errors(address, lambda: api.create_branch(**repository, branch=branch, exist_ok=True))
    target = HubStorage(url)
    if target.get(metadata.ROOT) is not None:
        check_same_store(plan, load(target))
    remote = _remote_files(api, address, branch)

    def commit(operations: list[Any], message: str) -> str:
        info = hub_errors(
            address,
            lambda: api.create_commit(
                **repository, operations=operations, commit_message=message, revision=address.revision
            ),
        )
        return str(info.oid)

    def same(key: str, path: Path | None, content: bytes | None, nbytes: int) -> bool:
        entry = remote.get(address.key_in_repository(key))
        return entry is not None and entry.size == nbytes and _has_content(entry, path, content)

    absent = [file for file in plan.data if not same(file.key, Path(source.path(file.key)), None, file.nbytes)]
    total = plan.nbytes
    done = total - sum(file.nbytes for file in absent)
    for number, batch in enumerate(batches := _batches(absent), 1):
        for file in batch:
            check_data_file(plan, file)
        added = [CommitOperationAdd(address.key_in_repository(f.key), str(source.path(f.key))) for f in batch]
        commit(added, f"Data files, part {number} of {len(batches)}")
        done += sum(file.nbytes for file in batch)
        if progress is not None:
            progress(done, total)
    files = {**plan.documents, **plan.texts, **plan.records, metadata.ROOT_COPY: plan.root, **extra, **plan.index}
    files[metadata.ROOT] = plan.root
    changed = {key: content for key, content in files.items() if not same(key, None, content, len(content))}
    operations: list[Any] = [
        CommitOperationAdd(address.key_in_repository(key), content) for key, content in changed.items()
    ]
    prefix = address.key_in_repository(commits.FOLDER) + "/"
    records = {address.key_in_repository(key) for key in plan.records}
    operations += [CommitOperationDelete(path) for path in remote if path.startswith(prefix) and path not in records]
    last = commit(operations, f"Store with {len(plan.store.stages)} stages") if operations else _head(api, address)
    return {"files": len(absent), "bytes": sum(file.nbytes for file in absent), "commit": last}


def _head(api: Any, address: HubAddress) -> str:
    request = lambda: api.repo_info(address.repository, repo_type="dataset", revision=address.revision)  # noqa: E731
    return str(hub_errors(address, request).sha)


def _remote_files(api: Any, address: HubAddress, branch: str) -> dict[str, Any]:
    """Return the entry of every file of the repository, by path."""
    entries = hub_errors(
        address,
        lambda: list(api.list_repo_tree(address.repository, repo_type="dataset", revision=branch, recursive=True)),
    )
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}


def _has_content(entry: Any, path: Path | None, content: bytes | None) -> bool:
    """Compare a file of the hub with a content, by the sha256 of a large file or the git hash of a small one."""
    if entry.lfs is not None:
        if path is not None:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == str(entry.lfs.sha256)
        return hashlib.sha256(content or b"").hexdigest() == str(entry.lfs.sha256)
    data = path.read_bytes() if path is not None else content or b""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == str(entry.blob_id)


def _batches(files: list[DataFile]) -> list[list[DataFile]]:
    batches: list[list[DataFile]] = []
    size = 0
    for file in files:
        if not batches or len(batches[-1]) == BATCH_FILES or size + file.nbytes > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(file)
        size += file.nbytes
    return batches


def _check_folder_sizes(plan: PushPlan) -> None:
    counts: dict[str, int] = {}
    for file in plan.data:
        folder = file.key.partition("/")[0]
        counts[folder] = counts.get(folder, 0) + 1
    for folder, count in counts.items():
        if count >= FOLDER_LIMIT:
            raise InputError(
                f"{folder} has {count} files, and the hub takes at most {FOLDER_LIMIT} in a folder: record with a "
                "larger block_size, or push to a bucket (s3://...)"
            )
