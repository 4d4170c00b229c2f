"""A real S3 server on loopback, from moto, and the fsspec settings that reach it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest


@contextmanager
def served() -> Iterator[dict[str, Any]]:
    """Run a server with one bucket, `strata`; yield the fsspec settings for it.

    The test is skipped if moto or s3fs is not installed.
    """
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    serving = pytest.importorskip("werkzeug.serving")
    protocol = serving.WSGIRequestHandler.protocol_version
    serving.WSGIRequestHandler.protocol_version = "HTTP/1.1"  # keeps connections open
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "k", "secret": "s", "endpoint_url": f"http://{host}:{port}"}
    before = fsspec.config.conf.get("s3")
    fsspec.config.conf["s3"] = options
    try:
        fsspec.filesystem("s3").makedirs("strata", exist_ok=True)  # moto keeps buckets until the process ends
        yield options
    finally:
        fsspec.config.conf.pop("s3")
        if before is not None:
            fsspec.config.conf["s3"] = before
        server.stop()
        serving.WSGIRequestHandler.protocol_version = protocol
