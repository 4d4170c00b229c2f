"""Serves the page on this machine only, with its scripts and styles from the installed packages."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr

from stratalens.store.errors import InputError

ADDRESS = "127.0.0.1"


PORT = 5006


def explore(
    ds: xr.Dataset,
    port: int = PORT,
    *,
    show: bool = False,
    block: bool = True,
    tell: Callable[[str], None] | None = None,
) -> Any:
    """Serve the live page of a store on 127.0.0.1 until it is interrupted.

    Args:
        ds: result of `open_store`; nothing but metadata is read before somebody opens the page.
        port: where to listen; 0 takes a free one.
        show: open the page in the system's browser.
        block: False returns at once; the caller then runs the event loop (in a notebook it runs already).
        tell: called with the address, with block=True once the page can be had.

    Returns:
        The server (with block=False); its `port` says where it listens and `stop()` ends it.

    Raises:
        InputError: the port is taken or not allowed, or the store has no site or no label column.
    """
    import panel

    from stratalens.analyses.explorer.app import page
    from stratalens.analyses.explorer.data import Source
    from stratalens.analyses.explorer.result_cache import Answers

    pn: Any = panel  # its functions have no types
    chosen = free_port(port)
    source = Source(ds)
    shared = source, Answers(source)

    def made() -> Any:
        explorer = page(ds, shared)
        pn.state.onload(explorer.refresh)
        pn.state.on_session_destroyed(lambda context: explorer.close())
        return explorer.template()

    server = pn.serve(
        {"/": made},
        port=chosen,
        address=ADDRESS,
        websocket_origin=[f"{ADDRESS}:{chosen}", f"localhost:{chosen}"],
        title=f"stratalens explorer: {Path(source.path).name}",
        show=show,
        start=False,
        threaded=False,
        verbose=False,
    )

    def up() -> None:
        if tell is not None:
            tell(f"the explorer of {source.path} is at http://{ADDRESS}:{chosen} (Ctrl-C ends it)")

    if block:
        server.io_loop.add_callback(up)  # not before it listens and Ctrl-C ends it
        server.start()
        server.io_loop.start()
    else:
        up()
    return server


def free_port(port: int) -> int:
    """The port itself if it can be listened on, a free one for 0.

    Raises:
        InputError: it is taken, or this user may not listen there.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} does not exist: give one from 1024 to 65535, or 0 for any free one")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            why = {errno.EADDRINUSE: "is taken by another program", errno.EACCES: "may not be used by this user"}
            reason = why.get(error.errno or 0, f"cannot be used ({error.strerror})")
            raise InputError(f"port {port} {reason}: give another with --port, or --port 0 for any free one") from None
        return int(probe.getsockname()[1])
