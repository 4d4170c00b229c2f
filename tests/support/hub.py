"""A local HTTP server with the part of the Hugging Face hub's interface that checkpoint suites need.

It serves folders as revisions: {"owner/model": {"step1000": folder}}. The last revision is also main, unless there is a
revision "main". Responses have the commit, ETag, LFS and range headers that huggingface_hub expects, so that tests run
its real client, cache and error messages.
"""

import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

Revisions = Mapping[str, Mapping[str, Path]]

# What goes wrong with a request: a status code; no answer; half of the body; a whole file with another last byte.
Trouble = int | Literal["drop", "cut", "wrong"] | None
Troubles = Callable[[str, str, int], Trouble]  # of a method, a path and the number of earlier requests like this one

_LARGE = (".safetensors", ".bin")  # in LFS


def commit_of(model: str, revision: str, folder: Path) -> str:
    """Return a commit hash for a revision; the same revision from another folder has another one."""
    return hashlib.sha1(f"{model}@{revision}@{folder}".encode()).hexdigest()


@lru_cache(maxsize=1024)
def _hashes(path: Path, size: int, changed: int) -> tuple[str, str]:
    """Return the sha256 of a file, and git's hash of it as a blob."""
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(f"blob {size}\0".encode() + data).hexdigest()


def hashes(path: Path) -> tuple[str, str]:
    """Return the sha256 of a file, and git's hash of it as a blob."""
    status = path.stat()
    return _hashes(path, status.st_size, status.st_mtime_ns)


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models: ClassVar[Revisions]
    requests: ClassVar[list[str]]
    dead: ClassVar[str | None]
    gated: ClassVar[Collection[str]]
    troubles: ClassVar[list[Troubles]]
    seen: ClassVar[Counter[str]]
    gate: ClassVar[threading.Lock]
    trouble: Trouble = None

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing to standard error."""

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.gate:
            request = f"{self.command} {path}"
            self.requests.append(f"{request} {self.headers['Range']}" if "Range" in self.headers else request)
            self.trouble = self.troubles[0](self.command, path, self.seen[request]) if self.troubles else None
            self.seen[request] += 1
        if self.trouble == "drop" or (self.dead is not None and self.dead in path):
            self.close_connection = True  # without an answer
            return
        if isinstance(self.trouble, int):
            self._send(self.trouble, b"{}", {}, body)
            return
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api(parts[2:], body)
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _find(self, model: str, revision: str) -> tuple[str, Path] | None:
        revisions = self.models.get(model, {})
        for name, folder in revisions.items():
            if revision in (name, commit_of(model, name, folder)):
                return name, folder
        return list(revisions.items())[-1] if revisions and revision == "main" else None

    def _missing(self, model: str, body: bool) -> None:
        code = "RevisionNotFound" if model in self.models else "RepoNotFound"
        self._send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code}, body)

    def _api(self, parts: list[str], body: bool) -> None:
        model, rest = "/".join(parts[:2]), parts[2:]
        if rest == ["refs"] and model in self.models:
            self._send(200, json.dumps(self._refs(model)).encode(), {}, body)
            return
        revision = rest[1] if len(rest) > 1 and rest[0] in ("revision", "tree") else "main"
        match = self._find(model, revision)
        if match is None:
            self._missing(model, body)
            return
        name, folder = match
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        if rest[:1] == ["tree"]:
            under = "/".join(rest[2:])
            entries = [self._entry(p, folder) for p in files if str(p.relative_to(folder)).startswith(under)]
            if under and not entries:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
                return
            self._send(200, json.dumps(entries).encode(), {}, body)
            return
        info = {
            "id": model,
            "sha": commit_of(model, name, folder),
            "siblings": [{"rfilename": str(p.relative_to(folder))} for p in files],
            "tags": [],
        }
        self._send(200, json.dumps(info).encode(), {}, body)

    def _refs(self, model: str) -> dict[str, Any]:
        revisions = dict(self.models[model])
        if "main" not in revisions and revisions:
            name, folder = list(revisions.items())[-1]
            commits = {"main": commit_of(model, name, folder)}
        else:
            commits = {}
        commits |= {name: commit_of(model, name, folder) for name, folder in revisions.items()}
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in commits.items()]
        return {"branches": branches, "tags": [], "converts": []}

    def _entry(self, path: Path, folder: Path) -> dict[str, Any]:
        sha256, blob = hashes(path)
        size = path.stat().st_size
        entry: dict[str, Any] = {"type": "file", "path": str(path.relative_to(folder)), "size": size, "oid": blob}
        if path.name.endswith(_LARGE):
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
        return entry

    def _file(self, model: str, revision: str, name: str, body: bool) -> None:
        match = self._find(model, revision)
        if match is None:
            self._missing(model, body)
            return
        if model in self.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
            return
        revision_name, folder = match
        commit = {"X-Repo-Commit": commit_of(model, revision_name, folder)}
        file = folder / name
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **commit}, body)
            return
        data = file.read_bytes()
        sha256, blob = hashes(file)
        etag = sha256 if name.endswith(_LARGE) else blob
        tag = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **commit}
        status = 200
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            tag["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[start:stop], 206
        self._send(status, data, tag, body)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json" if data[:1] in (b"{", b"[") else "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        if self.trouble == "cut":
            data, self.close_connection = data[: len(data) // 2], True
        elif self.trouble == "wrong" and "Range" not in self.headers:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.wfile.write(data)


def endpoint_constants(address: str) -> dict[str, str]:
    """Return the values of `huggingface_hub.constants` that make an address the default one of a running process."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    return {"ENDPOINT": address, "HUGGINGFACE_CO_URL_TEMPLATE": template}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing about clients that were killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def hub(
    models: Revisions,
    dead: str | None = None,
    *,
    gated: Collection[str] = (),
    trouble: Troubles | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Serve models; yield the address for HF_ENDPOINT and the growing list of requests.

    Args:
        models: folder of every revision of every model.
        dead: the server closes the connection without a response if the path of a request contains this.
        gated: models whose files only users with accepted terms get.
        trouble: what goes wrong with a request.
    """
    requests: list[str] = []
    members = {
        "models": models,
        "requests": requests,
        "dead": dead,
        "gated": gated,
        "troubles": [trouble] if trouble is not None else [],
        "seen": Counter(),
        "gate": threading.Lock(),
    }
    handler = type("Hub", (_Hub,), members)
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
