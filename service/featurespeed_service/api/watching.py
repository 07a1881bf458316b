"""One look at the database for all open event streams: what is new, and for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context

from fastapi.concurrency import run_in_threadpool

from featurespeed_service import logs

log = logs.get(__name__)

POLL_SECONDS = 0.05
"""How often the database is asked while anybody watches: half of it is the mean delay of an event."""
LONGEST_PAUSE_SECONDS = 1.0
"""The same while it does not answer."""

Newest = Callable[[Sequence[str]], Mapping[str, int]]
"""From ids of jobs to the number of each one's newest event; jobs that are gone are left out."""


class Watch:
    """One stream's interest in one job."""

    def __init__(self) -> None:
        self._newest: int | None = None
        self._over = False
        self._changed = asyncio.Event()

    def tell(self, newest: int | None) -> None:
        """The number of the newest event; ``None`` if nothing more will come."""
        if newest is None or newest != self._newest:
            self._newest, self._over = newest, newest is None
            self._changed.set()

    async def news(self) -> bool:
        """Wait for events; ``False`` if no more will come: the job is gone, or the service stops."""
        await self._changed.wait()
        self._changed.clear()
        return not self._over


class Watcher:
    """Looks for news of all watched jobs at once, as long as any job is watched. Belongs to one event loop."""

    def __init__(self, newest: Newest, stopping: asyncio.Event) -> None:
        self._newest = newest
        self._stopping = stopping
        self._watches: dict[str, set[Watch]] = {}
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """A watch on a job, until the end of the context."""
        watch = Watch()
        self._watches.setdefault(job_id, set()).add(watch)
        if self._task is None or self._task.done():
            # in a context of its own: it is not part of the request that happens to be the first
            self._task = asyncio.create_task(self._look(), context=Context())
        try:
            yield watch
        finally:
            self._watches[job_id].discard(watch)
            if not self._watches[job_id]:
                del self._watches[job_id]

    async def _look(self) -> None:
        pause = POLL_SECONDS
        while self._watches and not self._stopping.is_set():
            asked = list(self._watches)
            try:
                found = await run_in_threadpool(self._newest, asked)
            except Exception as error:  # whatever it is, the streams wait, and are told when it has passed
                if pause == POLL_SECONDS:
                    log.warning("event streams wait for the database", error=str(error))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                pause = POLL_SECONDS
                for job_id in asked:
                    self._tell(job_id, found.get(job_id))
            await asyncio.sleep(pause)
        for job_id in self._watches:
            self._tell(job_id, None)

    def _tell(self, job_id: str, newest: int | None) -> None:
        for watch in self._watches.get(job_id, ()):
            watch.tell(newest)
