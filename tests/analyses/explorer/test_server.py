"""The port of the server."""

from __future__ import annotations

import pytest

from stratalens.analyses.explorer.server import free_port
from stratalens.store.errors import InputError


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
