"""Hooks that only look on, put on a hook point and taken off again without touching anybody else's."""

from __future__ import annotations

from typing import Any

from transformer_lens.hook_points import HookPoint


def attach(point: HookPoint, function: Any) -> Any:
    """Add a forward hook that only looks on; returns its handle.

    Goes through HookPoint.add_hook so that the value is the one that
    run_with_cache sees (compatibility mode converts it), but keeps the handle, so
    that removing it touches no hook of anybody else. The 3.9 line returns no handle.
    """

    def look(tensor: Any, *, hook: Any) -> None:
        function(tensor)

    point.add_hook(look)
    return point.fwd_hooks[-1]


def detach(point: HookPoint, handle: Any) -> None:
    """Remove one hook that `attach` added; harmless where somebody reset all hooks meanwhile."""
    handle.hook.remove()
    point.fwd_hooks[:] = [h for h in point.fwd_hooks if h is not handle]
