"""A folder for the tests of a module."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def module_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own."""
    return tmp_path_factory.mktemp("module")
