"""What a dispatcher tidies up beside its work: one small batch at a time, so that no lease waits for it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from featurespeed_service.settings import DAY_SECONDS, Settings
from featurespeed_service.store.errors import StoreUnavailable
from featurespeed_service.store.interface import RetentionStore

log = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
BATCH = 50
THIN_AFTER_SECONDS = 7 * DAY_SECONDS
"""When the measurements that a job told on its way, and the cells of its report, are no longer kept."""


@dataclass
class _Task:
    """Batches of one kind: until one finds nothing more to do."""

    done: str
    batch: Callable[[], int]
    total: int = 0


class Housekeeping:
    """Applies the retention policy once an hour; made to be called at every turn of a loop."""

    def __init__(self, store: RetentionStore, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._seconds = settings.retention_days * DAY_SECONDS
        self._clock = clock
        self._due = clock()
        self._round: deque[_Task] = deque()

    def step(self) -> None:
        """Do one batch of the round that is due, if one is; where the store cannot be reached, the same one again."""
        if not self._round:
            if self._clock() < self._due:
                return
            self._due = self._clock() + EVERY_SECONDS
            self._round.extend(self._tasks())
        task = self._round[0]
        try:
            number = task.batch()
        except StoreUnavailable:
            raise
        except Exception:  # nobody's job depends on it
            log.exception("housekeeping failed; the next round tries it again")
            number = 0
        task.total += number
        if number == 0:
            self._round.popleft()
            if task.total:
                log.info("%s: %d", task.done, task.total)

    def _tasks(self) -> Iterator[_Task]:
        store, seconds = self._store, self._seconds
        if seconds:  # else they are kept for ever
            yield _Task("deleted jobs that ended long ago", lambda: store.prune(seconds=seconds, limit=BATCH))
            yield _Task("deleted datasets that nobody used for long", lambda: store.prune_datasets(seconds=seconds))
        yield _Task("thinned jobs", lambda: store.thin(seconds=THIN_AFTER_SECONDS, limit=BATCH))
        yield _Task("forgot keys of deleted jobs", store.forget_keys)
        yield _Task("dropped pieces of no dataset", store.drop_orphans)
