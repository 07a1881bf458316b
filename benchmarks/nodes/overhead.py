"""The service's cost for each cell: trivial cells through a dispatcher on a real Ray, and as many bare Ray tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import ray

from benchmarks.nodes import trivial
from featurespeed_service.dispatch.cluster import Cluster
from featurespeed_service.dispatch.connecting import connect
from featurespeed_service.dispatch.dispatcher import Dispatcher
from featurespeed_service.opening import opened
from featurespeed_service.settings import Settings
from featurespeed_workers.ray_tasks import CellCall, Item

ENGINE = trivial.__name__
CELLS_PER_JOB = 50


@dataclass(frozen=True)
class Cost:
    """Seconds for each cell: of the wall, of the whole driver's CPU, of its main thread's."""

    wall: float
    cpu: float
    own_cpu: float


def costs(cells: int, directory: Path, database: str | None = None) -> tuple[Cost, Cost]:
    """(with the dispatcher, bare Ray tasks), in one run on one Ray."""
    settings = Settings(data_dir=directory, database=database, engine=ENGINE)
    with connect(settings) as cluster:
        if not cluster.wait(cluster.warm_up(), 120):
            raise SystemExit("the workers did not start within 120 s")
        _bare(cluster, 50)
        _dispatched(cluster, settings, 50)
        bare = _measured(cells, lambda: _bare(cluster, cells))
        return _measured(cells, lambda: _dispatched(cluster, settings, cells)), bare


def _measured(cells: int, action: Callable[[], None]) -> Cost:
    began = time.perf_counter(), time.process_time(), time.thread_time()
    action()
    ended = time.perf_counter(), time.process_time(), time.thread_time()
    return Cost(*((then - now) / cells for now, then in zip(began, ended, strict=True)))


def _dispatched(cluster: Cluster, settings: Settings, cells: int) -> None:
    """Jobs of 50 seeds, from the queue to their reports."""
    jobs, stop = cells // CELLS_PER_JOB, threading.Event()
    with closing(opened(settings)) as store:
        for number in range(jobs):
            store.submit(trivial.spec(number, CELLS_PER_JOB))
        Dispatcher(store, cluster, settings, trivial.Counting(jobs, stop)).run(stop)
    while cluster.running:  # the last reports are there, but not all tasks have told that they ended
        list(cluster.poll(1))


@ray.remote(max_retries=0, num_returns="streaming")  # type: ignore[untyped-decorator]
def _nothing(call: CellCall) -> Iterator[Item]:
    yield Item("cell", trivial.CELL)


def _bare(cluster: Cluster, cells: int) -> None:
    """As many tasks of the same shape, as many at once."""
    call = CellCall(ENGINE, trivial.spec(0, CELLS_PER_JOB).model_dump_json(), "seed 0", {}, {}, "cpu", 1)
    running = set()
    while cells or running:
        while cells and len(running) < cluster.slots:
            running.add(_nothing.options(num_cpus=1, num_gpus=0).remote(call))
            cells -= 1
        for items in ray.wait(list(running), num_returns=1)[0]:
            try:
                ray.get(next(items))
            except StopIteration:
                running.remove(items)
