"""A cluster whose cells only wait, before the real dispatcher and the real store."""

from __future__ import annotations

import heapq
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count

from sqlalchemy import Connection, Engine, event

from benchmarks.nodes import trivial
from featurespeed.contract import JobRequest, MeasurementEvent
from featurespeed_service.dispatch.cluster import CellTask, Cluster, Ended
from featurespeed_service.dispatch.dispatcher import POLL_SECONDS, Dispatcher
from featurespeed_service.dispatch.shares import Capacity, Node, Share
from featurespeed_service.opening import opened
from featurespeed_service.settings import Settings
from featurespeed_service.store.database import _WRITES
from featurespeed_service.store.datasets import FileKind
from featurespeed_workers.cells import CellProgress
from featurespeed_workers.ray_tasks import Item, SentDataset
from featurespeed_workers.stages import CellKey

CPUS_PER_NODE = 8
STEP_SECONDS = 0.01
"""How long a step of a request takes: a cell of ``steps`` takes so many on average, a job's only one exactly."""
TELLS_PER_SECOND = 10
"""As often as a worker's cell tells its progress at most."""


@lru_cache(maxsize=10_000)
def _duration(request: str) -> tuple[float, bool]:
    """(mean seconds of a cell, whether the job has but one) of a request."""
    measurement = JobRequest.model_validate_json(request).measurement
    return measurement.steps * STEP_SECONDS, len(measurement.seeds) == 1


class SimulatedCluster(Cluster):
    """Nodes of eight CPUs; a cell tells its progress ten times a second, and its result when its time is up."""

    def __init__(self, nodes: int, settings: Settings, seed: int = 0) -> None:
        self._nodes = (Node(float(CPUS_PER_NODE)),) * nodes
        self._random = random.Random(seed)
        self._number = count()
        self._news: list[tuple[float, int, CellTask, float]] = []  # when it tells next, and when it ends
        self.cells_done = 0
        super().__init__(settings)

    def _look(self) -> Capacity:
        return Capacity(self._nodes)

    def submit(
        self,
        share: Share,
        request: str,
        key: CellKey,
        inputs: Mapping[CellKey, str],
        files: Mapping[FileKind, SentDataset],
    ) -> CellTask:
        """Start a cell."""
        number = next(self._number)
        task = CellTask(number, share)
        mean, is_alone = _duration(request)
        now = time.monotonic()
        end = now + (mean if is_alone else mean * self._random.lognormvariate(-0.125, 0.5))
        heapq.heappush(self._news, (now, number, task, end))
        self._tasks[number] = task
        self._shares[share] += 1
        return task

    def stop(self, task: CellTask) -> None:
        """Nothing is ever stopped here."""

    def poll(self, seconds: float) -> Iterator[tuple[CellTask, Item | Ended]]:
        """What is due."""
        now = time.monotonic()
        if self._news[0][0] > now:
            time.sleep(min(seconds, self._news[0][0] - now))
            now = time.monotonic()
        while self._news and self._news[0][0] <= now:
            when, number, task, end = heapq.heappop(self._news)
            if when < end:
                yield task, PROGRESS
                heapq.heappush(self._news, (min(end, now + 1 / TELLS_PER_SECOND), number, task, end))
                continue
            yield task, MEASURED
            yield task, Item("cell", trivial.CELL)
            yield task, Ended("finished")
            self.cells_done += 1
            self._shares[self._tasks.pop(task.items).share] -= 1


PROGRESS = Item("progress", CellProgress(fraction=0.5, message="step 50 of 100").model_dump_json())
MEASURED = Item("measurement", MeasurementEvent(seed=0, step=0, loss=1.0, angles=(0.5,) * 12).model_dump_json())


@dataclass
class Account:
    """What one dispatcher did, and what it cost."""

    cells: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    writes: int = 0
    reads: int = 0
    claims: list[float] = field(default_factory=list)
    """Seconds of each call that claimed a job."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each turn of the loop."""


def quantile(values: list[float], part: float) -> float:
    """A quantile; nan of nothing."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


def mean(values: list[float]) -> float:
    """The mean; nan of nothing."""
    return statistics.fmean(values) if values else float("nan")


def dispatch(settings: Settings, nodes: int, seconds: float, seed: int = 0) -> Account:
    """A dispatcher over a cluster of so many nodes, for so long."""
    account = Account()

    def committed(connection: Connection) -> None:
        if connection.get_execution_options().get(_WRITES):
            account.writes += 1
        else:
            account.reads += 1

    with closing(opened(settings)) as store:
        event.listen(Engine, "commit", committed)
        cluster = SimulatedCluster(nodes, settings, seed)
        claim = store.claim

        def timed_claim(*arguments):
            began = time.perf_counter()
            if found := claim(*arguments):
                account.claims.append(time.perf_counter() - began)
            return found

        store.claim = timed_claim
        dispatcher = Dispatcher(store, cluster, settings, trivial)
        began, cpu = time.perf_counter(), time.process_time()
        while (now := time.perf_counter()) - began < seconds:
            dispatcher.step(POLL_SECONDS)
            if not cluster.running:
                time.sleep(POLL_SECONDS)
            account.steps.append(time.perf_counter() - now)
        account.wall, account.cpu = time.perf_counter() - began, time.process_time() - cpu
        account.cells = cluster.cells_done
        event.remove(Engine, "commit", committed)
    return account
