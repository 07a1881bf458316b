"""The application, built from data in one function. Imports neither ray nor torch."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from featurespeed.contract import JobRequest, Problem
from featurespeed.version import __version__
from featurespeed_service.api import problems
from featurespeed_service.api.browsers import BrowserGuard
from featurespeed_service.api.context import Context
from featurespeed_service.api.looking import Look
from featurespeed_service.api.metrics import Metrics
from featurespeed_service.api.middleware import HeadMiddleware, RequestMiddleware
from featurespeed_service.api.routes import datasets, events, jobs, operations, views, web
from featurespeed_service.api.security import Gate
from featurespeed_service.api.watching import Watcher
from featurespeed_service.settings import Settings
from featurespeed_service.store.sql import SqlStore

DESCRIPTION = "Send your architecture, get back the initialization scale and learning rate of every block."
ROUTERS = (jobs.router, events.router, datasets.router, operations.router, views.router, web.router)

ANYWHERE = ("internal-error", "database-unavailable", "insufficient-storage")
"""Problems that every operation may answer with."""


class _Application(FastAPI):
    needs_keys: bool

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with what FastAPI does not see: the spec, problems, whether keys are needed."""
        if not self.openapi_schema:
            _complete(super().openapi())
            if not self.needs_keys:
                _open(super().openapi())
        return super().openapi()


def _complete(document: dict[str, Any]) -> None:
    """Bodies of submissions are read by hand, and errors are problems, not FastAPI's own."""
    template = "#/components/schemas/{model}"
    _, found = models_json_schema([(JobRequest, "validation"), (Problem, "serialization")], ref_template=template)
    schemas = document["components"]["schemas"]
    for name, schema in found["$defs"].items():
        schemas.setdefault(name, schema)
    anywhere = {str(status): answer for status, answer in problems.declared(*ANYWHERE).items()}
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"]["422"] = problems.declared("invalid-request")[422]
            operation["responses"] |= {s: a for s, a in anywhere.items() if s not in operation["responses"]}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _open(document: dict[str, Any]) -> None:
    """Nobody is asked for a key."""
    document["components"].pop("securitySchemes")
    for path in document["paths"].values():
        for operation in path.values():
            operation.pop("security", None)


def create_app(settings: Settings, store: SqlStore) -> FastAPI:
    """The HTTP application over a store; its context is ``app.state.context``.

    Without ``settings.require_keys`` it is open to all that reach it, but for browsers that act for foreign pages.
    """
    gate = Gate(store.keys, required=bool(settings.require_keys))
    metrics, stopping = Metrics(__version__), asyncio.Event()
    app = _Application(
        title="featurespeed",
        version=__version__,
        description=DESCRIPTION,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages ask others for their scripts; /docs is routes/web.py's
        redoc_url=None,
    )
    app.needs_keys = gate.required
    health = Look(lambda: (store.revision(), store.last_heartbeat()))
    app.state.context = Context(
        settings,
        gate,
        store,
        metrics,
        health,
        statistics=Look(lambda: store.statistics(settings.lease_seconds)),
        watcher=Watcher(lambda job_ids: store.newest_events(job_ids), stopping),
        stopping=stopping,
    )
    app.add_middleware(HeadMiddleware)
    if not gate.required:
        app.add_middleware(BrowserGuard)
    app.add_middleware(RequestMiddleware, metrics=metrics)  # the last one added is the outermost
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
