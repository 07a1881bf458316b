"""For the web page, and no part of the contract: a report as it is shown, and the list of jobs as it changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import ValidationError

from featurespeed.contract import Job, Report
from featurespeed.figures import figures_of
from featurespeed.figures.tables import facts_of, tables_of
from featurespeed.snippet import snippet
from featurespeed_service.api.context import Ctx
from featurespeed_service.api.refusals import Forbidden, Unauthenticated
from featurespeed_service.api.security import Access, Reading
from featurespeed_service.store.errors import StoreError, WrongStatus

LISTED_JOBS = 50
LOOK_SECONDS = 1.0
"""How often the list is looked at for each page that is open."""

router = APIRouter(prefix="/v1", include_in_schema=False)


@router.get("/jobs/{job_id}/view")
def view(access: Reading, job_id: str) -> Response:
    """The report of a job that has succeeded as tables, figures in plotly's terms, and lines of PyTorch."""
    text, job = access.store.result(job_id).text, access.store.get(job_id)
    try:
        report = Report.model_validate_json(text)
    except ValidationError:
        told = f"the report of {job_id} is another version's and cannot be shown; /v1/jobs/{job_id}/result has it"
        raise WrongStatus(job, told) from None
    shown = {
        "facts": facts_of(report),
        "warnings": report.warnings,
        "tables": [asdict(table) for table in tables_of(report)],
        "figures": {
            name: {**f.to_dict(), "title": f.title, "caption": f.caption} for name, f in figures_of(report).items()
        },
        "snippet": snippet(report, job.request),
    }
    return Response(json.dumps(shown, allow_nan=False), media_type="application/json")


@router.get("/events", response_class=EventSourceResponse)
async def jobs_events(context: Ctx, access: Reading) -> AsyncIterable[ServerSentEvent]:
    """Events ``jobs``: the newest jobs in short, at once and whenever one of them changes."""
    told = ""
    with context.metrics.event_streams.track_inprogress():
        while not context.stopping.is_set():
            try:
                page = await run_in_threadpool(access.store.page, limit=LISTED_JOBS)
            except StoreError:
                return  # the page comes again
            data = json.dumps({"jobs": [_short(job) for job in page.jobs], "next_cursor": page.next_cursor})
            if data != told:
                yield ServerSentEvent(event="jobs", raw_data=data)
                told = data
            if not await _may_go_on(context.stopping, access):
                return


def _short(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "family": job.request.architecture.family,
        "status": job.status,
        "created_at": job.created_at.isoformat(),
        "fraction": job.progress.fraction,
        "message": job.progress.message,
    }


async def _may_go_on(stopping: asyncio.Event, access: Access) -> bool:
    """Wait a little; whether the service runs on, and the key is still good."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            await stopping.wait()
        return False
    except TimeoutError:
        pass
    try:
        await access.recheck()
    except (Unauthenticated, Forbidden, StoreError):
        return False
    return True
