"""The exceptions that stratalens raises on purpose; `stratalens.errors` is their public home.

Every message names the problem, the place, the valid values and the call that fixes it.
The command line ends with exit code 2 for an `InputError` and with 1 for every other `StratalensError`.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MESSAGE_LIMIT = 4000  # characters of one message


VALUE_LIMIT = 200  # characters of one quoted value


# Controls (C0 without tab and newline, DEL, C1) and marks that change the direction of text.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Escape characters that a terminal would obey: escape sequences, C1 controls and lone surrogates.

    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return _UNPRINTABLE.sub(lambda match: ascii(match.group())[1:-1], text)


def quote(value: Any, limit: int = VALUE_LIMIT) -> str:
    """Quote a value of a user for a message, and cut a long one.

    >>> quote("a" * 1000, 20), quote([1, 2, 3])
    ("'aaaaaaa...aaaaaaa'", '[1, 2, 3]')
    """
    short = reprlib.Repr()
    short.maxlevel = 2  # ten entries a level: deeper ones would make millions
    short.maxstring = short.maxother = short.maxlong = limit
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = short.maxarray = 10
    try:
        text = short.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"a {type(value).__name__} that cannot be shown"
    if len(text) > max(limit, 3):
        half = max(1, (limit - 3) // 2)
        text = f"{text[:half]}...{text[-half:]}"
    return text


def cut(message: str, limit: int = MESSAGE_LIMIT) -> str:
    """Cut the middle out of a message that is too long, because its start and its remedy at the end matter.

    >>> cut("abcdefghij", 6), cut("abc", 6)
    ('abcd (4 characters left out) ij', 'abc')
    """
    if len(message) <= limit:
        return message
    head = limit * 2 // 3
    tail = limit - head
    return f"{message[:head]} ({len(message) - limit} characters left out) {message[-tail:]}"


class StratalensError(Exception):
    """Base class of all exceptions that stratalens raises on purpose; exit code 1.

    Catch it to handle every expected failure. Any other exception is a bug: please report it. Messages contain no
    control characters, and long ones are cut. A notebook shows the frames of the caller alone;
    `traceback.print_exception(error)` shows all.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(cut(arg)) if isinstance(arg, str) else arg for arg in args))

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows: the frames of the caller down to the first of this package."""
        package = Path(__file__).parents[1]
        frames = []
        for frame in traceback.extract_tb(self.__traceback__):
            if Path(frame.filename).is_relative_to(package):
                break
            if "IPython" not in Path(frame.filename).parts:
                frames.append(frame)
        lines = [*traceback.format_list(frames), *traceback.format_exception_only(self)]
        return [line.rstrip("\n") for line in lines]


class InputError(StratalensError, ValueError):
    """A wrong argument, file or option; exit code 2.

    Raised before anything is written. Correct the input as the message says and repeat the call.
    """


class MismatchError(InputError):
    """New data whose provenance differs from that of the store; exit code 2.

    Raised when a capture would mix two models, tokenizers, tables or settings in one store, and when an open
    store was replaced by another one. Use the original settings, or record to another store.
    """


class StoreExistsError(InputError):
    """A path that already holds something else than the requested store; exit code 2.

    Raised when a new store is created. Choose another path, or empty the folder yourself.
    """


class StoreBusyError(StratalensError):
    """A store that another running process writes to; exit code 1.

    Wait until the other process has finished. Ranks of one job open the writer with `shared=True`.
    """


class UnreachableError(StratalensError):
    """A remote machine that did not answer; exit code 1.

    Committed data is safe. Check the network and repeat the call: it resumes.
    """


class DamagedError(StratalensError):
    """Stored bytes that differ from their checksum, or a missing file; exit code 1.

    Run `stratalens verify --repair` on the store, then repeat the capture to record the lost rows again.
    """


class NoSpaceError(InputError):
    """A disk that is too small for the data; exit code 2.

    Committed data is safe. Free some space and repeat the call: it resumes.
    """


class NotRecordedError(StratalensError):
    """Requested rows that were never recorded; exit code 1.

    Missing rows do not read as zero. Record them, or pass `skip_missing=True` to an analysis.
    """


class NonFiniteError(StratalensError):
    """NaN or infinity in an activation, or an overflow in the requested cast; exit code 1.

    Record with a wider dtype, or pass `nonfinite="keep"` to the capture.
    """


class LabelWarning(UserWarning):
    """A label that is probably misspelled, such as one that is almost the name of a stage.

    Correct the label in the table. If it is meant, filter the warning.
    """


class CacheWarning(UserWarning):
    """A cached result that is damaged, so that it is computed again.

    Nothing has to be done. If it happens often, check the disk.
    """


class CheckWarning(UserWarning):
    """A site that is recorded although it differs from what the model computes.

    `stratalens.check(model)` shows the difference. Choose another site, or another way to load the model.
    """


class TokenWarning(UserWarning):
    """Token ids that are probably not the intended ones, such as two BOS tokens in front of a prompt.

    The message names the rows. Change the prompts or `prepend_bos=`. If the ids are meant, filter the warning.
    """


class RecordingWarning(UserWarning):
    """A step of a training run that `RecordingCallback` did not record, or hooks that a `Recorder` does not see.

    The message names the step and the reason. `RecordingCallback(..., on_error="raise")` raises the error instead.
    """


def suggest(name: str, valid: Iterable[str], limit: int = 8) -> str:
    """Name the valid values that are closest to `name`, as part of a message.

    >>> suggest("resid_pst", ["resid_pre", "resid_post", "z"])
    "did you mean 'resid_post' or 'resid_pre'? Valid: resid_pre, resid_post, z"
    """
    options = [str(v) for v in valid]
    close = difflib.get_close_matches(name, options, n=3)
    shown = ", ".join(options[:limit]) + (", ..." if len(options) > limit else "")
    listing = f"Valid: {shown}" if options else "There are none"
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}? {listing}"
    return listing


def join_names(names: Iterable[object], limit: int = 8) -> str:
    """Join names for a message and shorten a long list.

    >>> join_names("abc"), join_names(range(12))
    ('a, b, c', '0, 1, 2, 3, 4, 5, 6, 7 and 4 more')
    """
    texts = [str(name) for name in names]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def not_floats_error(site: str, dtype: object) -> InputError:
    """Return the error for a site that was opened with a plain reader, which shows codes instead of values."""
    return InputError(
        f"{site!r} has dtype {dtype}, not a float: plain readers show bfloat16 as its bits, and int8 without "
        "the scales of its rows; open the store with stratalens.open_store(path)"
    )


def no_site_error(site: str, recorded: Iterable[str], where: str = "this store") -> InputError:
    """Return the error for a site that was not recorded.

    >>> str(no_site_error("mlp_out", ["resid_post"]))[:53]
    "site 'mlp_out' is not in this store; Valid: resid_pos"
    """
    sites = tuple(recorded)
    return InputError(
        f"site {site!r} is not in {where}; {suggest(site, sites)}. To add it, run the capture again with "
        f"sites={(*sites, site)!r}; recorded data stays unchanged"
    )
