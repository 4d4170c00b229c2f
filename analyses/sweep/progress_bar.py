"""The progress bar of tqdm: a widget in notebooks that have widgets, else a line of text, in silence."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # Without ipywidgets tqdm writes text, but only after a warning, which notebooks show in red.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
