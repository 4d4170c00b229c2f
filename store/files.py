"""A text file that is there whole or not at all, for pages and summaries beside a store.

Data of a store itself goes through its storage, which also makes it durable.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text under a temporary name, then rename; returns the path."""
    target = Path(path)
    temporary = target.with_name(target.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)
    return target
