"""Errors on the wire: every exception becomes an RFC 9457 problem, by one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from featurespeed.contract import FieldError, Problem, SpecError, shown
from featurespeed_service.api.refusals import BodyTooSlow, Forbidden, RateLimited, Unauthenticated
from featurespeed_service.job_errors import INTERNAL_ERROR
from featurespeed_service.store.errors import (
    IdempotencyConflict,
    InvalidCursor,
    JobNotFound,
    KeyOfDeletedJob,
    QuotaExceeded,
    StoreFull,
    StoreUnavailable,
    WrongStatus,
)

PROBLEM = "urn:featurespeed:problem:"
MEDIA_TYPE = "application/problem+json"


class BodyTooLarge(Exception):
    """A request body has more bytes than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body has more than {limit} bytes, the limit here")
        self.errors = (FieldError(field="body", value=None, bound=f"must have at most {limit} bytes"),)


class NotReady(Exception):
    """Requests should go elsewhere, or come later."""

    headers = MappingProxyType({"Retry-After": "5"})


class InvalidField(Exception):
    """Something outside of a spec was refused: a header, a path, a body that is not what the path says."""

    def __init__(self, field: str, value: Any, bound: str) -> None:
        super().__init__(f"{field}: {bound}")
        self.errors = (FieldError(field=field, value=value, bound=bound),)


@dataclass(frozen=True)
class ProblemType:
    """What all problems of one type have in common."""

    title: str
    status: HTTPStatus


TYPES: dict[str, ProblemType] = {
    "invalid-spec": ProblemType("Invalid specification", HTTPStatus.UNPROCESSABLE_ENTITY),
    "invalid-request": ProblemType("Invalid request", HTTPStatus.UNPROCESSABLE_ENTITY),
    "idempotency-conflict": ProblemType("Idempotency key reused", HTTPStatus.UNPROCESSABLE_ENTITY),
    "not-found": ProblemType("Not found", HTTPStatus.NOT_FOUND),
    "method-not-allowed": ProblemType("Method not allowed", HTTPStatus.METHOD_NOT_ALLOWED),
    "conflict": ProblemType("The job does not allow this", HTTPStatus.CONFLICT),
    "too-large": ProblemType("Body too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    "too-slow": ProblemType("Request too slow", HTTPStatus.REQUEST_TIMEOUT),
    "headers-too-large": ProblemType("Headers too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    "invalid-http": ProblemType("Not HTTP", HTTPStatus.BAD_REQUEST),
    "unauthenticated": ProblemType("An API key is needed", HTTPStatus.UNAUTHORIZED),
    "forbidden": ProblemType("Forbidden", HTTPStatus.FORBIDDEN),
    "rate-limited": ProblemType("Too many requests", HTTPStatus.TOO_MANY_REQUESTS),
    "quota-exceeded": ProblemType("Too many jobs", HTTPStatus.TOO_MANY_REQUESTS),
    "internal-error": ProblemType("Internal error", HTTPStatus.INTERNAL_SERVER_ERROR),
    "database-unavailable": ProblemType("Database unavailable", HTTPStatus.SERVICE_UNAVAILABLE),
    "insufficient-storage": ProblemType("Insufficient storage", HTTPStatus.INSUFFICIENT_STORAGE),
    "not-ready": ProblemType("Not ready", HTTPStatus.SERVICE_UNAVAILABLE),
}
"""Every type of problem; its name is ``urn:featurespeed:problem:<key>``. docs/api.md explains each."""


def problem(slug: str, detail: str, errors: Iterable[FieldError] = ()) -> Problem:
    """A problem of one of TYPES."""
    kind = TYPES[slug]
    return Problem(type=PROBLEM + slug, title=kind.title, status=kind.status.value, detail=detail, errors=tuple(errors))


def internal_error(request_id: str) -> Problem:
    """What a user hears of a fault in the service: where to look for it in the log."""
    return problem(
        INTERNAL_ERROR, f"something went wrong in the service; its log has the cause under request {request_id}"
    )


def _invalid_query(_request: Request, error: RequestValidationError) -> Problem:
    errors = [
        _shortened(
            FieldError(field=".".join(str(p) for p in e["loc"][1:]) or "body", value=e.get("input"), bound=e["msg"])
        )
        for e in error.errors()
    ]
    return problem("invalid-request", "; ".join(f"{e.field}: {e.bound}" for e in errors), errors)


def _http(request: Request, error: HTTPException) -> Problem:
    """What the framework refuses. Beside these two it is nothing that our routes cause: a problem without a type."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        path = _short(request.scope["path"])  # request.url would parse the Host header, too
        fault = FieldError(field="path", value=path, bound="must be a path of this service; /docs lists them")
        return problem("not-found", f"nothing is at {path}", [fault])
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _allowed(request)
        fault = FieldError(field="method", value=_short(request.method), bound=f"must be {allowed} here")
        return problem("method-not-allowed", f"{fault.field}: {fault.bound}", [fault])
    status = HTTPStatus(error.status_code)
    return Problem(type="about:blank", title=status.phrase, status=status.value, detail=str(error.detail))


def _allowed(request: Request) -> str:
    """Methods of the path that was asked for. The framework knows those of its first operation alone."""
    path = getattr(request.scope.get("route"), "path", None)
    methods = {m for r in request.app.routes if getattr(r, "path", None) == path for m in getattr(r, "methods", ())}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"


def _cursor(_request: Request, error: InvalidCursor) -> Problem:
    fault = FieldError(field="cursor", value=_short(str(error)), bound="a next_cursor of this listing is required")
    return problem("invalid-request", "cursor: unknown", [fault])


def _job_not_found(request: Request, error: JobNotFound) -> Problem:
    job_id = _short(str(request.path_params.get("job_id")))
    fault = FieldError(field="job_id", value=job_id, bound="must be the id of a job that is here")
    return problem("not-found", str(error), [fault])


def _outage(_request: Request, error: StoreUnavailable) -> Problem:
    """What exactly went wrong is for the log, as it names hosts."""
    if isinstance(error, StoreFull):
        return problem("insufficient-storage", "the service has no room left to store this")
    return problem("database-unavailable", "the job store cannot be reached; ask again")


def _refused(slug: str) -> Callable[[Request, Any], Problem]:
    """The problem of an exception whose text says all, with its ``errors`` if it has any."""
    return lambda _, error: problem(slug, str(error), map(_shortened, getattr(error, "errors", ())))


def _shortened(fault: FieldError) -> FieldError:
    """The fault, without sending a whole body back that is no JSON."""
    is_long = isinstance(fault.value, str) and len(fault.value) > 200
    return fault.model_copy(update={"value": shown(fault.value)}) if is_long else fault


TABLE: dict[type[Exception], Callable[[Request, Any], Problem]] = {
    SpecError: _refused("invalid-spec"),
    InvalidField: _refused("invalid-request"),
    BodyTooLarge: _refused("too-large"),
    JobNotFound: _job_not_found,
    WrongStatus: _refused("conflict"),
    KeyOfDeletedJob: _refused("conflict"),
    IdempotencyConflict: _refused("idempotency-conflict"),
    NotReady: _refused("not-ready"),
    InvalidCursor: _cursor,
    Unauthenticated: _refused("unauthenticated"),
    Forbidden: _refused("forbidden"),
    RateLimited: _refused("rate-limited"),
    QuotaExceeded: _refused("quota-exceeded"),
    BodyTooSlow: _refused("too-slow"),
    StoreUnavailable: _outage,
    RequestValidationError: _invalid_query,
    HTTPException: _http,
}
"""Every exception that a user may cause, and the problem that tells of it. All others are internal errors.

An exception's ``headers``, if it has any, go with the answer.
"""


def response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """A problem as an HTTP response."""
    return Response(problem.model_dump_json(), problem.status, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let ``app`` answer the exceptions of TABLE."""
    for exception, make in TABLE.items():
        app.add_exception_handler(exception, _handler(make))


def _handler(make: Callable[[Request, Any], Problem]) -> Callable[[Request, Exception], Response]:
    def handle(request: Request, error: Exception) -> Response:
        headers = dict(getattr(error, "headers", None) or {})
        if "Allow" in headers:
            headers["Allow"] = _allowed(request)
        return response(make(request, error), headers)

    return handle


def declared(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """What an operation says in OpenAPI of the problems that it may answer with."""
    by_status: dict[int, list[str]] = {}
    for slug in slugs:
        by_status.setdefault(TYPES[slug].status.value, []).append(slug)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": "; ".join(f"{TYPES[name].title} (`{name}`)" for name in names), "content": content}
        for status, names in by_status.items()
    }
