"""What surrounds every request: an id, a count, and an answer without a traceback when something breaks."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurespeed_service.api.metrics import Metrics
from featurespeed_service.api.problems import internal_error, response

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class HeadMiddleware:
    """Answers HEAD as GET without its body; a stream of events is ended at once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        started = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["method"] = "HEAD"  # the server looks at it: no body follows the head's content-length
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                started.set()

        async def receive_until_started() -> Message:
            await started.wait()
            return {"type": "http.disconnect"}

        scope["method"] = "GET"  # in place: those outside read from it what the router has found
        try:
            await self._app(scope, receive_until_started, send_head)
        finally:
            scope["method"] = "HEAD"


class RequestMiddleware:
    """Gives each request an id (header ``x-request-id``), measures it, and logs what its handler did not expect."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, start, started = secrets.token_hex(8), time.perf_counter(), False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
                self._observe(scope, message["status"], time.perf_counter() - start)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise  # the answer is cut off, which is all that can still be told
            await response(internal_error(request_id))(scope, receive, send_with_id)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.observe(method, route, status, seconds)
