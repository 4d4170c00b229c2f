"""The errors that stratalens raises on purpose.

Every message says what is wrong, where, which values are valid, and the call
that mends it. The command line maps `InputError` to exit code 2 (the input is
wrong) and every other `StratalensError` to 1 (damaged data or a failed job).
They live here because both other packages may import `stratalens.store`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StratalensError(Exception):
    """Base of all errors raised on purpose by stratalens."""


class InputError(StratalensError, ValueError):
    """What the caller gave is wrong; nothing was written because of it."""


class MismatchError(InputError):
    """Provenance of what is being added differs from what the store holds."""


class StoreExistsError(InputError):
    """The path already holds something that is not the store asked for."""


class StoreBusyError(StratalensError):
    """Another living process holds what this one wants to write."""


class UnreachableError(StratalensError):
    """A machine elsewhere did not answer; what is committed is safe, and the same call goes on from there."""


class DamagedError(StratalensError):
    """Bytes on disk differ from their checksum, or a file is missing."""


class NoSpaceError(InputError):
    """The disk cannot hold what is to be written; what is committed is safe."""


class NotRecordedError(StratalensError):
    """The rows asked for were never recorded (missing is not zero)."""


class NonFiniteError(StratalensError):
    """NaN or infinity in an activation, or overflow in a cast asked for."""


class LabelWarning(UserWarning):
    """A label that looks wrong, though nothing says that it is: a name that is nearly that of a stage."""


def suggest(name: str, valid: Iterable[str], limit: int = 8) -> str:
    """Phrase that names the valid values nearest to `name`.

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
    """Names for a message, cut where nobody reads on.

    >>> join_names("abc"), join_names(range(12))
    ('a, b, c', '0, 1, 2, 3, 4, 5, 6, 7 and 4 more')
    """
    texts = [str(name) for name in names]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def not_floats_error(site: str, dtype: object) -> InputError:
    """The error for a site whose values are codes: what plain readers show of bfloat16 and of scaled int8."""
    return InputError(
        f"{site!r} has dtype {dtype}, not a float: plain readers show bfloat16 as its bits, and int8 without "
        "the scales of its rows; open the store with stratalens.open_store(path)"
    )


def no_site_error(site: str, held: Iterable[str], where: str = "this store") -> InputError:
    """The error for a site that was not recorded: the near ones, and how to record it.

    >>> str(no_site_error("mlp_out", ["resid_post"]))[:53]
    "site 'mlp_out' is not in this store; Valid: resid_pos"
    """
    sites = tuple(held)
    return InputError(
        f"site {site!r} is not in {where}; {suggest(site, sites)}. To record it too, run the capture again with "
        f"sites={(*sites, site)!r}: what is there stays as it is"
    )
