"""What goes wrong is said in the page, never only in a log."""

from __future__ import annotations

import sys
import traceback

from stratalens.store.errors import StratalensError


def explain(error: BaseException) -> str:
    """The message for the page; an exception that nobody raised on purpose also leaves its traceback.

    >>> from stratalens.store.errors import InputError
    >>> explain(InputError("no layer 7"))
    'no layer 7'
    """
    if isinstance(error, StratalensError):
        return str(error)
    if isinstance(error, ImportError) and error.name == "datashader":
        return "so many rows are drawn by datashader, which is not installed: pip install 'stratalens[explore]'"
    traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
    return f"this is a defect of stratalens ({type(error).__name__}: {error}); the server's window says where"
