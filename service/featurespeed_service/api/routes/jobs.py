"""Jobs: submit, list, look at, cancel, delete, and their result."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response

from featurespeed.budget import check_budget
from featurespeed.contract import Job, JobPage, Kind, Report, Status, parse_request_json
from featurespeed_service.api.bodies import LARGE_BYTES, spec_body
from featurespeed_service.api.context import Ctx
from featurespeed_service.api.parameters import DIGITS
from featurespeed_service.api.problems import declared
from featurespeed_service.api.security import Reading, Writing

REFUSALS = declared("not-found", "conflict")
SPEC_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}},
    }
}

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.post(
    "/jobs",
    status_code=202,
    response_model=Job,
    responses=declared("too-large", "invalid-spec", "invalid-request", "idempotency-conflict", "conflict"),
    openapi_extra=SPEC_BODY,
)
def submit(
    context: Ctx,
    access: Writing,
    body: Annotated[str, Depends(spec_body)],
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255, pattern="^[ -~]*$")] = None,
) -> Response:
    """Queue a job. The same Idempotency-Key with the same request gives the same job again."""
    is_large = len(body) > LARGE_BYTES
    request = context.parser.submit(parse_request_json, body).result() if is_large else parse_request_json(body)
    check_budget(request, context.settings.budget)
    access.datasets.check(request)
    return _queued(access.store.submit(request, idempotency_key))


def _queued(job: Job) -> Response:
    """A job as it was queued. Written out here: to hand it back is to have it checked again, in another thread."""
    headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1"}
    return Response(job.model_dump_json(), 202, headers, media_type="application/json")


@router.get("/jobs", responses=declared("invalid-request"))
def page(
    access: Reading,
    status: Annotated[Status | None, Query()] = None,
    kind: Annotated[Kind | None, Query()] = None,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
    limit: Annotated[int, Query(ge=1, le=200), DIGITS] = 50,
) -> JobPage:
    """Jobs, newest first."""
    return access.store.page(status=status, kind=kind, cursor=cursor, limit=limit)


# These two before the next: of a path that several match, the first one tells which methods it has.
@router.post("/jobs/{job_id}:cancel", status_code=202, responses=declared("not-found"))
def cancel(access: Writing, job_id: str) -> Job:
    """Ask a job to stop; one that has ended stays as it is."""
    return access.store.cancel(job_id)


@router.post(
    "/jobs/{job_id}:retry",
    status_code=202,
    response_model=Job,
    responses=declared("not-found", "conflict", "invalid-spec"),
)
def retry(context: Ctx, access: Writing, job_id: str) -> Response:
    """Queue a failed or cancelled job again, as a new job that takes over its finished cells.

    However often it is asked for, it is one new job: if that fails too, retry that one.
    """
    request = access.store.get(job_id).request
    check_budget(request, context.settings.budget)  # either may have changed since
    access.datasets.check(request)
    return _queued(access.store.resubmit(job_id))


@router.get("/jobs/{job_id}", responses=declared("not-found"))
def get(access: Reading, job_id: str) -> Job:
    """A job: its status, progress and request."""
    return access.store.get(job_id)


@router.get("/jobs/{job_id}/result", response_model=Report, responses={**REFUSALS, 304: {"description": "Unchanged"}})
def result(access: Reading, job_id: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """The report of a job that has succeeded; it never changes."""
    found = access.store.result(job_id)
    headers = {"ETag": f'"{found.sha256}"', "Cache-Control": "private, no-cache"}
    if if_none_match is not None and _matches(if_none_match, found.sha256):
        return Response(status_code=304, headers=headers)
    return Response(found.text, headers=headers, media_type="application/json")


def _matches(if_none_match: str, tag: str) -> bool:
    # weak comparison, as RFC 9110 has it for If-None-Match
    given = [part.strip().removeprefix("W/") for part in if_none_match.split(",")]
    return "*" in given or f'"{tag}"' in given


@router.delete("/jobs/{job_id}", status_code=204, responses=REFUSALS)
def delete(access: Writing, job_id: str) -> None:
    """Remove a job that has ended, and its result."""
    access.store.delete(job_id)
