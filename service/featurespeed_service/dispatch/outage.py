"""How a dispatcher lives through an outage of the database: cells run on, what they tell waits in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from featurespeed_service.store.errors import StoreUnavailable

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 2.0


class Outage:
    """When the store may be asked again, after it could not be reached.

    ``alive`` is called before each step: one may wait for a lock for as long as the store does.
    """

    def __init__(self, alive: Callable[[], None] = lambda: None) -> None:
        self._alive = alive
        self._pause = FIRST_PAUSE_SECONDS
        self._next = 0.0

    def ask(self, *steps: Callable[[], None]) -> None:
        """Take steps that need the store, unless it is too early; ends with the first that cannot reach it.

        A step must be one that may be taken again from its beginning.
        """
        if time.monotonic() < self._next:
            return
        with self.noticed():
            for step in steps:
                self._alive()
                step()
            self._pause = FIRST_PAUSE_SECONDS

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """End the block where the store cannot be reached, and wait longer each time before it is asked again."""
        self._alive()
        try:
            yield
        except StoreUnavailable as error:
            log.warning("going on without the database, trying it again in %.1f s: %s", self._pause, error)
            self._next = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LAST_PAUSE_SECONDS)
