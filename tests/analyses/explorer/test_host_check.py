"""The explorer answers only requests for this machine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from stratalens.analyses.explorer.host_check import is_own_host, refuse_other_hosts


class Page(RequestHandler):
    def get(self) -> None:
        self.write("rows with labels")


class Socket(WebSocketHandler):
    def open(self, *arguments: Any) -> None:
        self.write_message("rows with labels")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    started, numbers, loops = threading.Event(), [], []

    def serve() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        application = Application([("/", Page), ("/ws", Socket)])
        refuse_other_hosts(SimpleNamespace(_tornado=application))
        (socket,) = bind_sockets(0, "127.0.0.1")
        server = HTTPServer(application)
        server.add_socket(socket)
        numbers.append(socket.getsockname()[1])
        loops.append(IOLoop.current())
        started.set()
        loops[0].start()
        server.stop()

    thread = threading.Thread(target=serve)
    thread.start()
    assert started.wait(30)
    yield numbers[0]
    loops[0].add_callback(loops[0].stop)
    thread.join()


def answer(port: int, path: str, host: str, **headers: str) -> bytes:
    import socket

    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return connection.recv(40)


OWN = ["127.0.0.1:5006", "localhost:5006", "LOCALHOST:9999", "localhost", "127.0.0.1"]
OTHER = [
    *("evil.example:5006", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:5006", "127.0.0.2"),
    *("localhost:5006@evil.example", "evil.example#localhost", "[::1]:5006", "0.0.0.0:5006", "localhost:port"),
]


@pytest.mark.parametrize("host", OWN)
def test_this_machine_is_served_at_any_port(port: int, host: str) -> None:
    assert is_own_host(host)
    assert b"200 OK" in answer(port, "/", host)


@pytest.mark.parametrize("host", OTHER)
def test_other_names_are_refused(port: int, host: str) -> None:
    assert not is_own_host(host)
    assert b" 40" in answer(port, "/", host)  # 403, or 400 where tornado refuses the header itself


@pytest.mark.parametrize("host", ["evil.example:5006", "localhost:5006"])
def test_a_websocket_needs_the_same_host(port: int, host: str) -> None:
    headers = {
        "Origin": f"http://{host}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
        "Sec_WebSocket_Version": "13",
    }
    status = answer(port, "/ws", host, **headers)
    assert (b"101 Switching" in status) == is_own_host(host)
    assert (b"403" in status) != is_own_host(host)
