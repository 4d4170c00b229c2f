"""A local HTTP server with the part of the Hugging Face hub's interface that dataset repositories need.

It creates repositories, takes commits (small files in the request, large ones by LFS), lists trees, and answers ranges.
Every commit is kept, so that revisions can be read. Large files are redirected to another path, as by the hub's CDN.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 1 << 12  # bytes from which a file is stored by LFS


@dataclass
class Hub:
    """The state of the server.

    Attributes:
        address: address for HF_ENDPOINT.
        repositories: files of every commit of each repository, the oldest first.
        branches: commit of each branch, by repository.
        blobs: content of large files by sha256.
        gated: repositories that refuse to be read.
        requests: (method, path, bytes of the answer) in the order of the answers.
        fail: (part of a path, status, how often) of answers that are errors; status 0 cuts the answer.
    """

    address: str = ""
    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, int]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    fail: list[list[Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, _, nbytes in self.requests)


def commit_of(repository: str, number: int) -> str:
    """Return the hash of a commit."""
    return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: ClassVar[Hub]

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing to standard error."""

    def _route(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunked()
        for entry in self.hub.fail:
            if entry[0] in path and entry[2] > 0:
                entry[2] -= 1
                self._send(entry[1] or 200, b"x" * 100, {}, cut=not entry[1])
                return
        routes = (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda *_: self._json({"errors": [], "warnings": []})),
            (r"/api/datasets/([^/]+/[^/]+)/branch/([^/]+)", self._branch),
            (r"/api/datasets/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            (r"/api/datasets/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
            (r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self._tree),
            (r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", self._paths_info),
            (r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._info),
            (r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/lfs/([0-9a-f]+)", self._lfs),
            (r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        )
        for pattern, handle in routes:
            match = re.fullmatch(pattern, path)
            if match:
                self.query = parse_qs(parts.query)
                handle(body, *[unquote(g) if g is not None else None for g in match.groups()])
                return
        self._error("RepoNotFound")

    def _chunked(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # -- answers ---------------------------------------------------------------------------
    def _send(self, status: int, data: bytes, headers: dict[str, str], cut: bool = False) -> None:
        with self.hub.lock:
            self.hub.requests.append((self.command, urlsplit(self.path).path, len(data)))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, code: str, status: int = 404) -> None:
        self._send(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code})

    def _files(self, repository: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """Return commit and files of a revision; answer with an error without one."""
        commits = self.hub.repositories.get(repository)
        if repository in self.hub.gated:
            self._error("GatedRepo", 403)
            return None
        if commits is None:
            self._error("RepoNotFound")
            return None
        number = self.hub.branches[repository].get(revision or "main")
        hashes = [commit_of(repository, n) for n in range(len(commits))]
        if number is None and revision in hashes:
            number = hashes.index(str(revision))
        if number is None:
            self._error("RevisionNotFound")
            return None
        return hashes[number], commits[number]

    # -- writing ---------------------------------------------------------------------------
    def _create(self, body: bytes) -> None:
        document = json.loads(body)
        name = "/".join(part for part in (document.get("organization") or "me", document["name"]) if part)
        if name in self.hub.repositories:
            self._json({"error": "You already created this repo", "url": f"{self.hub.address}/datasets/{name}"}, 409)
            return
        self.hub.repositories[name] = [{".gitattributes": b"*.bin filter=lfs\n"}]
        self.hub.branches[name] = {"main": 0}
        self._json({"url": f"{self.hub.address}/datasets/{name}", "name": name, "id": name})

    def _branch(self, body: bytes, repository: str, branch: str) -> None:
        branches = self.hub.branches[repository]
        if branch in branches:
            self._error("BranchExists", 409)
            return
        branches[branch] = branches["main"]
        self._json({}, 201)

    def _preupload(self, body: bytes, repository: str, revision: str) -> None:
        if self._files(repository, revision) is None:
            return
        files = json.loads(body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular", "shouldIgnore": False}
            for f in files
        ]
        self._json({"files": modes})

    def _lfs_batch(self, body: bytes, repository: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}", "header": {}}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs(self, body: bytes, oid: str) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == oid
            self.hub.blobs[oid] = body
            self._send(200, b"", {})
            return
        self._range(self.hub.blobs[oid], {})

    def _commit(self, body: bytes, repository: str, branch: str) -> None:
        state = self._files(repository, branch)
        if state is None:
            return
        files = dict(state[1])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        with self.hub.lock:
            self.hub.repositories[repository].append(files)
            number = len(self.hub.repositories[repository]) - 1
            self.hub.branches[repository][branch] = number
        oid = commit_of(repository, number)
        url = f"{self.hub.address}/datasets/{repository}/commit/{oid}"
        self._json({"commitUrl": url, "commitOid": oid, "success": True})

    # -- reading ---------------------------------------------------------------------------
    @staticmethod
    def _entry(path: str, data: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if len(data) >= LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _tree(self, body: bytes, repository: str, revision: str, folder: str | None) -> None:
        state = self._files(repository, revision)
        if state is None:
            return
        prefix = f"{folder}/" if folder else ""
        below = {path: data for path, data in state[1].items() if path.startswith(prefix)}
        if folder and not below:
            self._error("EntryNotFound")
            return
        recursive = self.query.get("recursive", ["False"])[0].lower() == "true"
        entries = [self._entry(p, d) for p, d in below.items() if recursive or "/" not in p[len(prefix) :]]
        folders = {prefix + p[len(prefix) :].partition("/")[0] for p in below if "/" in p[len(prefix) :]}
        entries += [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in sorted(folders)]
        self._json(entries)

    def _paths_info(self, body: bytes, repository: str, revision: str) -> None:
        state = self._files(repository, revision)
        if state is None:
            return
        document = json.loads(body) if body[:1] == b"{" else dict(parse_qs(body.decode()))
        paths = document["paths"] if isinstance(document["paths"], list) else [document["paths"]]
        self._json([self._entry(path, state[1][path]) for path in paths if path in state[1]])

    def _info(self, body: bytes, repository: str, revision: str | None) -> None:
        state = self._files(repository, revision)
        if state is not None:
            self._json({"id": repository, "sha": state[0], "siblings": [], "tags": []})

    def _resolve(self, body: bytes, repository: str, revision: str, path: str) -> None:
        state = self._files(repository, revision)
        if state is None:
            return
        commit = {"X-Repo-Commit": state[0]}
        if path not in state[1]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
            return
        data = state[1][path]
        if len(data) >= LARGE:
            oid = hashlib.sha256(data).hexdigest()
            self.hub.blobs[oid] = data
            self._send(302, b"", {"Location": f"{self.hub.address}/lfs/{oid}", **commit})
            return
        self._range(data, commit)

    def _range(self, data: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match:
            self._send(200, data, headers)
            return
        start, stop = int(match[1]), int(match[2] or len(data) - 1) + 1
        if start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}", **headers})
            return
        part = data[start:stop]
        self._send(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}", **headers})


@contextmanager
def dataset_hub() -> Iterator[Hub]:
    """Run the server; yield its state."""
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": state}))
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
