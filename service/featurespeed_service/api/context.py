"""What the routes share: the store, the datasets, the settings; and how a body is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from featurespeed.contract import FieldError, SpecError
from featurespeed_service.api.datasets import DatasetLibrary
from featurespeed_service.api.looking import Look
from featurespeed_service.api.metrics import Metrics
from featurespeed_service.api.problems import BodyTooLarge
from featurespeed_service.api.watching import Watcher
from featurespeed_service.settings import Settings
from featurespeed_service.store.interface import JobStore, Statistics

DISCARDED_BYTES = 16 * 2**20
"""Bytes beyond a limit that are still read, so that a client which sends first hears the answer."""


@dataclass(frozen=True)
class Context:
    """Everything that a route may use."""

    settings: Settings
    store: JobStore
    metrics: Metrics
    health: Look[tuple[str | None, float | None]]
    """The database's revision, and the seconds since a dispatcher last showed life."""
    statistics: Look[Statistics]
    watcher: Watcher
    stopping: asyncio.Event
    """Set when the server is about to stop: event streams end."""

    @property
    def datasets(self) -> DatasetLibrary:
        """The datasets of the store's tenant."""
        return DatasetLibrary(self.store.datasets, self.settings.datasets_dir)


def context_of(request: Request) -> Context:
    """The context that ``create_app`` made."""
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(context_of)]


async def limited_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body in pieces; raises BodyTooLarge once it has more than ``limit`` bytes."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size <= limit:
            yield piece
        elif size > limit + DISCARDED_BYTES:
            break
    if size > limit:
        raise BodyTooLarge(limit)


async def spec_body(request: Request, context: Ctx) -> str:
    """The text of a request that carries a spec; raises BodyTooLarge, and SpecError if it is not UTF-8."""
    body = b"".join([piece async for piece in limited_body(request, context.settings.max_spec_bytes)])
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        bound = f"must be JSON in UTF-8 (byte {error.start} is not)"
        raise SpecError([FieldError(field="body", value=None, bound=bound)]) from None
