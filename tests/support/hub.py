"""A local HTTP server with the part of the Hugging Face hub's interface that loading a model needs.

It serves folders as revisions: {"owner/model": {"step1000": folder}}. The last revision is also main. Responses have
the commit and ETag headers that huggingface_hub expects, so that tests run its real client, cache and error messages.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

Revisions = Mapping[str, Mapping[str, Path]]


def commit_of(model: str, revision: str) -> str:
    """Return a commit hash for a revision."""
    return hashlib.sha1(f"{model}@{revision}".encode()).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models: ClassVar[Revisions]
    requests: ClassVar[list[str]]
    dead: ClassVar[str | None]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing to standard error."""

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        if self.dead is not None and self.dead in path:
            self.close_connection = True  # without an answer
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
            if revision in (name, commit_of(model, name)):
                return name, folder
        return list(revisions.items())[-1] if revisions and revision == "main" else None

    def _missing(self, model: str, body: bool) -> None:
        code = "RevisionNotFound" if model in self.models else "RepoNotFound"
        self._send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code}, body)

    def _api(self, parts: list[str], body: bool) -> None:
        model, rest = "/".join(parts[:2]), parts[2:]
        revision = rest[1] if len(rest) > 1 and rest[0] in ("revision", "tree") else "main"
        match = self._find(model, revision)
        if match is None:
            self._missing(model, body)
            return
        name, folder = match
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        if rest[:1] == ["tree"]:
            under = "/".join(rest[2:])
            entries = [
                {"type": "file", "path": str(p.relative_to(folder)), "size": p.stat().st_size, "oid": "0" * 40}
                for p in files
                if str(p.relative_to(folder)).startswith(under)
            ]
            if under and not entries:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
                return
            self._send(200, json.dumps(entries).encode(), {}, body)
            return
        info = {
            "id": model,
            "sha": commit_of(model, name),
            "siblings": [{"rfilename": str(p.relative_to(folder))} for p in files],
            "tags": [],
        }
        self._send(200, json.dumps(info).encode(), {}, body)

    def _file(self, model: str, revision: str, name: str, body: bool) -> None:
        match = self._find(model, revision)
        if match is None:
            self._missing(model, body)
            return
        revision_name, folder = match
        commit = {"X-Repo-Commit": commit_of(model, revision_name)}
        file = folder / name
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **commit}, body)
            return
        data = file.read_bytes()
        tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes", **commit}
        self._send(200, data, tag, body)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json" if data[:1] in (b"{", b"[") else "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def hub(models: Revisions, dead: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve models; yield the address for HF_ENDPOINT and the growing list of requests.

    The server closes the connection without a response if the path of a request contains `dead`.
    """
    requests: list[str] = []
    handler = type("Hub", (_Hub,), {"models": models, "requests": requests, "dead": dead})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
