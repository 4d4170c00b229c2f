"""A hub on this machine: HTTP on 127.0.0.1 with as much of the Hugging Face hub's interface as loading a model needs.

It serves folders as revisions: {"owner/model": {"step1000": folder}}; main is the last of them. Answers
carry the commit and ETag headers that huggingface_hub asks for, so its own
client, cache and error messages are at work, not stand-ins for them.
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
    """A commit hash, as every revision has one."""
    return hashlib.sha1(f"{model}@{revision}".encode()).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models: ClassVar[Revisions]
    asked: ClassVar[list[str]]
    dead: ClassVar[str | None]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
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
        held = self.models.get(model, {})
        for name, folder in held.items():
            if revision in (name, commit_of(model, name)):
                return name, folder
        return list(held.items())[-1] if held and revision == "main" else None

    def _missing(self, model: str, body: bool) -> None:
        code = "RevisionNotFound" if model in self.models else "RepoNotFound"
        self._send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code}, body)

    def _api(self, parts: list[str], body: bool) -> None:
        model, rest = "/".join(parts[:2]), parts[2:]
        revision = rest[1] if len(rest) > 1 and rest[0] in ("revision", "tree") else "main"
        held = self._find(model, revision)
        if held is None:
            self._missing(model, body)
            return
        files = sorted(p for p in held[1].rglob("*") if p.is_file())
        if rest[:1] == ["tree"]:
            under = "/".join(rest[2:])
            entries = [
                {"type": "file", "path": str(p.relative_to(held[1])), "size": p.stat().st_size, "oid": "0" * 40}
                for p in files
                if str(p.relative_to(held[1])).startswith(under)
            ]
            if under and not entries:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
                return
            self._send(200, json.dumps(entries).encode(), {}, body)
            return
        told = {
            "id": model,
            "sha": commit_of(model, held[0]),
            "siblings": [{"rfilename": str(p.relative_to(held[1]))} for p in files],
            "tags": [],
        }
        self._send(200, json.dumps(told).encode(), {}, body)

    def _file(self, model: str, revision: str, name: str, body: bool) -> None:
        held = self._find(model, revision)
        if held is None:
            self._missing(model, body)
            return
        commit = {"X-Repo-Commit": commit_of(model, held[0])}
        file = held[1] / name
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
    """Serve the models; gives the address for HF_ENDPOINT and the list of what was asked so far.

    Requests with `dead` in their path get no answer: the line is cut.
    """
    asked: list[str] = []
    handler = type("Hub", (_Hub,), {"models": models, "asked": asked, "dead": dead})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
