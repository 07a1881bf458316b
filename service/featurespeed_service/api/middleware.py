"""What surrounds every request: an id, a count, and an answer without a traceback when something breaks."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any, cast

from anyio import BrokenResourceError, ClosedResourceError
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurespeed_service import logs
from featurespeed_service.api.metrics import Metrics
from featurespeed_service.api.problems import NotReady, internal_error, problem, response

log = logs.get(__name__)

REQUEST_ID = "x-request-id"
JOBS = "/v1/jobs/"
PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked every few seconds by machines: their lines would hide the others."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

STOPPING = problem(
    "not-ready", "the service stops before this request was done; send it again, with the same Idempotency-Key"
)


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
        request_id, start = secrets.token_hex(8), time.perf_counter()
        scope[logs.REQUEST_ID] = request_id
        head: list[Message] = []

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.append(message)
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
                _describe_span(scope, message)
                self._metrics.observe(_method(scope), _route(scope), message["status"], time.perf_counter() - start)
            await send(message)

        token = logs.request_scope.set(cast("dict[str, Any]", scope))
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # in the middle of its body: nobody waits for an answer
        except Exception as error:
            if head and _says_that_nobody_reads(error):
                return
            log.exception("request failed", request_id=request_id, method=_method(scope), path=scope["path"])
            if head:
                raise  # the answer is cut off, which is all that can still be told
            await response(internal_error(request_id))(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server stops, and this took longer than it waits
            if not head:
                await response(STOPPING, dict(NotReady.headers))(scope, receive, send_with_id)
        finally:
            _log_request(scope, head, time.perf_counter() - start)
            logs.request_scope.reset(token)


def _says_that_nobody_reads(error: Exception) -> bool:
    """Whether a stream of events ended with its client: FastAPI raises then, if an event was just on its way.

    See https://github.com/fastapi/fastapi/pull/15824.
    """
    return isinstance(error, ExceptionGroup) and error.split((BrokenResourceError, ClosedResourceError))[1] is None


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unknown")


def _tenant(scope: Scope) -> str | None:
    return cast("str | None", scope.get("state", {}).get("tenant"))


def _job_made(head: Message) -> str | None:
    """The job that a request has made, by the head of its answer."""
    location = MutableHeaders(scope=head).get("location", "")
    return location.removeprefix(JOBS) if location.startswith(JOBS) else None


def _describe_span(scope: Scope, head: Message) -> None:
    """Put what names a request in the log into its trace too; before the answer begins, as its end ends the span."""
    if (span := scope.get(logs.SPAN)) is None:
        return
    job_id = _job_made(head) or scope.get("path_params", {}).get("job_id")
    named = {"job.id": job_id and job_id[: logs.LONGEST], "tenant": _tenant(scope)}
    span.set_attributes({"request.id": scope[logs.REQUEST_ID], **{name: text for name, text in named.items() if text}})


def _log_request(scope: Scope, head: Sequence[Message], seconds: float) -> None:
    """One line a request, when all of it is answered."""
    facts: dict[str, Any] = {"method": _method(scope), "route": _route(scope)}
    facts["status"] = head[0]["status"] if head else None
    facts["seconds"] = round(seconds, 4)
    if tenant := _tenant(scope):
        facts["tenant"] = tenant
    if head and (job_id := _job_made(head[0])):
        facts["job_id"] = job_id
    (log.debug if facts["route"] in PROBES else log.info)("request", **facts)
