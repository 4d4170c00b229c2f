"""Long messages on a terminal: folded between words, so that no name or path is cut at its edge."""

from __future__ import annotations

import shutil
import sys
import textwrap


def folded(text: str) -> str:
    """What is about to be said on standard error: in a pipe as it is, on a terminal in lines that fit it.

    What goes on from a line is set two blanks deeper than the line itself.
    """
    if not sys.stderr.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns)
    return "\n".join(_filled(line, width) for line in text.split("\n"))


def _filled(line: str, width: int) -> str:
    """One line, as several.

    >>> print(_filled("  no space left on the disk (runs/a-long/name.zarr)", 30))
      no space left on the disk
        (runs/a-long/name.zarr)
    """
    deeper = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, width, subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False)
