"""Settings of the whole suite."""

from pathlib import Path

import pytest
from hypothesis import settings

# A deadline is a timed assertion: on a busy machine it fails for no fault of the code.
settings.register_profile("stratalens", deadline=None)
settings.load_profile("stratalens")

# The longest files, begun first: a file stays in one process, and one that began last would have the machine to itself
# while the other cores have nothing left. Most have few tests, so xdist's own order (most tests first) put them last.
LONGEST = (
    "recency/test_architectures.py",
    "cli/test_every_command.py",
    "recency/test_seeds.py",
    "recency/test_beyond.py",
    "plugin/test_killed_capture.py",
    "store/test_remote.py",
    "docs/test_pages.py",
    "store/test_crash.py",
    "explorer/test_browser.py",
    "cli/test_commands.py",
    "recency/test_study.py",
    "recency/test_smollm.py",
    "recency/test_hub.py",
    "store/test_power_loss.py",
    "store/test_zarrita.py",
    "analyses_core/test_killed_worker.py",
    "notebook/test_kernel.py",
)
PLACES = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
assert all(path.is_file() for path in PLACES), "a file that is named above has moved"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, longest of all in front; the others as they were."""
    items.sort(key=lambda item: PLACES.get(item.path, len(PLACES)))
