"""What a job says while it runs, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from featurespeed.contract import TERMINAL, Job, Problem
from featurespeed_service.context import Ctx
from featurespeed_service.store import Event

POLL_SECONDS = 0.05
"""How often a stream looks for news: half of it is the mean delay of an event."""

router = APIRouter(prefix="/v1", tags=["jobs"])


def existing_job(context: Ctx, job_id: str) -> Job:
    """The job, asked for before the stream begins, so that an unknown one is a problem; raises JobNotFound."""
    return context.store.get(job_id)


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse, responses={404: {"model": Problem}})
async def events(
    context: Ctx,
    job: Annotated[Job, Depends(existing_job)],
    last_event_id: Annotated[int, Header(ge=0)] = 0,
) -> AsyncIterable[ServerSentEvent]:
    """Events ``status`` (a Job), ``progress`` and ``measurement``, from the beginning or after Last-Event-ID.

    The stream ends with the status in which the job ends. A job that is measured again after a crash may tell a
    measurement twice; progress that newer progress has replaced is not told any more.
    """
    seen = last_event_id
    while not context.stopping.is_set():
        for event in await run_in_threadpool(context.store.events, job.id, seen):
            seen = event.seq
            yield _sse(event)
            if event.type == "status" and _is_last(event):
                return
        if job.status in TERMINAL:  # it had ended before, and all is told: tell the end again
            yield ServerSentEvent(event="status", raw_data=job.model_dump_json(), id=str(seen))
            return
        await asyncio.sleep(POLL_SECONDS)


def _sse(event: Event) -> ServerSentEvent:
    return ServerSentEvent(event=event.type, raw_data=event.data, id=str(event.seq))


def _is_last(event: Event) -> bool:
    return Job.model_validate_json(event.data).status in TERMINAL
