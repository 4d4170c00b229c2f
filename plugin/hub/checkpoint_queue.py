"""Checkpoints on the disk: one that is being recorded, and the next one on its way; never more than two."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stratalens.plugin.hub.client import Hub, HubFile
from stratalens.plugin.hub.weight_files import RevisionFiles
from stratalens.store.errors import NoSpaceError, StoreBusyError, UnreachableError
from stratalens.store.storage.local_locks import FileLock

SPARE = 64 * 2**20  # bytes that stay free on the disk
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Download:
    """The files of one checkpoint.

    Attributes:
        stage: name of its stage.
        files: what the hub lists for its revision.
        main: the files of `main`, for the tokenizer of a revision that has none; None where there is no `main`.
    """

    stage: str
    files: RevisionFiles
    main: RevisionFiles | None = None

    def sources(self) -> list[tuple[str, dict[str, HubFile]]]:
        """Return the files to download, by path, for each commit."""
        own = {path: self.files.files[path] for path in self.files.to_download()}
        sources = [(self.files.revision.commit, own)]
        if self.main is not None and not self.files.tokenizer_files():
            tokenizer = {path: self.main.files[path] for path in self.main.tokenizer_files()}
            sources.append((self.main.revision.commit, tokenizer))
        return sources

    def nbytes(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size for _, files in self.sources() for file in files.values())

    @property
    def folder(self) -> str:
        """Name of its folder; other weights have another one."""
        return f"{self.stage}-{self.files.revision.commit[:12]}"


class CheckpointQueue(AbstractContextManager["CheckpointQueue"]):
    """Downloads checkpoints in order, one ahead, and deletes each one after its use.

    Folders of a killed sweep are used again. So are files that were started.

    Args:
        hub: the hub.
        repository: name of the repository.
        folder: folder for the checkpoints, which is removed at the end.
        downloads: the checkpoints in the order of their use.
        on_used: called with the stage of a checkpoint before it is deleted.
        say: prints a line.
    """

    def __init__(
        self,
        hub: Hub,
        repository: str,
        folder: Path,
        downloads: Sequence[Download],
        on_used: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self._hub, self._repository, self._folder = hub, repository, folder
        self._downloads = {download.stage: download for download in downloads}
        self._order = [download.stage for download in downloads]
        self._on_used, self._say = on_used, say
        self._jobs: dict[str, _Job] = {}
        self._stop = threading.Event()
        self._current = ""
        self._lock: FileLock | None = None

    def __enter__(self) -> CheckpointQueue:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / "lock")
        if not lock.try_acquire():
            raise StoreBusyError(
                f"{self._folder} is used by {lock.holder()}: another sweep of {self._repository} downloads to it. Wait "
                "until it has finished, or pass another scratch=."
            )
        lock.note()
        self._lock = lock
        wanted = {self._downloads[stage].folder for stage in self._order[:2]}
        for path in self._folder.iterdir():  # what a killed sweep of other revisions has left
            if path.is_dir() and path.name not in wanted:
                shutil.rmtree(path)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Delete the checkpoints at the end of a sweep; after an error they stay for the next call."""
        self._stop.set()
        try:
            if error is None:
                self._finish_current()
            if error is None or not any(path.is_dir() for path in self._folder.iterdir()):
                shutil.rmtree(self._folder)
                with suppress(OSError):  # a folder with other files stays
                    self._folder.parent.rmdir()
        finally:
            if self._lock is not None:
                self._lock.release()

    def take(self, stage: str) -> Path:
        """Delete the checkpoint before, wait until this one is complete, and return its folder.

        Raises:
            NoSpaceError: the disk is too small for it.
            UnreachableError: the hub did not answer.
        """
        self._finish_current()
        job = self._jobs.pop(stage, None)
        if job is None:
            self._check_room(stage)
            job = self._start(stage)
        job.join()
        if job.error is not None:
            raise job.error
        self._current = stage
        return self._path(stage)

    def prefetch(self, reserve: int) -> None:
        """Start to download the checkpoint after the current one, if the disk has room for both.

        Args:
            reserve: bytes that must stay free for the store.
        """
        place = self._order.index(self._current) + 1 if self._current else len(self._order)
        if place >= len(self._order) or self._order[place] in self._jobs:
            return
        stage = self._order[place]
        needed, free = self._needed(stage), self._free()
        if needed + reserve + SPARE > free:
            self._say(
                f"{stage} is downloaded when {self._current} is deleted: the disk has {free / 2**30:.2f} GiB free, and "
                f"both need {(needed + reserve) / 2**30:.2f} GiB"
            )
            return
        self._jobs[stage] = self._start(stage)

    def _start(self, stage: str) -> _Job:
        job = _Job(self._hub, self._repository, self._downloads[stage], self._path(stage), self._stop)
        job.start()
        return job

    def _finish_current(self) -> None:
        if self._current:
            stage, self._current = self._current, ""
            self._on_used(stage)
            shutil.rmtree(self._path(stage))

    def _path(self, stage: str) -> Path:
        return self._folder / self._downloads[stage].folder

    def _needed(self, stage: str) -> int:
        """Return the bytes of a checkpoint that are not on the disk yet."""
        path = self._path(stage)
        there = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
        return max(0, self._downloads[stage].nbytes() - there)

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _check_room(self, stage: str) -> None:
        needed, free = self._needed(stage), self._free()
        if needed + SPARE > free:
            raise NoSpaceError(
                f"the checkpoint of {stage!r} needs {needed / 2**30:.2f} GiB in {self._folder}, and the disk has "
                f"{free / 2**30:.2f} GiB free. Free some space, or pass scratch= with a folder on a larger disk. "
                "Everything recorded so far is safe; repeat the call to resume."
            )


class _Job(threading.Thread):
    """The download of one checkpoint; a daemon, so that Ctrl-C does not wait for gigabytes.

    Attributes:
        error: why it failed, None if it did not.
    """

    def __init__(self, hub: Hub, repository: str, download: Download, folder: Path, stop: threading.Event) -> None:
        super().__init__(name=f"download of {download.stage}", daemon=True)
        self._hub, self._repository, self._download, self._folder = hub, repository, download, folder
        self._cancelled = stop
        self.error: BaseException | None = None

    def run(self) -> None:
        """Download all files, and check them by their hashes."""
        try:
            for commit, files in self._download.sources():
                if not self._cancelled.is_set():
                    download_checked(self._hub, self._repository, commit, files, self._folder)
        except BaseException as error:
            self.error = error


def download_checked(hub: Hub, repository: str, commit: str, files: dict[str, HubFile], folder: Path) -> None:
    """Download files, and download those again whose bytes differ from the hash that the hub lists.

    Raises:
        UnreachableError: the bytes stay wrong.
    """
    for attempt in range(1, hub.attempts + 1):
        hub.download(repository, commit, list(files), folder)
        wrong = [path for path, file in files.items() if not has_digest(folder / path, file.digest)]
        if not wrong:
            return
        for path in wrong:
            (folder / path).unlink(missing_ok=True)
        if attempt < hub.attempts:
            hub.wait(min(2.0 ** (attempt - 1), 60.0))
    raise UnreachableError(
        f"{', '.join(wrong)} of {repository} at {commit}: the bytes do not have the hash that the hub lists, after "
        f"{hub.attempts} attempts. Repeat the call later. Everything recorded so far is safe."
    )


def has_digest(path: Path, digest: str) -> bool:
    """Return whether a file has the hash that the hub lists: sha256 of its bytes, or git's hash of a blob."""
    kind, _, value = digest.partition(":")
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if kind == "sha256":
            return _update(hashlib.sha256(), file) == value
        return _update(hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False), file) == value


def _update(digest: Any, file: BinaryIO) -> str:
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return str(digest.hexdigest())
