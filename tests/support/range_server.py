"""A threaded HTTP server on loopback that serves a folder by ranges, with latency, errors and cut answers.

It lists no folders. `Faults` says which answers fail; the server counts requests and bytes.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit


@dataclass
class Faults:
    """What a server does instead of answering.

    Attributes:
        answer: function from the path and the number of the request for it (from 0) to "", an HTTP status as text,
            "cut" (half of the body), "flip" (one wrong bit), "drop" (no answer) or "page" (an HTML page).
        ranges: whether ranges are answered; else the whole file comes.
        latency: seconds before each answer.
    """

    answer: Callable[[str, int], str] = lambda path, number: ""
    ranges: bool = True
    latency: float = 0.0


@dataclass
class Counts:
    """Requests as (method, path, first byte, bytes of the body), in the order of their answers."""

    requests: list[tuple[str, str, int, int]] = field(default_factory=list)

    def clear(self) -> None:
        self.requests.clear()

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, _, _, nbytes in self.requests)


class _RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: ClassVar[Path]
    faults: ClassVar[Faults]
    counts: ClassVar[Counts]
    seen: ClassVar[dict[str, int]]
    lock: ClassVar[threading.Lock]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing to standard error."""

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        with self.lock:
            number = self.seen.get(path, 0)
            self.seen[path] = number + 1
        fault = self.faults.answer(path, number)
        if self.faults.latency:
            time.sleep(self.faults.latency)
        file = self.folder / path
        if fault == "drop":
            self.close_connection = True
        elif fault == "page":
            self._send(200, b"<!DOCTYPE html><title>Sign in</title>", {}, body, path, 0)
        elif fault.isdigit():
            self._send(int(fault), b"refused", {}, body, path, 0)
        elif not file.is_file():
            self._send(404, b"not here", {}, body, path, 0)
        else:
            self._file(file, path, fault, body)

    def _file(self, file: Path, path: str, fault: str, body: bool) -> None:
        data = file.read_bytes()
        headers = {"ETag": f'"{file.stat().st_mtime_ns}-{len(data)}"', "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, start = 200, 0
        if match and self.faults.ranges:
            start, stop = int(match[1]), int(match[2] or len(data) - 1) + 1
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, body, path, start)
                return
            status, total = 206, len(data)
            data = data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{total}"
        if fault == "flip" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self._send(status, data, headers, body, path, start, cut=fault == "cut")

    def _send(
        self, status: int, data: bytes, headers: dict[str, str], body: bool, path: str, start: int, cut: bool = False
    ) -> None:
        with self.lock:
            self.counts.requests.append((self.command, path, start, len(data) if body else 0))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


@contextmanager
def range_server(folder: Path, faults: Faults | None = None) -> Iterator[tuple[str, Counts]]:
    """Serve a folder; yield its address and the growing counts."""
    counts = Counts()
    fields = {"folder": folder, "faults": faults or Faults(), "counts": counts, "seen": {}, "lock": threading.Lock()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("RangeHandler", (_RangeHandler,), fields))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", counts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
