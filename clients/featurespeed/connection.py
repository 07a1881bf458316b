"""The one place with I/O: what blocks and what awaits, behind one interface.

Everything above (retries, following a job, cleaning up) is written once, as coroutines over a :class:`Connection`.
The methods of :class:`BlockingConnection` never suspend, so :func:`finish` and :func:`drain` can run such coroutines to
their end without an event loop.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import httpx
from httpx_sse import EventSource, ServerSentEvent

from featurespeed.retry import CLEANUP_SECONDS, Deadline

T = TypeVar("T")
Body = Any
"""Whatever httpx takes as ``content``: it differs between its two clients."""


class Connection(Protocol):
    """A connection to one server. Transport errors are httpx's."""

    def build_request(self, method: str, path: str, **options: Any) -> httpx.Request:
        """A request to a path below the server's URL, with the user's headers."""

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send, and read the whole answer."""

    def stream(self, request: httpx.Request, deadline: Deadline) -> AbstractAsyncContextManager[EventStream]:
        """Send, and hand out the server-sent events as they come; DeadlineExceeded when the time is up."""

    def file_body(self, path: Path) -> AbstractAsyncContextManager[Body]:
        """A file as the body of a request, read piece by piece."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function that reads files or computes."""

    def cleanup(self) -> AbstractAsyncContextManager[None]:
        """A scope for a few last words after an interruption, itself not interrupted, and short."""

    async def close(self) -> None:
        """Close all connections."""


class EventStream:
    """An open stream: the response's head, and its events."""

    def __init__(self, response: httpx.Response, events: AsyncIterator[ServerSentEvent]) -> None:
        self.response = response
        self.events = events


class _TimedStream(httpx.SyncByteStream):
    """Bytes of a response until the deadline: keep-alives must not hide that the time is up."""

    def __init__(self, stream: httpx.SyncByteStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            self._deadline.remaining()
            yield piece

    def close(self) -> None:
        self._stream.close()


class BlockingConnection:
    """A Connection that blocks; none of its coroutines ever suspends."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def build_request(self, method: str, path: str, **options: Any) -> httpx.Request:
        """A request to a path below the server's URL."""
        return self._http.build_request(method, path, **options)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send, and read the whole answer."""
        return self._http.send(request)

    @asynccontextmanager
    async def stream(self, request: httpx.Request, deadline: Deadline) -> AsyncIterator[EventStream]:
        """Send, and hand out the events as they come."""
        response = self._http.send(request, stream=True)
        try:
            if not response.is_success:
                response.read()
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = _TimedStream(response.stream, deadline)
            async with aclosing(_never_suspending(EventSource(response).iter_sse())) as events:
                yield EventStream(response, events)
        finally:
            response.close()

    @asynccontextmanager
    async def file_body(self, path: Path) -> AsyncIterator[Body]:
        """The open file: httpx reads it in pieces."""
        with path.open("rb") as file:
            yield file

    async def sleep(self, seconds: float) -> None:
        """Block."""
        time.sleep(seconds)

    async def call(self, function: Callable[[], T]) -> T:
        """Call it."""
        return function()

    @asynccontextmanager
    async def cleanup(self) -> AsyncIterator[None]:
        """Nothing to shield from."""
        yield

    async def close(self) -> None:
        """Close all connections."""
        self._http.close()


class AwaitingConnection:
    """A Connection under asyncio."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    def build_request(self, method: str, path: str, **options: Any) -> httpx.Request:
        """A request to a path below the server's URL."""
        return self._http.build_request(method, path, **options)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send, and read the whole answer."""
        return await self._http.send(request)

    @asynccontextmanager
    async def stream(self, request: httpx.Request, deadline: Deadline) -> AsyncIterator[EventStream]:
        """Send, and hand out the events as they come."""
        response = await self._http.send(request, stream=True)
        try:
            if not response.is_success:
                await response.aread()
            async with aclosing(_until(deadline, EventSource(response).aiter_sse())) as events:
                yield EventStream(response, events)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    @asynccontextmanager
    async def file_body(self, path: Path) -> AsyncIterator[Body]:
        """The file in pieces, read in a thread."""

        async def pieces() -> AsyncIterator[bytes]:
            while piece := await file.read(1 << 16):
                yield piece

        async with await anyio.open_file(path, "rb") as file:
            yield pieces()

    async def sleep(self, seconds: float) -> None:
        """Let others run."""
        await anyio.sleep(seconds)

    async def call(self, function: Callable[[], T]) -> T:
        """Run it in a thread."""
        return await anyio.to_thread.run_sync(function)

    @asynccontextmanager
    async def cleanup(self) -> AsyncIterator[None]:
        """Shielded from cancellation for a few seconds."""
        with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
            yield

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


async def _never_suspending(items: Iterator[T]) -> AsyncGenerator[T]:
    for item in items:
        yield item


async def _until(deadline: Deadline, items: AsyncGenerator[T]) -> AsyncGenerator[T]:
    async with aclosing(items):
        while True:
            with anyio.move_on_after(deadline.remaining()) as scope:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            if scope.cancelled_caught:
                raise deadline.exceeded()
            yield item  # outside of the scope, which belongs to one task


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over a BlockingConnection."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking connection has suspended")


def drain(items: AsyncGenerator[T]) -> Iterator[T]:
    """The items of an asynchronous generator over a BlockingConnection, one by one."""
    try:
        while True:
            try:
                item = finish(items.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        finish(items.aclose())
