"""Errors of huggingface_hub: did the hub refuse, or did it not answer?"""

from __future__ import annotations

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

# The root of all errors of the HTTP library that huggingface_hub uses. That library differs between its versions
# (requests, httpx, ...), but the hub's own HTTP error always derives from it.
HTTP_ERROR: type[Exception] = [kind for kind in HfHubHTTPError.__mro__ if kind.__module__ != "builtins"][-1]


def hub_unreachable(error: BaseException | None) -> bool:
    """Decide whether a download failed because of the network; the outermost error that tells decides."""
    while error is not None and not constants.HF_HUB_OFFLINE:
        if isinstance(error, LocalEntryNotFoundError):  # neither the hub nor the cache gave the file
            return True
        if isinstance(error, HfHubHTTPError | OfflineModeIsEnabled):  # the hub answered, or was not asked
            return False
        if isinstance(error, (ConnectionError, TimeoutError, HTTP_ERROR)):
            return True
        error = error.__cause__ or error.__context__
    return False
