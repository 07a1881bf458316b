"""For people and machines who look after the service: schema, health, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from featurespeed.contract import JobRequest, Report
from featurespeed_service import logs
from featurespeed_service.api.context import Ctx
from featurespeed_service.api.problems import NotReady, declared
from featurespeed_service.api.security import Watching
from featurespeed_service.store.migrating import head

HEARTBEAT_TIMEOUT_SECONDS = 10.0
"""A dispatcher silent for so long is taken for gone."""

log = logs.get(__name__)

router = APIRouter(tags=["operations"])


@router.get("/v1/schema")
def schema() -> dict[str, Any]:
    """JSON Schema of what is sent and of what comes back."""
    return {
        "JobRequest": JobRequest.model_json_schema(mode="validation"),
        "Report": Report.model_json_schema(mode="serialization"),
    }


@router.get("/livez")
def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses=declared("not-ready"))
async def readyz(context: Ctx) -> dict[str, str]:
    """Jobs are accepted: the database answers, at this program's revision. Also told: whether a dispatcher lives."""
    if context.stopping.is_set():
        raise NotReady("the service is about to stop")
    try:
        revision, age = await context.health.ask()
    except TimeoutError:
        raise NotReady("the database does not answer") from None
    except Exception as error:
        raise NotReady(f"the database cannot be reached ({type(error).__name__})") from None
    if revision != head():
        raise NotReady(f"the database is at revision {revision}, this program at {head()}")
    return {"status": "ready", "dispatcher": _dispatcher(age)}


def _dispatcher(age: float | None) -> str:
    if age is None:
        return "none yet"
    return "alive" if age <= HEARTBEAT_TIMEOUT_SECONDS else f"silent for {age:.0f} s"


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(context: Ctx, access: Watching) -> Response:
    """Metrics in Prometheus' text format; without a database, those of this process."""
    try:
        statistics = await context.statistics.ask()
    except Exception as error:
        log.warning("metrics lack what the database knows", error=type(error).__name__)
        statistics = None
    return Response(context.metrics.text(statistics), media_type="text/plain; version=0.0.4; charset=utf-8")
