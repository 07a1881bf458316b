"""What a dispatcher tidies up beside its work: one small batch at a time, so that no lease waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from featurespeed_service.settings import DAY_SECONDS, Settings
from featurespeed_service.store.interface import RetentionStore

log = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
BATCH = 50
THIN_AFTER_SECONDS = 7 * DAY_SECONDS
"""When the measurements that a job told on its way, and the cells of its report, are no longer kept."""


class Housekeeping:
    """Applies the retention policy once an hour; made to be called at every turn of a loop."""

    def __init__(self, store: RetentionStore, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._seconds = settings.retention_days * DAY_SECONDS
        self._clock = clock
        self._due = clock()
        self._round: Iterator[None] | None = None

    def step(self) -> None:
        """Do one batch of the round that is due, if one is."""
        if self._round is None:
            if self._clock() < self._due:
                return
            self._due = self._clock() + EVERY_SECONDS
            self._round = self._batches()
        try:
            next(self._round)
        except StopIteration:
            self._round = None

    def _batches(self) -> Iterator[None]:
        if self._seconds:  # else they are kept for ever
            deleted = "deleted %d jobs that ended long ago"
            yield from self._repeat(deleted, lambda: self._store.prune(seconds=self._seconds, limit=BATCH))
            unused = "deleted %d datasets that were used long ago"
            yield from self._repeat(unused, lambda: self._store.prune_datasets(seconds=self._seconds, limit=1))
        thinned = "thinned %d jobs that ended long ago"
        yield from self._repeat(thinned, lambda: self._store.thin(seconds=THIN_AFTER_SECONDS, limit=BATCH))
        self._store.forget_keys()
        yield
        self._store.drop_abandoned_uploads()

    def _repeat(self, what: str, batch: Callable[[], int]) -> Iterator[None]:
        total = 0
        while done := batch():
            total += done
            yield
        if total:
            log.info(what, total)
