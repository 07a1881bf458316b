"""Errors on the wire: every exception becomes an RFC 9457 problem, by one table."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from featurespeed.contract import FieldError, Problem, SpecError, shown
from featurespeed_service.store.interface import IdempotencyConflict, InvalidCursor, JobNotFound, WrongStatus

PROBLEM = "urn:featurespeed:problem:"
MEDIA_TYPE = "application/problem+json"

INTERNAL_ERROR = "internal-error"


class BodyTooLarge(Exception):
    """A request body has more bytes than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body has more than {limit} bytes, the limit here")


class InvalidField(Exception):
    """Something outside of a spec was refused: a header, a path, a body that is not what the path says."""

    def __init__(self, field: str, value: Any, bound: str) -> None:
        super().__init__(f"{field}: {bound}")
        self.errors = (FieldError(field=field, value=value, bound=bound),)


def problem(slug: str, title: str, status: HTTPStatus, detail: str, errors: tuple[FieldError, ...] = ()) -> Problem:
    """A problem whose type is ``urn:featurespeed:problem:<slug>``."""
    return Problem(type=PROBLEM + slug, title=title, status=status.value, detail=detail, errors=errors)


def internal_error(request_id: str) -> Problem:
    """What a user hears of a fault in the service: where to look for it in the log."""
    detail = f"something went wrong in the service; its log has the cause under request {request_id}"
    return problem(INTERNAL_ERROR, "Internal error", HTTPStatus.INTERNAL_SERVER_ERROR, detail)


def _invalid_query(error: RequestValidationError) -> Problem:
    errors = tuple(
        FieldError(field=".".join(str(p) for p in e["loc"][1:]) or "body", value=e.get("input"), bound=e["msg"])
        for e in error.errors()
    )
    detail = "; ".join(f"{e.field}: {e.bound}" for e in errors)
    return problem("invalid-request", "Invalid request", HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors)


def _http(error: HTTPException) -> Problem:
    status = HTTPStatus(error.status_code)
    slug = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}.get(status.value, f"http-{status.value}")
    return problem(slug, status.phrase, status, str(error.detail))


def _cursor(error: InvalidCursor) -> Problem:
    errors = (FieldError(field="cursor", value=str(error), bound="a next_cursor of this listing is required"),)
    return problem("invalid-request", "Invalid request", HTTPStatus.UNPROCESSABLE_ENTITY, "cursor: unknown", errors)


def _refused(slug: str, title: str, status: HTTPStatus) -> Callable[[Any], Problem]:
    """The problem of an exception whose text says all, with its ``errors`` if it has any."""
    return lambda error: problem(slug, title, status, str(error), tuple(map(_shortened, getattr(error, "errors", ()))))


def _shortened(fault: FieldError) -> FieldError:
    """The fault, without sending a whole body back that is no JSON."""
    is_long = isinstance(fault.value, str) and len(fault.value) > 200
    return fault.model_copy(update={"value": shown(fault.value)}) if is_long else fault


TABLE: dict[type[Exception], Callable[[Any], Problem]] = {
    SpecError: _refused("invalid-spec", "Invalid specification", HTTPStatus.UNPROCESSABLE_ENTITY),
    InvalidField: _refused("invalid-request", "Invalid request", HTTPStatus.UNPROCESSABLE_ENTITY),
    BodyTooLarge: _refused("too-large", "Body too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    JobNotFound: _refused("not-found", "Job not found", HTTPStatus.NOT_FOUND),
    WrongStatus: _refused("conflict", "The job's status does not allow this", HTTPStatus.CONFLICT),
    IdempotencyConflict: _refused("idempotency-conflict", "Idempotency key reused", HTTPStatus.UNPROCESSABLE_ENTITY),
    InvalidCursor: _cursor,
    RequestValidationError: _invalid_query,
    HTTPException: _http,
}
"""Every exception that a user may cause, and the problem that tells of it. All others are internal errors."""


def response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """A problem as an HTTP response."""
    return Response(problem.model_dump_json(), problem.status, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let ``app`` answer the exceptions of TABLE."""
    for exception, make in TABLE.items():
        app.add_exception_handler(exception, _handler(make))


def _handler(make: Callable[[Any], Problem]) -> Callable[[Request, Exception], Response]:
    def handle(_request: Request, error: Exception) -> Response:
        headers = getattr(error, "headers", None)  # 405 names the methods that are allowed
        return response(make(error), dict(headers) if headers else None)

    return handle
