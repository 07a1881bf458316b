"""The HTTP clients, blocking and asynchronous. Needs neither torch nor ray."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from featurespeed.connection import AwaitingConnection, BlockingConnection, drain, finish
from featurespeed.contract.job import Status
from featurespeed.contract.report import Report
from featurespeed.contract.request import Kind
from featurespeed.jobs import AsyncJob, Job
from featurespeed.progress import progress_on_terminal
from featurespeed.retry import CONNECT_TIMEOUT, REQUEST_TIMEOUT
from featurespeed.session import OnEvent, Session
from featurespeed.spec_files import Spec
from featurespeed.version import __version__

API_KEY = "FEATURESPEED_API_KEY"
"""Environment variable with the API key."""


class Client:
    """A client of the service at ``base_url``.

    ``timeout``: seconds that one request may wait for the server (not how long a job may take). ``transport`` replaces
    the network, ``headers`` are added to every request. ``api_key``: the key ``fsk_…`` of a service that asks for one;
    else that in the environment variable FEATURESPEED_API_KEY. Specifications are a dict, a JobRequest, or the path
    of a YAML or JSON file; files that they name by ``data.path`` or ``checkpoint.path`` are uploaded. Every method may
    raise ServerUnreachable (after retries) and ProblemError; those that take a specification SpecError (InvalidSpec if
    the server refused it) and OSError.

        report = Client("http://localhost:8000").recommend("transformer.yaml")
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float = REQUEST_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ) -> None:
        settings = _settings(base_url, timeout, headers, api_key)
        self._session = Session(BlockingConnection(httpx.Client(transport=transport, **settings)), settings["timeout"])

    def recommend(self, spec: Spec, *, timeout: float | None = None, on_event: OnEvent | None = None) -> Report:
        """Initialization scales and learning rates, when they are there.

        ``on_event`` is called with every event; without it, progress is shown on standard error if that is a terminal.
        ``timeout``: seconds; none, for as long as the job takes. A wait that is given up (deadline, Ctrl-C) cancels the
        job. Raises JobFailed, JobCancelled, DeadlineExceeded.
        """
        with progress_on_terminal(on_event) as listener:
            return finish(self._session.answer(spec, "recommend", timeout, listener))

    def measure(self, spec: Spec, *, timeout: float | None = None, on_event: OnEvent | None = None) -> Report:
        """Angles, speeds and the rest under a given scaling, when they are there; as :meth:`recommend`."""
        with progress_on_terminal(on_event) as listener:
            return finish(self._session.answer(spec, "measure", timeout, listener))

    def submit(self, spec: Spec) -> Job:
        """Submit a specification, which must have a ``kind``; returns at once."""
        return Job(self._session, finish(self._session.submit(spec)))

    def job(self, job_id: str) -> Job:
        """The job of that name; raises NotFound."""
        return Job(self._session, finish(self._session.job(job_id)))

    def jobs(self, *, status: Status | None = None, kind: Kind | None = None) -> Iterator[Job]:
        """All jobs, or those of one status or kind, newest first; fetched page by page."""
        for info in drain(self._session.jobs(status, kind)):
            yield Job(self._session, info)

    def upload_dataset(self, path: str | os.PathLike[str]) -> str:
        """Upload a safetensors file with ``inputs`` and ``targets``; its SHA-256, which a specification names."""
        return finish(self._session.upload("datasets", Path(path)))

    def upload_checkpoint(self, path: str | os.PathLike[str]) -> str:
        """Upload what ``featurespeed_workers.save_checkpoint`` wrote; its SHA-256, which a specification names."""
        return finish(self._session.upload("checkpoints", Path(path)))

    def schema(self) -> dict[str, Any]:
        """JSON Schema of JobRequest and Report."""
        return finish(self._session.schema())

    def close(self) -> None:
        """Close all connections."""
        finish(self._session.connection.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same client for asyncio: see :class:`Client`, whose methods are awaited here."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float = REQUEST_TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ) -> None:
        settings = _settings(base_url, timeout, headers, api_key)
        http = httpx.AsyncClient(transport=transport, **settings)
        self._session = Session(AwaitingConnection(http), settings["timeout"])

    async def recommend(self, spec: Spec, *, timeout: float | None = None, on_event: OnEvent | None = None) -> Report:
        """See :meth:`Client.recommend`."""
        with progress_on_terminal(on_event) as listener:
            return await self._session.answer(spec, "recommend", timeout, listener)

    async def measure(self, spec: Spec, *, timeout: float | None = None, on_event: OnEvent | None = None) -> Report:
        """See :meth:`Client.measure`."""
        with progress_on_terminal(on_event) as listener:
            return await self._session.answer(spec, "measure", timeout, listener)

    async def submit(self, spec: Spec) -> AsyncJob:
        """See :meth:`Client.submit`."""
        return AsyncJob(self._session, await self._session.submit(spec))

    async def job(self, job_id: str) -> AsyncJob:
        """See :meth:`Client.job`."""
        return AsyncJob(self._session, await self._session.job(job_id))

    async def jobs(self, *, status: Status | None = None, kind: Kind | None = None) -> AsyncIterator[AsyncJob]:
        """See :meth:`Client.jobs`."""
        async for info in self._session.jobs(status, kind):
            yield AsyncJob(self._session, info)

    async def upload_dataset(self, path: str | os.PathLike[str]) -> str:
        """See :meth:`Client.upload_dataset`."""
        return await self._session.upload("datasets", Path(path))

    async def upload_checkpoint(self, path: str | os.PathLike[str]) -> str:
        """See :meth:`Client.upload_checkpoint`."""
        return await self._session.upload("checkpoints", Path(path))

    async def schema(self) -> dict[str, Any]:
        """See :meth:`Client.schema`."""
        return await self._session.schema()

    async def close(self) -> None:
        """See :meth:`Client.close`."""
        await self._session.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _settings(base_url: str, timeout: float, headers: Mapping[str, str] | None, api_key: str | None) -> dict[str, Any]:
    """What both of httpx's clients are made with; raises ValueError for a URL that is none, or a key that is none."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url: {error} (got {base_url!r})") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url: should begin with http:// or https:// and name a host (got {base_url!r})")
    return {
        "base_url": url,
        "timeout": httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
        "headers": {"User-Agent": f"featurespeed/{__version__}", **_authorization(api_key), **(headers or {})},
    }


def is_key(text: str) -> bool:
    """Whether a header can carry the text as a key, or it is empty."""
    return text.isascii() and text.isprintable() and " " not in text


def _authorization(api_key: str | None) -> dict[str, str]:
    key = (os.environ.get(API_KEY, "") if api_key is None else api_key).strip()
    if not is_key(key):
        raise ValueError("api_key: should be the text fsk_… that the operator gave out, which has no spaces")
    return {"Authorization": f"Bearer {key}"} if key else {}
