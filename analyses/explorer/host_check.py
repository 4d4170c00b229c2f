"""Refuses requests that were not sent to this machine by its own name.

A page of another site can make its own name point to 127.0.0.1 (DNS rebinding). The browser then counts the explorer
as part of that site. The header Host still names the site, so every request and websocket is checked by it. The port
does not matter, because a tunnel may use another one.
"""

from __future__ import annotations

import re
from typing import Any

from stratalens.store.compat import tornado_application

_OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", re.IGNORECASE)


def is_own_host(host: str) -> bool:
    """Return whether a Host header names this machine.

    >>> is_own_host("localhost:5006"), is_own_host("evil.example:5006"), is_own_host("localhost.evil.example")
    (True, False, False)
    """
    return _OWN_HOST.fullmatch(host) is not None


def refuse_other_hosts(server: Any) -> None:
    """Answer 403 to every request whose Host is not this machine.

    Args:
        server: a Bokeh server.
    """
    from tornado.web import ErrorHandler

    application = tornado_application(server)
    find_handler = application.find_handler

    def checked(request: Any, **options: Any) -> Any:
        if is_own_host(request.host):
            return find_handler(request, **options)
        return application.get_handler_delegate(request, ErrorHandler, {"status_code": 403})

    application.find_handler = checked
