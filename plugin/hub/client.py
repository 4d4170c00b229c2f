"""The Hugging Face hub as a sweep needs it: every request is repeated with back-off, and every error has a remedy."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_session, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from stratalens.plugin.stages.hub_errors import HTTP_ERROR
from stratalens.store.errors import InputError, NoSpaceError, StratalensError, UnreachableError

T = TypeVar("T")
S = TypeVar("S")

LONGEST_WAIT = 60.0  # seconds between two attempts, where the hub asks for no longer wait
TIMEOUT = 30.0  # seconds without an answer
_BUSY = (408, 425, 429)  # status codes after which the same request may succeed; so may those from 500 on


@dataclass(frozen=True)
class HubFile:
    """A file of one revision, as the hub lists it.

    Attributes:
        path: path in the repository.
        size: bytes.
        digest: "sha256:..." of a large file (LFS), "git:..." of a small one.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Hub:
    """How to reach the Hugging Face hub.

    Attributes:
        endpoint: address of the hub; None for that of huggingface_hub (HF_ENDPOINT).
        token: access token, False for none; None for that of `hf auth login` or HF_TOKEN.
        attempts: attempts before a hub that does not answer counts as unreachable. The waits between them double, from
            one second up to a minute, and are longer where the hub asks for it.
        workers: requests at the same time.
        wait: function that waits for a number of seconds.

    Example:
        >>> Hub(attempts=12, workers=2)
        Hub(endpoint=None, token=None, attempts=12, workers=2)
    """

    endpoint: str | None = None
    token: str | bool | None = None
    attempts: int = 6
    workers: int = 8
    wait: Callable[[float], None] = time.sleep

    def __repr__(self) -> str:
        shown = None if self.token is None else "***" if isinstance(self.token, str) else self.token
        return f"Hub(endpoint={self.endpoint!r}, token={shown!r}, attempts={self.attempts}, workers={self.workers})"

    @property
    def address(self) -> str:
        """Address of the hub."""
        return (self.endpoint or constants.ENDPOINT).rstrip("/")

    def refs(self, repository: str) -> dict[str, str]:
        """Return the commit of every branch and tag of a model repository."""
        api = self._api()
        refs = self.request(repository, lambda: api.list_repo_refs(repository))
        return {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}

    def files(self, repository: str, commit: str) -> dict[str, HubFile]:
        """Return the files at the top of a revision, by path, with sizes and hashes."""
        api = self._api()

        def listed() -> list[Any]:
            return [f for f in api.list_repo_tree(repository, revision=commit) if isinstance(f, RepoFile)]

        files = self.request(f"{repository} at {commit}", listed)
        return {
            f.path: HubFile(
                f.path,
                f.lfs.size if f.lfs is not None else f.size,
                f"sha256:{f.lfs.sha256}" if f.lfs is not None else f"git:{f.blob_id}",
            )
            for f in files
        }

    def read(self, repository: str, commit: str, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read a file, or the bytes from `start` to before `stop` of it, without a copy on the disk."""
        url = hf_hub_url(repository, path, revision=commit, endpoint=self.address)
        headers = build_hf_headers(token=self.token)
        if stop is not None:
            headers["range"] = f"bytes={start}-{stop - 1}"

        def body() -> bytes:
            response = get_session().get(url, headers=headers, timeout=TIMEOUT)
            hf_raise_for_status(response)
            content = bytes(response.content)
            # A server without ranges answers with the whole file.
            return content[start:stop] if response.status_code == 200 else content

        return self.request(f"{path} of {repository} at {commit}", body)

    def read_json(self, repository: str, commit: str, path: str) -> dict[str, Any]:
        """Read a JSON object; an empty one where the file is none, or the hub lists it and does not have it."""
        try:
            document = json.loads(self.read(repository, commit, path))
        except EntryNotFoundError:
            return {}
        except ValueError as error:
            if isinstance(error, StratalensError):
                raise
            return {}
        return document if isinstance(document, dict) else {}

    def download(self, repository: str, commit: str, paths: Sequence[str], folder: Path) -> None:
        """Download files of a revision to a folder; a partial file is resumed.

        Raises:
            NoSpaceError: the disk is full.
            UnreachableError: the hub did not answer.
        """

        def snapshot() -> None:
            snapshot_download(
                repository,
                revision=commit,
                local_dir=folder,
                allow_patterns=list(paths),
                endpoint=self.address,
                token=self.token,
                max_workers=self.workers,
            )

        self.request(f"{repository} at {commit}", snapshot)

    def parallel(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Call a function that makes requests for every item, several at the same time; the order is that of items."""
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(function, items)

    def request(self, subject: str, function: Callable[[], T]) -> T:
        """Call a function that makes requests, again and again until the hub answers.

        Args:
            subject: what is requested, for messages.
            function: the request.

        Raises:
            InputError: the hub refused the request.
            UnreachableError: the hub did not answer at any attempt.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return function()
            except StratalensError:
                raise
            except (OSError, ValueError, HTTP_ERROR) as error:
                if (refusal := self._refusal(subject, error)) is not None:
                    raise refusal from error
                if not is_transient(error):
                    raise
                if attempt == self.attempts:
                    raise UnreachableError(
                        f"the hub ({self.address}) did not answer for {subject} after {attempt} attempts: "
                        f"{_reason(error)} Everything recorded so far is safe. Check the network, and repeat the same "
                        "call to resume."
                    ) from error
                self.wait(max(min(2.0 ** (attempt - 1), LONGEST_WAIT), requested_wait(error)))
        raise InputError(f"Hub(attempts={self.attempts}) makes no request. Pass attempts=1 or more.")

    def _api(self) -> HfApi:
        return HfApi(endpoint=self.address, token=self.token)

    def _refusal(self, subject: str, error: BaseException) -> StratalensError | None:
        """Return the error for a request that no repetition makes right; None for all others."""
        for one in chain(error):
            if isinstance(one, OfflineModeIsEnabled):
                return InputError(
                    f"{subject} cannot be read: HF_HUB_OFFLINE is set, so huggingface_hub makes no request. Unset "
                    "HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, and start Python again."
                )
            if isinstance(one, LocalTokenNotFoundError):
                return InputError(f"{subject}: token=True, but no token is saved. Log in with `hf auth login`.")
            if isinstance(one, HFValidationError):
                return InputError(f"{subject} is no name of a repository. Pass one such as 'EleutherAI/pythia-70m'.")
            if isinstance(one, GatedRepoError):
                return InputError(
                    f"{subject} is gated: the hub gives its files only to users who have accepted its terms. Accept "
                    "them on its page on the hub, log in with `hf auth login` (or set HF_TOKEN), and repeat the call."
                )
            if isinstance(one, RepositoryNotFoundError):
                return InputError(
                    f"there is no model repository {subject} on the hub ({self.address}), or it is private. Check the "
                    "name. For a private repository, log in with `hf auth login` or set HF_TOKEN."
                )
            if isinstance(one, RevisionNotFoundError):
                return InputError(f"the hub has no such revision: {subject}. Pass one that the model's page lists.")
            if (
                isinstance(one, HfHubHTTPError)
                and not isinstance(one, EntryNotFoundError)
                and status(one) in (401, 403)
            ):
                return InputError(
                    f"the hub refused access to {subject} (status {status(one)}). Log in with `hf auth login`, or set "
                    "HF_TOKEN to a token that may read it."
                )
            if isinstance(one, OSError) and one.errno == errno.ENOSPC:
                return NoSpaceError(
                    f"no space left on the disk for {subject}. Everything recorded so far is safe. Free some space, or "
                    "pass scratch= with a folder on a larger disk, and repeat the call to resume."
                )
        return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status(error: HfHubHTTPError) -> int:
    """Return the status code of the answer that an error is about; 0 where there was none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def is_transient(error: BaseException) -> bool:
    """Decide whether the same request may succeed later; the outermost error that tells decides."""
    for one in chain(error):
        if isinstance(one, LocalEntryNotFoundError):  # says nothing about its reason
            continue
        if isinstance(one, HfHubHTTPError) and (code := status(one)):
            return code in _BUSY or code >= 500
        if isinstance(one, ConnectionError | TimeoutError | HTTP_ERROR | json.JSONDecodeError):
            return True
        if isinstance(one, OSError) and one.errno is None:  # a file of another size than the hub says
            return True
    return isinstance(error, LocalEntryNotFoundError)


def requested_wait(error: BaseException) -> float:
    """Return the seconds that the hub asks to wait (`Retry-After`); 0 where it does not."""
    for one in chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None) or {}
        text = str(headers.get("retry-after", "")).strip()
        if text.isdecimal():
            return float(text)
    return 0.0


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text[:300]}{'...' if len(text) > 300 else '' if text.endswith('.') else '.'}"
