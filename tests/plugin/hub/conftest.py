"""A hub on this machine, reached in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from huggingface_hub import constants

from stratalens.plugin.hub.client import Hub
from support.hub import hub as serve


@dataclass
class Served:
    """A hub that is being served.

    Attributes:
        hub: how to reach it; waits are noted and not waited for.
        requests: all requests so far; those for a part of a file end in the range.
        waits: seconds of the waits between attempts.
    """

    hub: Hub
    requests: list[str]
    waits: list[float] = field(default_factory=list)

    def weights_read(self) -> list[str]:
        """Return the requests that read a weight file."""
        reads = [request for request in self.requests if request.startswith("GET") and "index.json" not in request]
        return [request for request in reads if ".safetensors" in request or ".bin" in request]

    def whole_files(self) -> list[str]:
        """Return the requests for a whole weight file."""
        return [r for r in self.weights_read() if "bytes=" not in r]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """A function that serves models until the test ends."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub waits, too
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with ExitStack() as stack:

        def start(models: Any, attempts: int = 6, **options: Any) -> Served:
            address, requests = stack.enter_context(serve(models, **options))
            waits: list[float] = []
            return Served(Hub(endpoint=address, token=False, attempts=attempts, wait=waits.append), requests, waits)

        yield start
