"""The application, built from data in one function. Imports neither ray nor torch."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from featurespeed.contract import JobRequest
from featurespeed.version import __version__
from featurespeed_service.api import problems
from featurespeed_service.api.context import Context
from featurespeed_service.api.datasets import DatasetLibrary
from featurespeed_service.api.metrics import Metrics
from featurespeed_service.api.middleware import RequestMiddleware
from featurespeed_service.api.routes import datasets, events, jobs, operations
from featurespeed_service.settings import Settings
from featurespeed_service.store.interface import JobStore

DESCRIPTION = "Send your architecture, get back the initialization scale and learning rate of every block."
ROUTERS = (jobs.router, events.router, datasets.router, operations.router)


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with the spec's schema: the body of a submission is read by hand."""
        if not self.openapi_schema:
            document = super().openapi()
            template = "#/components/schemas/{model}"
            _, schemas = models_json_schema([(JobRequest, "validation")], ref_template=template)
            for name, schema in schemas["$defs"].items():
                document["components"]["schemas"].setdefault(name, schema)
        return super().openapi()


def create_app(settings: Settings, store: JobStore) -> FastAPI:
    """The HTTP application over a store; its context is ``app.state.context``."""
    metrics = Metrics(store)
    app = _Application(title="featurespeed", version=__version__, description=DESCRIPTION)
    app.state.context = Context(settings, store, DatasetLibrary(settings.datasets_dir), metrics)
    app.add_middleware(RequestMiddleware, metrics=metrics)
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
