"""The dispatcher: claims jobs, has their cells computed, writes down what comes of it.

A process of its own, ``python -m featurespeed_service.dispatch.dispatcher``, because it owns the Ray driver.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection
from contextlib import closing
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from featurespeed.contract import Job, JobError, SpecError
from featurespeed_service import logs
from featurespeed_service.api.problems import INTERNAL_ERROR
from featurespeed_service.dispatch.cluster import WARM_UP_SECONDS, CellTask, Cluster, ClusterLost, Ended, connect
from featurespeed_service.dispatch.datasets import SentDatasets
from featurespeed_service.dispatch.fair_share import claim_order, held_by_tenant, in_turn
from featurespeed_service.dispatch.housekeeping import Housekeeping
from featurespeed_service.dispatch.reaching import NoCluster
from featurespeed_service.dispatch.running import RunningJob
from featurespeed_service.dispatch.shares import Share
from featurespeed_service.opening import CannotStart, opened, refuse, settings_of
from featurespeed_service.settings import Settings
from featurespeed_service.store.counters import Tally
from featurespeed_service.store.interface import Lease, LeaseLost, Store
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.ray_tasks import Item, job_error, load_engine
from featurespeed_workers.stages import CellKey, Engine

log = logs.get(__name__)

POLL_SECONDS = 0.03
"""Longest pause between two looks at queue and tasks; an idle dispatcher's part in a job's latency."""
HEARTBEAT_SECONDS = 2.0
SLOTS_SECONDS = 5.0
"""How often the size of the cluster is asked for."""
STOP_SECONDS = 6.0
"""A dispatcher whose parent has gone ends itself within this, however stuck it is."""
WORKER_CRASHED = "worker-crashed"
INSUFFICIENT_RESOURCES = "insufficient-resources"
COMMAND = "featurespeed_service.dispatch.dispatcher"
CLUSTER_LOST = 75
"""Exit status (EX_TEMPFAIL): another dispatcher, with another Ray, can go on."""


class Dispatcher:
    """Works on jobs until it is told to stop. One thread: every decision is made in :meth:`step`."""

    def __init__(self, store: Store, cluster: Cluster, settings: Settings, engine: Engine) -> None:
        self._store = store
        self._cluster = cluster
        self._datasets = SentDatasets(store, cluster)
        self._settings = settings
        self._engine = engine
        self._owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._jobs: dict[Lease, RunningJob] = {}
        self._doomed: dict[CellTask, float] = {}  # cancelled tasks, and when their grace ends
        self._housekeeping = Housekeeping(store, settings)
        self._tally = Tally()
        self._started: dict[CellTask, float] = {}
        self._due = {"beat": 0.0, "renew": 0.0, "slots": 0.0}

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set, then give the jobs back."""
        try:
            while not stop.is_set():
                self.step(POLL_SECONDS)
                if not self._cluster.running:
                    stop.wait(POLL_SECONDS)
        finally:
            self._give_back()

    def step(self, seconds: float) -> None:
        """Look once at everything; waits up to ``seconds`` for news of running tasks."""
        self._keep_alive()
        self._claim()
        self._submit()
        if self._cluster.running:
            for task, heard in self._cluster.poll(seconds):
                self._hear(task, heard)
        for job in list(self._jobs.values()):
            self._write(job)
        for lease, what in self._store.stop_requests(self._jobs).items():
            self._stop(lease, what)
        self._force()
        self._housekeeping.step()

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + every
        return True

    def _keep_alive(self) -> None:
        if self._is_due("beat", HEARTBEAT_SECONDS):
            self._store.beat(self._owner, self._tally.counted)
            self._tally = Tally()
        if self._is_due("slots", SLOTS_SECONDS):
            self._cluster.refresh()
        if self._is_due("renew", self._settings.lease_seconds / 3):
            for lease in list(self._jobs):
                try:
                    self._store.renew(lease)
                except LeaseLost:
                    self._lost(lease)
                    self._drop(lease)

    def _claim(self) -> None:
        while claim := self._store.claim(self._owner, self._claim_order):
            log.info("attempt started", **_of(claim.lease), cells_done=len(claim.cells))
            self._tally.count("attempts")
            self._jobs[claim.lease] = RunningJob(claim, self._engine)

    def _claim_order(self, waiting: Collection[str]) -> list[tuple[str, int | None]]:
        return claim_order(waiting, held_by_tenant(self._jobs.values()), self._cluster.slots)

    def _submit(self) -> None:
        """Fill the cluster in turn (``fair_share.py``); a cell that has no room yet keeps others from taking it."""
        for job in in_turn([job for job in list(self._jobs.values()) if self._fits(job)]):
            share = self._cluster.capacity.share(job.memory_bytes)
            if not self._cluster.has_room(share):
                break
            self._start(job, share)

    def _fits(self, job: RunningJob) -> bool:
        """Whether the cells of a job fit a node, or one may come; a job that waits for one in vain fails."""
        capacity = self._cluster.capacity
        lack = capacity.lack(capacity.share(job.memory_bytes), job.memory_bytes) if job.waiting else None
        if lack is None or self._settings.autoscaling:
            job.unfit_since = None
            return True
        job.unfit_since = job.unfit_since or time.monotonic()
        if time.monotonic() - job.unfit_since >= self._settings.node_wait_seconds:
            job.waiting.clear()
            self._end(job, JobError(type=INSUFFICIENT_RESOURCES, detail=lack))
        return False

    def _start(self, job: RunningJob, share: Share) -> None:
        try:
            job.dataset = job.dataset or self._datasets.of(job.tenant, job.request)
        except SpecError as error:
            job.waiting.clear()
            self._end(job, job_error(error))
            return
        key = job.waiting.popleft()
        task = self._cluster.submit(share, job.request_json, key, job.inputs_of(key), job.dataset)
        self._started[task] = time.monotonic()
        job.start(key, task)

    def _hear(self, task: CellTask, heard: Item | Ended) -> None:
        if isinstance(heard, Ended):
            self._doomed.pop(task, None)
            self._started.pop(task, None)
        job = next((job for job in self._jobs.values() if task in job.tasks), None)
        if job is None:  # of a job that has ended
            return
        if isinstance(heard, Item) and heard.kind == "failed":
            self._end(job, JobError.model_validate_json(heard.text))
        elif isinstance(heard, Item):
            if heard.kind == "cell":
                self._tally.observe_cell(job.request.kind, time.monotonic() - self._started[task])
            job.hear(task, heard)
        else:
            key = job.tasks.pop(task)
            if key not in job.done:
                self._ended_early(job, key, heard)

    def _ended_early(self, job: RunningJob, key: CellKey, ended: Ended) -> None:
        if ended.how == "error":
            self._end(job, _internal_error(job, ended.text))
            return
        log.warning("cell ended early", **_of(job.lease), cell=key, how=ended.how, text=ended.text)
        self._tally.count("worker_crashes")
        self._end(job, JobError(type=WORKER_CRASHED, detail=f"the worker of {key} died"), retry=True)

    def _end(self, job: RunningJob, error: JobError, *, retry: bool = False) -> None:
        """End this attempt with an error, its finished cells kept."""
        try:
            self._store.record(job.lease, progress=job.progress, cells=job.new_cells, measurements=job.new_measurements)
            self._ended((self._store.retry if retry else self._store.fail)(job.lease, error), job.lease)
        except LeaseLost:
            self._lost(job.lease)
        self._drop(job.lease)

    def _write(self, job: RunningJob) -> None:
        if not job.changed:
            return
        try:
            self._store.record(job.lease, progress=job.progress, cells=job.new_cells, measurements=job.new_measurements)
            job.written()
            if job.is_complete:
                self._assemble(job)
        except LeaseLost:
            self._lost(job.lease)
            self._drop(job.lease)

    def _assemble(self, job: RunningJob) -> None:
        wall_seconds = (datetime.now(UTC) - (job.job.started_at or job.job.created_at)).total_seconds()
        try:
            report = self._engine.assemble(job.request, job.done, wall_seconds=wall_seconds).model_dump_json()
        except (MeasurementError, SpecError) as error:
            self._ended(self._store.fail(job.lease, job_error(error)), job.lease)
        except Exception as error:
            log.exception("no report", **_of(job.lease))
            self._ended(self._store.fail(job.lease, _internal_error(job, repr(error))), job.lease)
        else:
            self._ended(self._store.succeed(job.lease, report), job.lease)
        self._drop(job.lease)

    def _ended(self, job: Job, lease: Lease) -> None:
        log.info("attempt ended", **_of(lease), status=job.status, error=job.error and job.error.type)
        if job.error is not None:
            self._tally.count("job_failures", job.error.type)

    def _lost(self, lease: Lease) -> None:
        log.warning("lease lost", **_of(lease))
        self._tally.count("lease_losses")

    def _stop(self, lease: Lease, what: str) -> None:
        if what == "cancel":
            try:
                self._store.confirm_cancelled(lease)
            except LeaseLost:
                self._lost(lease)
        else:
            self._lost(lease)
        self._drop(lease)

    def _drop(self, lease: Lease) -> None:
        """Forget a job, and stop what it still has running."""
        job = self._jobs.pop(lease, None)
        for task in job.tasks if job is not None else ():
            self._cluster.cancel(task, force=False)
            self._doomed[task] = time.monotonic() + self._settings.cancel_grace_seconds

    def _force(self) -> None:
        for task in [task for task, end in self._doomed.items() if time.monotonic() >= end]:
            del self._doomed[task]
            self._cluster.cancel(task, force=True)

    def _give_back(self) -> None:
        """Release every lease: others may go on at once. The tasks end with the cluster's driver."""
        for lease in list(self._jobs):
            try:
                self._store.release(lease)
            except LeaseLost:
                self._lost(lease)
        self._store.beat(self._owner, self._tally.counted)
        self._store.retire(self._owner)


def _of(lease: Lease) -> dict[str, Any]:
    """What a line of the log says about the job that it is of."""
    return {"job_id": lease.job_id, "attempt": lease.attempt}


def _internal_error(job: RunningJob, text: str) -> JobError:
    reference = secrets.token_hex(6)
    log.error("internal error", **_of(job.lease), reference=reference, text=text)
    return JobError(type=INTERNAL_ERROR, detail=f"internal error; the service's log has it under reference {reference}")


def _stop_on_signals(stop: threading.Event) -> None:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def _stop_with_parent(stop: threading.Event) -> None:
    """Wait for the end of standard input, a pipe that closes with the parent."""
    while os.read(sys.stdin.fileno(), 1024):  # not through sys.stdin: its lock would be held at the process's end
        pass
    stop.set()
    time.sleep(STOP_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)  # stuck; Ray's processes are set to die with this one


def main() -> int:
    """Run until SIGTERM, SIGINT or, with ``--exit-with-parent``, the end of standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m featurespeed_service.dispatch.dispatcher", description=main.__doc__
    )
    parser.add_argument("--exit-with-parent", action="store_true")
    arguments = parser.parse_args()
    stop = threading.Event()
    _stop_on_signals(stop)
    if arguments.exit_with_parent:
        threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    try:
        settings = settings_of()
        logs.configure("dispatcher", settings)
        with closing(opened(settings)) as store, connect(settings) as cluster:
            _work(store, cluster, settings, stop)
    except (CannotStart, NoCluster) as error:
        return refuse(str(error))
    return 0


def _work(store: Store, cluster: Cluster, settings: Settings, stop: threading.Event) -> None:
    _stop_on_signals(stop)  # ray.init has replaced the handlers
    logs.adopt()  # and brought its own for its log
    logs.catch_printed()  # Ray prints what raylets report
    warm = cluster.warm_up()
    engine = load_engine(settings.engine)
    end = time.monotonic() + WARM_UP_SECONDS
    while not (stop.is_set() or cluster.wait(warm, 0.1) or time.monotonic() > end):
        pass
    try:
        Dispatcher(store, cluster, settings, engine).run(stop)  # gives its jobs back, whatever happens
    except ClusterLost as error:
        log.error("the cluster is lost; the jobs go back to the queue", error=str(error))
        logging.shutdown()
        os._exit(CLUSTER_LOST)  # Ray's own ending would wait for a node that is gone


if __name__ == "__main__":
    raise SystemExit(main())
