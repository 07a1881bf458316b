"""A look at something that may hang, such as a database: bounded in time, and one at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK_SECONDS = 2.0
"""Shorter than what probes and scrapers wait."""


class Look(Generic[T]):
    """Calls ``look`` in a thread of its own. Whoever asks while a call is under way gets the answer of that call.

    So a database that hangs costs one thread, however often it is asked for, and no end of the process waits for it.
    """

    def __init__(self, look: Callable[[], T], seconds: float = LOOK_SECONDS) -> None:
        self._look = look
        self._seconds = seconds
        self._under_way: asyncio.Future[T] | None = None

    async def ask(self) -> T:
        """What ``look`` gives; raises what it raises, or TimeoutError."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._run, args=(self._under_way,), daemon=True).start()
        return await asyncio.wait_for(asyncio.shield(self._under_way), self._seconds)

    def _run(self, answer: asyncio.Future[T]) -> None:
        loop = answer.get_loop()
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            try:
                found = self._look()
            except Exception as error:
                loop.call_soon_threadsafe(_give, answer, error)
            else:
                loop.call_soon_threadsafe(_give, answer, found)


def _give(answer: asyncio.Future[T], found: T | Exception) -> None:
    if isinstance(found, Exception):
        answer.set_exception(found)
        answer.exception()  # whoever asked may have gone
    else:
        answer.set_result(found)
