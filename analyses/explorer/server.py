"""Server of the live page on this machine, with scripts and styles from the installed packages."""

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
    by: str | None = None,
    seed: int = 0,
    C: float = 0.1,
    folds: int = 5,
    tell: Callable[[str], None] | None = None,
) -> Any:
    """Serve the live page of a store on 127.0.0.1 until an interrupt.

    Args:
        ds: result of `open_store`; only metadata is read until a browser opens the page.
        port: port of the page; 0 takes a free one.
        show: open the page in the system's browser.
        block: False returns at once; the caller then runs the event loop, which already runs in a notebook.
        by: label column at the start; None = trained_stage, else the most useful one.
        seed: of halves, folds and shuffles; with that of a report, the page has the numbers of the report.
        C: inverse strength of the penalty of logistic probes.
        folds: number of folds over entities.
        tell: called with a message that has the address; with block=True it is called once the page is reachable.

    Returns:
        With block=False, the server: `port` is its port and `stop()` ends it.

    Raises:
        InputError: the port is in use or not permitted, or the store has no site or no label column.
    """
    import panel as pn

    from stratalens.analyses.explorer.app import page
    from stratalens.analyses.explorer.data import ExplorerData
    from stratalens.analyses.explorer.host_check import refuse_other_hosts
    from stratalens.analyses.explorer.result_cache import ResultCache

    port = free_port(port)
    data = ExplorerData(ds, by, seed)
    shared = data, ResultCache(data, C=C, folds=folds)

    def session() -> Any:
        explorer = page(ds, shared)
        pn.state.onload(explorer.refresh)
        pn.state.on_session_destroyed(lambda context: explorer.close())
        return explorer.template()

    server = pn.serve(
        {"/": session},
        port=port,
        address=ADDRESS,
        websocket_origin=[f"{ADDRESS}:{port}", f"localhost:{port}"],
        title=f"stratalens explorer: {Path(data.path).name}",
        show=show,
        start=False,
        threaded=False,
        verbose=False,
    )

    refuse_other_hosts(server)

    def announce() -> None:
        if tell is not None:
            tell(f"the explorer of {data.path} is at http://{ADDRESS}:{port} (Ctrl-C ends it)")

    if block:
        server.io_loop.add_callback(announce)  # runs once the server listens and Ctrl-C ends it
        server.start()
        server.io_loop.start()
    else:
        announce()
    return server


def free_port(port: int) -> int:
    """Return the port if it is available, or a free one for 0.

    Raises:
        InputError: the port is in use, or this user may not listen on it.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} does not exist. Valid: 1024 to 65535, or 0 for a free port.")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((ADDRESS, port))
        except OSError as error:
            reasons = {errno.EADDRINUSE: "is in use by another program", errno.EACCES: "is not permitted for this user"}
            reason = reasons.get(error.errno or 0, f"is not available ({error.strerror})")
            raise InputError(f"port {port} {reason}. Pass another with --port, or --port 0 for a free one.") from None
        return int(candidate.getsockname()[1])
