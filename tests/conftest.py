"""Settings of the whole suite."""

import gc
import os
import shutil
from pathlib import Path

from hypothesis import settings

# A deadline is a timed assertion: on a busy machine it fails for no fault of the code.
settings.register_profile("stratalens", deadline=None)
settings.load_profile("stratalens")

# The tests write thousands of stores: into memory, if the system has a file system there with enough room.
MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# No test writes to the cache of the user; the tests of the cache set their own.
os.environ["STRATALENS_CACHE_SIZE"] = "0"


def pytest_collection_finish() -> None:
    """Exclude imported modules from garbage collection, which would visit their million objects every time."""
    gc.collect()
    gc.freeze()
