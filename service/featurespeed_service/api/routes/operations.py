"""For people and machines who look after the service: schema, health, metrics, the web page."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
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


@cache
def _page() -> tuple[str, str]:
    """The web page, and its content security policy."""
    text = files("featurespeed_service.api").joinpath("page.html").read_text(encoding="utf-8")
    # by their digests, so that nothing else runs, and nothing that was slipped in reads the key
    style, script = (_digest(text, tag) for tag in ("style", "script"))
    own = f"style-src {style}; script-src {script}; connect-src 'self'; img-src data:"
    return text, f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _digest(page: str, tag: str) -> str:
    content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


@router.get("/", include_in_schema=False)
def page() -> Response:
    """The web page."""
    text, policy = _page()
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")
