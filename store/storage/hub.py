"""A store in a repository of the Hugging Face Hub, read by ranges.

The first answer names the commit, and all later reads are from this commit. The functions of `huggingface_hub` make the
requests, with its credentials and repetitions. Its file system would list a folder before it reads from it, and read
several megabytes ahead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import unquote

from stratalens.store.errors import InputError, StratalensError, UnreachableError
from stratalens.store.storage.object_store import RemoteStorage
from stratalens.store.storage.retries import ATTEMPTS, FIRST_WAIT, TRANSIENT

T = TypeVar("T")

_URL = re.compile(
    r"hf://(?:(?P<kind>datasets|spaces)/|(?!(?:datasets|spaces)/))(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<folder>.*))?"
)
_KINDS = {"datasets": "dataset", "spaces": "space", None: "model"}
_PARALLEL = 8  # requests for one object


class HubAddress:
    """The parts of a URL hf://[datasets/]USER/NAME[@REVISION][/FOLDER].

    Attributes:
        url: the URL.
        kind: "dataset", "model" or "space".
        repository: USER/NAME.
        revision: branch, tag or commit; None for the default branch.
        folder: folder in the repository, or "".
    """

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url.rstrip("/"))
        if match is None:
            raise InputError(
                f"{url} names no repository: give hf://datasets/USER/NAME, with @REVISION for a branch, tag or commit"
            )
        self.url = url.rstrip("/")
        self.kind = _KINDS[match["kind"]]
        self.repository = match["repository"]
        self.revision = unquote(match["revision"]) if match["revision"] else None
        self.folder = (match["folder"] or "").strip("/")

    def key_in_repository(self, key: str) -> str:
        """Return the path in the repository of a key of the store."""
        return "/".join(part for part in (self.folder, key) if part)


class HubFiles:
    """The reading part of an fsspec file system, for one repository at one commit.

    Args:
        address: the repository.
        commit: commit to read from; None takes the one that the first answer names.
    """

    def __init__(self, address: HubAddress, commit: str | None = None) -> None:
        self.address, self.commit = address, commit

    @property
    def revision(self) -> str | None:
        """The commit if it is known, else the revision of the address."""
        return self.commit or self.address.revision

    def cat_file(self, path: str, start: int = 0, end: int = 0) -> bytes:
        """Return a range of a file; FileNotFoundError if the repository does not have it."""
        from huggingface_hub import hf_hub_url, utils

        address = hf_hub_url(
            self.address.repository, path, repo_type=self.address.kind, revision=self.revision or "main"
        )
        library: Any = utils  # its types do not say what it exports
        headers = {**library.build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        retries: dict[str, Any] = {"max_retries": ATTEMPTS - 1, "base_wait_time": FIRST_WAIT}

        def request() -> Any:
            answer = library.http_backoff(
                "GET", address, headers=headers, timeout=60, retry_on_status_codes=tuple(TRANSIENT), **retries
            )
            library.hf_raise_for_status(answer)
            return answer

        answer = hub_errors(self.address, request)
        if self.commit is None:
            commits = [step.headers.get("X-Repo-Commit") for step in (*answer.history, answer)]
            self.commit = next((commit for commit in commits if commit), None)
        content = bytes(answer.content)
        return content[start:end] if answer.status_code == 200 and len(content) > end - start else content

    def cat_ranges(self, paths: list[str], starts: list[int], ends: list[int], on_error: str = "raise") -> list[bytes]:
        """Return ranges of files, several at the same time."""
        if len(paths) == 1:
            return [self.cat_file(paths[0], starts[0], ends[0])]
        with ThreadPoolExecutor(min(_PARALLEL, len(paths)), thread_name_prefix="stratalens-hub") as pool:
            return list(pool.map(self.cat_file, paths, starts, ends))

    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]:
        """List a folder; FileNotFoundError if the repository does not have it."""
        from huggingface_hub import HfApi

        address = self.address
        entries = hub_errors(
            address,
            lambda: list(
                HfApi().list_repo_tree(
                    address.repository, path or None, revision=self.revision, repo_type=address.kind, recursive=False
                )
            ),
        )
        return [{"name": entry.path, "size": getattr(entry, "size", 0), "type": _type_of(entry)} for entry in entries]

    def info(self, path: str) -> dict[str, Any]:
        """Return size and type of a file; FileNotFoundError if the repository does not have it."""
        from huggingface_hub import HfApi

        address = self.address
        entries = hub_errors(
            address,
            lambda: HfApi().get_paths_info(address.repository, path, revision=self.revision, repo_type=address.kind),
        )
        if not entries:
            raise FileNotFoundError(path)
        return {"name": path, "size": getattr(entries[0], "size", 0), "type": _type_of(entries[0])}


def _type_of(entry: Any) -> str:
    return "file" if hasattr(entry, "blob_id") else "directory"


class HubStorage(RemoteStorage):
    """A store in a repository of the Hugging Face Hub."""

    read_only = "a repository of the hub is not written block by block. Record to a folder, then `stratalens push` it"

    def __init__(self, url: str, commit: str | None = None) -> None:
        self.address = HubAddress(url)
        self._initialise(self.address.url)
        self._fs = HubFiles(self.address, commit)
        self._base = self.address.folder

    def __reduce__(self) -> Any:
        return _restore_hub, (self.root, self._fs.commit, self.version)

    def _at(self, key: str) -> str:
        return self.address.key_in_repository(key)

    def is_pinned(self, key: str) -> bool:
        """Return whether all reads are from one commit, which cannot change."""
        return self._fs.commit is not None

    def stamp(self, key: str) -> object:
        """Return the commit that is read."""
        return self._fs.commit

    def _may_be_empty(self, error: Exception) -> bool:
        return getattr(getattr(error, "response", None), "status_code", None) == 416


def _restore_hub(url: str, commit: str | None, version: str) -> HubStorage:
    """Return an unpickled storage, which reads from the same commit."""
    storage = HubStorage(url, commit)
    if version:
        storage.use_cache(version)
    return storage


def hub_errors(address: HubAddress, request: Callable[[], T]) -> T:
    """Call a function of the hub's client, and turn its errors into ours.

    Args:
        address: the repository, for messages.
        request: function without arguments.

    Raises:
        FileNotFoundError: the repository does not have the file.
        InputError: the repository or revision does not exist, or access is refused.
        UnreachableError: the hub does not answer, or with an error.
        StratalensError: the hub does not take what is sent.
    """
    from huggingface_hub import errors

    name, revision = address.repository, address.revision or "main"
    try:
        return request()
    except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError) as error:
        raise FileNotFoundError(str(error)) from error
    except errors.GatedRepoError as error:
        raise InputError(
            f"{address.url} cannot be read: access to {name} needs the consent of its owners. Ask for access on its "
            "page, then `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{address.url} cannot be read: {name} has no revision {revision!r}. Give a branch, a tag or a commit that "
            "its page lists"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"{address.url} cannot be read: there is no {address.kind} repository {name} that you can see. Check its "
            "name; for a private one, `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise InputError(
            f"{address.url} cannot be read: HF_HUB_OFFLINE is set. Unset it, or give the folder of a copy of the store"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 416:
            raise
        if status in (401, 403):
            raise InputError(
                f"{address.url}: the hub refuses access to {name} (HTTP {status}). `hf auth login` with a token that "
                "has the right, or set HF_TOKEN"
            ) from error
        raise _unreachable(address, error, status) from error
    except (StratalensError, FileNotFoundError):
        raise
    except ValueError as error:  # as for files that the hub does not take
        raise StratalensError(f"the hub refuses the files for {address.url}: {_first_line(error)}") from error
    except Exception as error:  # the errors of its HTTP library, which has changed between versions
        raise _unreachable(address, error) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreachable(address: HubAddress, error: Exception, status: int | None = None) -> UnreachableError:
    answer = f"answers HTTP {status}" if status else "does not answer"
    return UnreachableError(
        f"the hub {answer} for {address.url} ({_first_line(error)}): check the network and "
        "https://status.huggingface.co, and repeat the call. Chunks in the local cache and files that were pushed are "
        "not sent again"
    )


def is_hub_repository(url: str) -> bool:
    """Return whether a URL names a repository of the hub; buckets of the hub are left to its file system.

    >>> is_hub_repository("hf://datasets/user/run"), is_hub_repository("hf://buckets/user/run/run.zarr")
    (True, False)
    """
    return url.startswith("hf://") and not url.startswith("hf://buckets/")
