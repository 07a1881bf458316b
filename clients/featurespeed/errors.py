"""What can go wrong between a user and an answer: one tree, every error with its evidence.

::

    FeaturespeedError
    ├── ServerUnreachable           no answer at all (also a ConnectionError)
    ├── ProblemError                an answer that says no: status, problem, request id, response
    │   ├── InvalidSpec             the specification was refused: field, value, bound (also a SpecError)
    │   ├── NotFound
    │   ├── Conflict
    │   ├── TooLarge
    │   ├── Unauthenticated         no API key, or one that is wrong or revoked
    │   ├── Forbidden               the key does not allow this
    │   └── RateLimited             too many requests or jobs, still after the retries
    ├── JobFailed                   the job ended without a report
    ├── JobCancelled
    ├── DeadlineExceeded            the job may go on (also a TimeoutError)
    └── ParameterMismatch           a report and a model that do not fit (also a ValueError)

A specification that cannot even be read raises :class:`featurespeed.contract.SpecError`, the base of InvalidSpec.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from pydantic import ValidationError

from featurespeed.contract.job import Job, JobError, Problem
from featurespeed.contract.validation import SpecError, shown

if TYPE_CHECKING:
    import httpx


class FeaturespeedError(Exception):
    """Base of all errors of the client."""


class ServerUnreachable(FeaturespeedError, ConnectionError):
    """No answer from ``url`` in spite of retries; ``__cause__`` is the last transport error."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"no answer from {url}: {reason}")
        self.url = url


class ProblemError(FeaturespeedError):
    """The server refused. ``problem`` is its RFC 9457 body, ``request_id`` names the request in the server's log."""

    def __init__(self, problem: Problem, response: httpx.Response) -> None:
        Exception.__init__(self, problem.detail or problem.title)  # not super(): InvalidSpec has a second base
        self.problem = problem
        self.status = response.status_code
        self.request_id = response.headers.get("x-request-id")
        self.response = response


class InvalidSpec(ProblemError, SpecError):
    """The server refused the specification; ``errors`` lists field, value and bound of each fault."""

    def __init__(self, problem: Problem, response: httpx.Response) -> None:
        ProblemError.__init__(self, problem, response)
        self.errors = list(problem.errors)

    def __str__(self) -> str:
        faults = "; ".join(f"{e.field}: {e.bound} (got {shown(e.value)})" for e in self.errors)
        return faults or self.problem.detail


class NotFound(ProblemError):
    """There is no such job."""


class Conflict(ProblemError):
    """The job is not in a state that allows this, or an idempotency key was used for another request."""


class TooLarge(ProblemError):
    """The request or dataset is larger than the server takes."""


class Unauthenticated(ProblemError):
    """The server wants an API key (``api_key``, or FEATURESPEED_API_KEY), or the one it got is wrong or revoked."""


class Forbidden(ProblemError):
    """The API key does not allow this; the message names the scope that it lacks."""


class RateLimited(ProblemError):
    """Too many requests, or too many jobs under way; sent again as the server asked, and refused again."""


class JobFailed(FeaturespeedError):
    """The job ended without a report; ``error`` has a stable ``type`` and a sentence for the user."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error = job.error or JobError(type="unknown", detail="the server gives no reason")
        super().__init__(f"job {job.id} failed: {self.error.detail}")


class JobCancelled(FeaturespeedError):
    """The job was cancelled."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} was cancelled")
        self.job = job


class DeadlineExceeded(FeaturespeedError, TimeoutError):
    """What was waited for did not happen within the given number of seconds."""


class ParameterMismatch(FeaturespeedError, ValueError):
    """A report and a model that do not fit; ``faults`` lists every parameter concerned. Nothing was changed."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("the report does not fit the model: " + "; ".join(faults))
        self.faults = faults


_BY_STATUS: dict[int, type[ProblemError]] = {
    HTTPStatus.UNAUTHORIZED: Unauthenticated,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TooLarge,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidSpec,
    HTTPStatus.TOO_MANY_REQUESTS: RateLimited,
}


def problem_error(response: httpx.Response) -> ProblemError:
    """The error that a response of status 300 or more stands for; its body must have been read."""
    problem = _problem(response)
    kind = _BY_STATUS.get(response.status_code, ProblemError)
    if problem.type.endswith(":idempotency-conflict"):  # a 422 that is no fault of the specification
        return Conflict(problem, response)
    return kind(problem, response)


def _problem(response: httpx.Response) -> Problem:
    """The body as a problem; an answer of something else on the way (a proxy's page) is made one."""
    try:
        return Problem.model_validate_json(response.content, extra="ignore")
    except ValidationError:
        title = response.reason_phrase or "Unexpected answer"
        detail = f"{response.request.method} {response.request.url} answered {response.status_code} {title}"
        return Problem(type="about:blank", title=title, status=response.status_code, detail=detail)
