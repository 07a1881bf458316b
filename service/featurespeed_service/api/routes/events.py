"""What a job says while it runs, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from featurespeed.contract import TERMINAL, Job
from featurespeed_service.api.context import Ctx
from featurespeed_service.api.parameters import DIGITS
from featurespeed_service.api.problems import declared
from featurespeed_service.api.refusals import Forbidden, Unauthenticated
from featurespeed_service.api.security import Access, Reading
from featurespeed_service.api.watching import Watch
from featurespeed_service.store.errors import JobNotFound, StoreError, StoreUnavailable
from featurespeed_service.store.records import Event

RECHECK_SECONDS = 1.0
"""How often an open stream asks whether its key is still valid."""

router = APIRouter(prefix="/v1", tags=["jobs"])


def existing_job(access: Reading, job_id: str) -> Job:
    """The job, asked for before the stream begins, so that an unknown one is a problem; raises JobNotFound."""
    return access.store.get(job_id)


@router.get(
    "/jobs/{job_id}/events", response_class=EventSourceResponse, responses=declared("not-found", "invalid-request")
)
async def events(
    context: Ctx,
    access: Reading,
    found: Annotated[Job, Depends(existing_job)],
    last_event_id: Annotated[int, Header(ge=0, le=2**63 - 1), DIGITS] = 0,
) -> AsyncIterable[ServerSentEvent]:
    """Events ``status`` (a Job), ``progress`` and ``measurement``, from the beginning or after Last-Event-ID.

    The stream ends with the status in which the job ends. A job that is measured again after a crash may tell a
    measurement twice; progress that newer progress has replaced is not told any more.
    """
    seen, job = last_event_id, found
    with context.metrics.event_streams.track_inprogress(), context.watcher.watch(job.id) as watch:
        while True:
            try:
                new = await run_in_threadpool(access.store.events, job.id, seen)
                if not new and seen > 0 and (latest := await run_in_threadpool(_find, access, job.id)):
                    job = latest  # it may have ended before the event that the client says it has seen
            except StoreError:
                return  # the client comes again with Last-Event-ID
            for event in new:
                seen = event.seq
                yield ServerSentEvent(event=event.type, raw_data=event.data, id=str(event.seq))
                if _is_end(event):
                    return
            if job.status in TERMINAL:  # it had ended before, and all was told: tell the end again
                yield ServerSentEvent(event="status", raw_data=job.model_dump_json(), id=str(seen))
                return
            if not await _news(watch, access):
                return


def _find(access: Access, job_id: str) -> Job | None:
    try:
        return access.store.get(job_id)
    except JobNotFound:
        return None


async def _news(watch: Watch, access: Access) -> bool:
    """Wait for events; ``False`` if no more will come, or the key does not allow to see them any more."""
    more: bool | None = None  # what was told is told once: it is kept while the key cannot be asked about
    while True:
        if more is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_SECONDS):
                    more = await watch.news()
        try:
            await access.recheck()
        except (Unauthenticated, Forbidden):
            return False
        except StoreUnavailable:  # nothing can be told either before the database answers
            await asyncio.sleep(RECHECK_SECONDS)
            continue
        if more is not None:
            return more


def _is_end(event: Event) -> bool:
    return event.type == "status" and Job.model_validate_json(event.data).status in TERMINAL
