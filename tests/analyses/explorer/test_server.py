"""The port of the server, and the requests that it answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from stratalens.analyses.explorer.server import free_port
from stratalens.store.errors import InputError
from support.stores import make_store


def test_ports() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"is in use by another program\. Pass another with --port"):
            free_port(taken.getsockname()[1])
    assert free_port(0) > 0
    with pytest.raises(InputError, match="port 70000 does not exist"):
        free_port(70000)


def test_the_explorer_itself_checks_the_host(tmp_path: Path) -> None:
    """The page of a real server is refused to another site that points its name at this machine."""
    from tornado.httpclient import AsyncHTTPClient, HTTPClientError

    from stratalens.analyses.explorer.server import explore
    from stratalens.store.reading.open import open_store

    server = explore(open_store(make_store(tmp_path / "run.zarr")), port=0, block=False)
    try:
        url = f"http://127.0.0.1:{server.port}/favicon.ico"

        async def status(host: str) -> int:
            try:
                return (await AsyncHTTPClient().fetch(url, headers={"Host": host})).code
            except HTTPClientError as error:
                return error.code

        server.start()
        assert server.io_loop.run_sync(lambda: status(f"evil.example:{server.port}")) == 403
        assert server.io_loop.run_sync(lambda: status(f"localhost:{server.port}")) == 200
    finally:
        server.stop()
