"""Where no keys are asked for, being on this machine is what lets a request in; a browser must not lend that to a page.

A page of another site can send requests to loopback addresses from the browser of whoever looks at it. It cannot choose
the Host header (a name of its own that resolves to this machine, "DNS rebinding", is seen there), nor leave out the
Origin of a request that changes something.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from featurespeed_service.api.problems import problem, response

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Whether an address or name, without a port, is one of this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class BrowserGuard:
    """Refuses requests under a foreign Host, and those that change something and come from a foreign Origin."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and (why := _why_refused(scope)):
            refusal = problem("forbidden", why)
            await response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _why_refused(scope: Scope) -> str | None:
    headers = HTTPConnection(scope).headers
    host = headers.get("host", "")
    if not is_loopback(_name_in(host)):
        return (
            f"without API keys this service answers to loopback names only, not to Host {host[:100]!r}; "
            "require keys (FEATURESPEED_REQUIRE_KEYS=1) to give it another name"
        )
    origin = headers.get("origin")
    if origin is not None and scope["method"] not in SAFE_METHODS and origin.partition("://")[2] != host:
        return f"without API keys a page of another origin ({origin[:100]!r}) may change nothing here"
    return None


def _name_in(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
