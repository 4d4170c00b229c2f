"""Shared stores of the tests that read from a URL, and a stand-in for the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stratalens.store.storage import retries
from support.hub_datasets import Hub, dataset_hub
from support.shared_stores import make_shared_stores


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat requests at once."""
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.0)
    monkeypatch.setattr("stratalens.store.storage.hub.FIRST_WAIT", 0.0)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stores of `make_shared_stores`; tests only read it."""
    root = tmp_path_factory.mktemp("shared")
    make_shared_stores(root)
    return root


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local server that plays the hub for dataset repositories."""
    from huggingface_hub import constants

    with dataset_hub() as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.address)
        template = state.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
        yield state
