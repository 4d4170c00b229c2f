"""The exceptions that stratalens raises on purpose; `stratalens.errors` is their public home.

Every message names the problem, the place, the valid values and the call that fixes it.
The command line ends with exit code 2 for an `InputError` and with 1 for every other `StratalensError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StratalensError(Exception):
    """Base class of all exceptions that stratalens raises on purpose; exit code 1.

    Catch it to handle every expected failure. Any other exception is a bug: please report it.
    """


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


class CheckWarning(UserWarning):
    """A site that is recorded although it differs from what the model computes.

    `stratalens.check(model)` shows the difference. Choose another site, or another way to load the model.
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
