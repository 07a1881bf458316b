"""For people and machines who look after the service: schema, health, metrics, the web page."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Response

from featurespeed.contract import JobRequest, Report
from featurespeed_service.api.context import Context, Ctx
from featurespeed_service.api.problems import problem
from featurespeed_service.api.problems import response as problem_response

HEARTBEAT_TIMEOUT_SECONDS = 10.0
"""A dispatcher silent for so long is taken for gone."""

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


@router.get("/readyz")
def readyz(context: Ctx) -> Response:
    """Jobs are accepted, and somebody works on them."""
    if reason := _why_not_ready(context):
        return problem_response(problem("not-ready", "Not ready", HTTPStatus.SERVICE_UNAVAILABLE, reason))
    return Response('{"status":"ready"}', media_type="application/json")


def _why_not_ready(context: Context) -> str | None:
    try:
        age = context.store.last_heartbeat()
    except Exception as error:
        return f"the job store cannot be reached ({type(error).__name__})"
    if age is None:
        return "no dispatcher has started yet"
    return f"the dispatcher has been silent for {age:.0f} s" if age > HEARTBEAT_TIMEOUT_SECONDS else None


@router.get("/metrics")
def metrics(context: Ctx) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(context.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@cache
def _page() -> str:
    return files("featurespeed_service.api").joinpath("page.html").read_text(encoding="utf-8")


@router.get("/", include_in_schema=False)
def page() -> Response:
    """The web page."""
    # everything comes from this service: a page that runs no other script cannot be talked into it
    own = "style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
    policy = f"default-src 'none'; {own}; base-uri 'none'; frame-ancestors 'none'"
    return Response(_page(), headers={"Content-Security-Policy": policy}, media_type="text/html; charset=utf-8")
