"""Handles of submitted jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from featurespeed.connection import drain, finish
from featurespeed.contract import job as wire
from featurespeed.contract.report import Report
from featurespeed.contract.request import Kind
from featurespeed.events import Event
from featurespeed.session import OnEvent, Session


class _Handle:
    """What a handle knows without asking: the job as the service last described it (``info``)."""

    def __init__(self, session: Session, info: wire.Job) -> None:
        self._session = session
        self.info = info

    @property
    def id(self) -> str:
        """The job's name, for :meth:`Client.job`."""
        return self.info.id

    @property
    def kind(self) -> Kind:
        """The question."""
        return self.info.kind

    @property
    def status(self) -> wire.Status:
        """The status when the job was last looked at; see :meth:`refresh`."""
        return self.info.status

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.kind} {self.status}>"


class Job(_Handle):
    """A submitted job; made by :class:`featurespeed.Client`."""

    def refresh(self) -> wire.Job:
        """Look at the job; also updates ``info``."""
        self.info = finish(self._session.job(self.id))
        return self.info

    def wait(self, *, timeout: float | None = None, on_event: OnEvent | None = None) -> Report:
        """The report, when it is there; ``on_event`` is called with every event on the way.

        ``timeout``: seconds; none, for as long as the job takes. A server that does not answer is given up after about
        a minute in any case. Raises JobFailed, JobCancelled, DeadlineExceeded (the job goes on), ServerUnreachable.
        """
        return finish(self._session.wait(self.id, timeout, on_event))

    def events(self, *, timeout: float | None = None) -> Iterator[Event]:
        """Status, progress and measurements as they happen, up to the status that says that the job has ended."""
        return drain(self._session.follow(self.id, timeout=timeout))

    def result(self) -> Report:
        """The report, without waiting; raises JobFailed, JobCancelled, or Conflict if the job has not ended."""
        return finish(self._session.result(self.id))

    def cancel(self) -> wire.Job:
        """Ask for the job to be stopped; also updates ``info``."""
        self.info = finish(self._session.cancel(self.id))
        return self.info

    def retry(self) -> Job:
        """Queue a failed or cancelled job again, as a new job that takes over what was finished; raises Conflict.

        However often it is asked for, it is one new job.
        """
        return Job(self._session, finish(self._session.retry(self.id)))

    def delete(self) -> None:
        """Delete the job and its report; raises Conflict if it has not ended."""
        finish(self._session.delete(self.id))


class AsyncJob(_Handle):
    """A submitted job; made by :class:`featurespeed.AsyncClient`. See :class:`Job`."""

    async def refresh(self) -> wire.Job:
        """Look at the job; also updates ``info``."""
        self.info = await self._session.job(self.id)
        return self.info

    async def wait(self, *, timeout: float | None = None, on_event: OnEvent | None = None) -> Report:
        """See :meth:`Job.wait`."""
        return await self._session.wait(self.id, timeout, on_event)

    def events(self, *, timeout: float | None = None) -> AsyncIterator[Event]:
        """See :meth:`Job.events`."""
        return self._session.follow(self.id, timeout=timeout)

    async def result(self) -> Report:
        """See :meth:`Job.result`."""
        return await self._session.result(self.id)

    async def cancel(self) -> wire.Job:
        """Ask for the job to be stopped; also updates ``info``."""
        self.info = await self._session.cancel(self.id)
        return self.info

    async def retry(self) -> AsyncJob:
        """See :meth:`Job.retry`."""
        return AsyncJob(self._session, await self._session.retry(self.id))

    async def delete(self) -> None:
        """See :meth:`Job.delete`."""
        await self._session.delete(self.id)
