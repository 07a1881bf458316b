"""What the routes share: the store, the datasets, the settings."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from featurespeed_service.api.looking import Look
from featurespeed_service.api.metrics import Metrics
from featurespeed_service.api.watching import Watcher
from featurespeed_service.settings import Settings
from featurespeed_service.store.interface import JobStore
from featurespeed_service.store.records import Statistics

if TYPE_CHECKING:
    from featurespeed_service.api.security import Gate

LARGE_BODIES = 8


@dataclass(frozen=True)
class Context:
    """Everything that a route may use, besides what its :class:`~featurespeed_service.api.security.Access` reaches."""

    settings: Settings
    gate: Gate
    every_tenant: JobStore
    """The jobs of all. For the state of the service: a route that serves users has the store of its Access."""
    metrics: Metrics
    health: Look[tuple[str | None, float | None]]
    """The database's revision, and the seconds since a dispatcher last showed life."""
    statistics: Look[Statistics]
    watcher: Watcher
    stopping: asyncio.Event
    """Set when the server is about to stop: event streams end."""
    large_bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_BODIES))
    """Held by each request with a large specification, so that many at once take no more memory than a few."""
    parser: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "parser"))
    """Parses these, one by one: each takes many times its size, of which every thread would keep its own."""


async def context_of(request: Request) -> Context:
    """The context that ``create_app`` made. Asynchronous, as the framework calls others in a thread."""
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(context_of)]
