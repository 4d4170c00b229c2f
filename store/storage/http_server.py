"""A store on an http:// or https:// server, read by ranges.

Such a server lists no folders and takes no writes. The client of fsspec does not repeat requests, so this module does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import quote

from stratalens.store.errors import InputError, StratalensError, UnreachableError
from stratalens.store.storage.base import Kind
from stratalens.store.storage.object_store import RemoteStorage
from stratalens.store.storage.retries import with_retries

_REFUSED = {401: "needs credentials", 403: "refuses access", 407: "needs credentials for its proxy", 410: "is gone"}


class HttpStorage(RemoteStorage):
    """A store on a web server.

    Args:
        url: address of the store. A query, such as the signature of a temporary link, is sent with each request and
            never shown.
    """

    lists_folders = False
    read_only = (
        "a web server takes no files. Record to a folder or an object store, then share it with `stratalens push`"
    )

    def __init__(self, url: str) -> None:
        address, mark, query = url.partition("?")
        self._query = mark + query
        self._ranges_ignored = False
        super().__init__(address)

    def _url(self) -> str:
        return self.root + self._query

    def _at(self, key: str) -> str:
        return f"{self._base}/{quote(key)}{self._query}" if key else self._base + self._query

    def kind(self) -> Kind:
        """Return "nothing": a server does not tell what else it has."""
        return "nothing"

    def _entries(self, folder: str) -> dict[str, dict[str, Any]]:
        raise InputError(
            f"{self.path(folder)} cannot be listed: a web server lists no folders. Reading needs no list; to verify or "
            "copy a store, give its folder, its bucket (s3://...) or its repository (hf://...)"
        )

    def _headers(self) -> dict[str, str]:
        return {**self._fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}

    def _cat(self, key: str, end: int) -> bytes:
        read = self._fs.cat_file
        return cast("bytes", with_retries(lambda: read(self._at(key), start=0, end=end, headers=self._headers())))

    def _cat_ranges(self, key: str, starts: Sequence[int], stops: Sequence[int]) -> Sequence[bytes]:
        asked = list(zip(starts, stops, strict=True))
        options = {"headers": self._headers()}
        address = self._at(key)
        if len(asked) == 1:
            answers = [with_retries(partial(self._fs.cat_file, address, *asked[0], **options))]
        else:
            paths = [address] * len(asked)
            answers = self._fs.cat_ranges(paths, [*starts], [*stops], on_error="return", **options)
            for number, (answer, (start, stop)) in enumerate(zip(answers, asked, strict=True)):
                if isinstance(answer, Exception):  # again, with pauses
                    answers[number] = with_retries(partial(self._fs.cat_file, address, start, stop, **options))
        return [self._range_of(answer, start, stop) for answer, (start, stop) in zip(answers, asked, strict=True)]

    def _range_of(self, answer: bytes, start: int, stop: int) -> bytes:
        """Return the range of an answer, which is the whole object if the server ignores ranges."""
        if len(answer) <= stop - start:
            return answer
        if not self._ranges_ignored:
            self._ranges_ignored = True
            warnings.warn(
                f"the server of {self.root} ignores ranges, so every read moves whole files. Use another server "
                "(nginx, Caddy and object stores answer ranges), or copy the store to your disk",
                UserWarning,
                stacklevel=2,
            )
        return answer[start:stop]

    def _may_be_empty(self, error: Exception) -> bool:
        return getattr(error, "status", None) == 416

    def _info(self, key: str) -> dict[str, Any] | None:
        try:
            return cast("dict[str, Any]", with_retries(lambda: self._fs.info(self._at(key))))
        except FileNotFoundError:  # the client reports every error in this way
            try:
                self._cat(key, 1)
            except FileNotFoundError:
                return None
            except Exception as error:
                if self._may_be_empty(error):
                    return {"size": 0, "type": "file"}
                raise self._failed("reading", key, error) from error
        except Exception as error:
            raise self._failed("reading", key, error) from error
        raise UnreachableError(f"{self.path(key)} does not tell its size; try again, or use another server")

    def _failed(self, action: str, key: str, error: Exception) -> StratalensError:
        if isinstance(error, StratalensError):
            return error
        status = getattr(error, "status", None)
        if status in _REFUSED:
            return InputError(
                f"{self.path(key)} cannot be read: the server {_REFUSED[status]} (HTTP {status}). A temporary link may "
                "be over: get a new one and open the store again. Headers with credentials go into FSSPEC_HTTPS"
            )
        reason = f"HTTP {status}" if status else f"{type(error).__name__} {error}".strip()
        return UnreachableError(
            f"{self.path(key)} cannot be read ({reason}): check the address and the network, and repeat the call. "
            "Chunks in the local cache are not read again"
        )
