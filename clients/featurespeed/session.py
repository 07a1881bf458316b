"""The protocol with the service, without I/O of its own: what Client and AsyncClient share."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import SSEError
from pydantic import BaseModel, ValidationError

from featurespeed.connection import Connection
from featurespeed.contract.job import TERMINAL, Job, JobPage, Status
from featurespeed.contract.report import Report
from featurespeed.contract.request import Kind
from featurespeed.errors import (
    Conflict,
    FeaturespeedError,
    JobCancelled,
    JobFailed,
    ProblemError,
    ServerUnreachable,
    problem_error,
)
from featurespeed.events import Event, Seen, StatusEvent, parse_event
from featurespeed.retry import (
    CLEANUP_SECONDS,
    CONNECT_TIMEOUT,
    EMPTY_STREAMS,
    FOLLOW,
    POLL_SECONDS,
    REQUEST,
    RETRY_STATUSES,
    STREAM_SILENCE,
    Deadline,
    Retry,
)
from featurespeed.spec_files import Spec, file_sha256, load_spec

M = TypeVar("M", bound=BaseModel)
OnEvent = Callable[[Event], None]


class Session:
    """One server, spoken to over one connection; every method may raise ServerUnreachable or ProblemError."""

    def __init__(self, connection: Connection, timeout: httpx.Timeout) -> None:
        self.connection = connection
        self._timeout = timeout

    # -- one call ------------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        retry: Retry = REQUEST,
        deadline: Deadline | None = None,
        file: Path | None = None,
        **options: Any,
    ) -> httpx.Response:
        """A successful response; failures that may pass are retried. ``file`` is sent as the body."""
        deadline = deadline or Deadline()
        attempt = 0
        while True:
            attempt += 1
            retry_after = None
            try:
                response = await self._once(method, path, deadline, file, options)
                if response.is_success:
                    return response
                if response.status_code not in RETRY_STATUSES or attempt >= retry.attempts:
                    raise problem_error(response)
                retry_after = response.headers.get("retry-after")
            except httpx.RequestError as error:
                deadline.remaining()
                if attempt >= retry.attempts:
                    raise ServerUnreachable(_origin(error.request.url), str(error) or type(error).__name__) from error
            await self.connection.sleep(deadline.limit(retry.pause(attempt, retry_after)))

    async def _once(
        self, method: str, path: str, deadline: Deadline, file: Path | None, options: dict[str, Any]
    ) -> httpx.Response:
        async with AsyncExitStack() as stack:
            headers = dict(options.get("headers", {}))
            if file is not None:
                headers["Content-Length"] = str(file.stat().st_size)
                options = {**options, "content": await stack.enter_async_context(self.connection.file_body(file))}
            timeout = _bounded(self._timeout, deadline.remaining())
            request = self.connection.build_request(method, path, **{**options, "headers": headers, "timeout": timeout})
            return await self.connection.send(request)

    # -- jobs ----------------------------------------------------------------------------------------------------

    async def submit(self, spec: Spec, kind: Kind | None = None) -> Job:
        """Upload the files that the specification names, if any, and submit the specification."""
        specification = await self.connection.call(lambda: load_spec(spec, kind))
        if specification.dataset is not None:
            await self._put("datasets", specification.dataset, specification.document["data"]["sha256"])
        if specification.checkpoint is not None:
            await self._put("checkpoints", specification.checkpoint, specification.document["checkpoint"]["sha256"])
        # the key is fixed here, before the retries: however often it is sent, it is one job
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        body = json.dumps(specification.document, default=str).encode()
        return _parsed(Job, await self.request("POST", "v1/jobs", content=body, headers=headers))

    async def job(self, job_id: str, retry: Retry = REQUEST, deadline: Deadline | None = None) -> Job:
        """The job as it is now; raises NotFound."""
        return _parsed(Job, await self.request("GET", _path(job_id), retry=retry, deadline=deadline))

    async def jobs(self, status: Status | None, kind: Kind | None) -> AsyncGenerator[Job]:
        """All jobs, newest first, page by page."""
        query = {"status": status, "kind": kind}
        cursor: str | None = None
        while True:
            given = {name: value for name, value in {**query, "cursor": cursor}.items() if value is not None}
            page = _parsed(JobPage, await self.request("GET", "v1/jobs", params=given))
            for job in page.jobs:
                yield job
            cursor = page.next_cursor
            if cursor is None:
                return

    async def cancel(self, job_id: str, deadline: Deadline | None = None) -> Job:
        """Ask for the job to be stopped; the job as it is then."""
        await self.request("POST", f"{_path(job_id)}:cancel", deadline=deadline)
        return await self.job(job_id, deadline=deadline)

    async def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again; the new job. Raises NotFound, Conflict."""
        return _parsed(Job, await self.request("POST", f"{_path(job_id)}:retry"))

    async def delete(self, job_id: str) -> None:
        """Delete a job that has ended; raises NotFound, Conflict."""
        await self.request("DELETE", _path(job_id))

    async def result(self, job_id: str, retry: Retry = REQUEST, deadline: Deadline | None = None) -> Report:
        """The report; raises JobFailed, JobCancelled, or Conflict if the job has not ended."""
        try:
            response = await self.request("GET", f"{_path(job_id)}/result", retry=retry, deadline=deadline)
        except Conflict:
            job = await self.job(job_id, retry, deadline)
            if job.status == "failed":
                raise JobFailed(job) from None
            if job.status == "cancelled":
                raise JobCancelled(job) from None
            raise
        return _parsed(Report, response)

    async def wait(self, job_id: str, timeout: float | None, on_event: OnEvent | None) -> Report:
        """The report, when it is there; raises JobFailed, JobCancelled, DeadlineExceeded."""
        deadline = Deadline(timeout, f"the end of job {job_id}")
        async with aclosing(self.follow(job_id, timeout=timeout)) as events:
            async for event in events:
                if on_event is not None:
                    on_event(event)
        return await self.result(job_id, FOLLOW, deadline)

    async def answer(self, spec: Spec, kind: Kind, timeout: float | None, on_event: OnEvent | None) -> Report:
        """Submit and wait; a wait that is given up (deadline, Ctrl-C, cancellation) cancels the job."""
        job = await self.submit(spec, kind)
        try:
            return await self.wait(job.id, timeout, on_event)
        except (JobFailed, JobCancelled, ServerUnreachable, ProblemError):
            raise
        except BaseException:
            async with self.connection.cleanup():
                with suppress(FeaturespeedError):
                    await self.cancel(job.id, Deadline(CLEANUP_SECONDS))
            raise

    # -- events --------------------------------------------------------------------------------------------------

    async def follow(self, job_id: str, *, timeout: float | None = None) -> AsyncGenerator[Event]:
        """Events up to the one that says that the job has ended.

        A stream that breaks is taken up again after the last event seen. Between two streams, and where there is none
        to be had, the job itself is asked; only if it does not answer either is the server given up.
        """
        deadline = Deadline(timeout, f"the end of job {job_id}")
        seen, stream, attempt = Seen(), _Stream(self, job_id), 0
        while True:
            told = False
            if stream.failures < EMPTY_STREAMS:
                async with aclosing(stream.events(deadline)) as events:
                    async for event in events:
                        if told := seen.is_new(event):
                            yield event
                        if isinstance(event, StatusEvent) and event.is_last:
                            return
            job = await self.job(job_id, FOLLOW, deadline)
            for event in seen.changes(job):
                told = True
                yield event
            if job.status in TERMINAL:
                return
            attempt = 1 if told else attempt + 1
            await self.connection.sleep(deadline.limit(min(POLL_SECONDS, FOLLOW.pause(attempt))))

    # -- the rest ------------------------------------------------------------------------------------------------

    async def upload(self, kind: Literal["datasets", "checkpoints"], path: Path) -> str:
        """Upload a safetensors file; its SHA-256, by which a specification names it. Raises InvalidSpec, TooLarge."""
        digest = await self.connection.call(lambda: file_sha256(path))
        await self._put(kind, path, digest)
        return digest

    async def _put(self, kind: str, path: Path, digest: str) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        await self.request("PUT", f"v1/{kind}/{digest}", file=path, headers=headers)

    async def schema(self) -> dict[str, Any]:
        """JSON Schema of JobRequest and Report."""
        schema: dict[str, Any] = (await self.request("GET", "v1/schema")).json()
        return schema


class _Stream:
    """The event stream of one job over any number of connections."""

    def __init__(self, session: Session, job_id: str) -> None:
        self._session = session
        self._path = f"{_path(job_id)}/events"
        self._last_id = ""
        self.failures = 0
        """Connections in a row that gave no event."""

    async def events(self, deadline: Deadline) -> AsyncGenerator[Event]:
        """The events of one more connection, from after the last one seen; ends when the connection does."""
        connection, left = self._session.connection, deadline.remaining()
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        # a short deadline is met by short silences: a blocked read cannot be woken
        silence = min(STREAM_SILENCE, max(0.25, left / 4))
        timeout = httpx.Timeout(min(CONNECT_TIMEOUT, left), read=silence)
        request = connection.build_request("GET", self._path, headers=headers, timeout=timeout)
        self.failures += 1
        try:
            async with connection.stream(request, deadline) as stream:
                if not stream.response.is_success:
                    return
                async for message in stream.events:
                    self.failures = 0
                    self._last_id = message.id or self._last_id
                    if (event := parse_event(message)) is not None:
                        yield event
        except httpx.ReadTimeout:
            if silence < STREAM_SILENCE:
                self.failures -= 1
        except (httpx.RequestError, SSEError):
            return


def _path(job_id: str) -> str:
    return f"v1/jobs/{quote(job_id, safe='')}"


def _origin(url: httpx.URL) -> str:
    return str(url.copy_with(path="/", query=None, fragment=None, username=None, password=None)).rstrip("/")


def _bounded(timeout: httpx.Timeout, left: float) -> httpx.Timeout:
    """The timeouts, none longer than what is left of the deadline."""
    limits = {name: min(math.inf if value is None else value, left) for name, value in timeout.as_dict().items()}
    return httpx.Timeout(**{name: None if math.isinf(value) else value for name, value in limits.items()})


def _parsed(model: type[M], response: httpx.Response) -> M:
    """The body as a model; fields that this version does not know are left out."""
    try:
        return model.model_validate_json(response.content, extra="ignore")
    except ValidationError as error:
        server = response.request.url
        raise FeaturespeedError(f"{server} gave an answer that this version cannot read: {error}") from error
