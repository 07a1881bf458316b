"""The dispatcher: claims jobs, has their cells computed, writes down what comes of it.

A process of its own, ``python -m featurespeed_service.dispatch.dispatcher``, because it owns the Ray driver.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from featurespeed.contract import Job, JobError, SpecError
from featurespeed_service import logs, telemetry
from featurespeed_service.api.problems import INTERNAL_ERROR
from featurespeed_service.dispatch.cluster import WARM_UP_SECONDS, CellTask, Cluster, ClusterLost, Ended, connect
from featurespeed_service.dispatch.datasets import SentDatasets
from featurespeed_service.dispatch.fair_share import claim_order, held_by_tenant, in_turn
from featurespeed_service.dispatch.housekeeping import Housekeeping
from featurespeed_service.dispatch.outage import Outage
from featurespeed_service.dispatch.process import SignsOfLife, stop_on_signals, stop_with_parent, wait_for_store
from featurespeed_service.dispatch.reaching import NoCluster
from featurespeed_service.dispatch.running import RunningJob
from featurespeed_service.dispatch.shares import Share
from featurespeed_service.opening import CannotStart, opened, refuse, settings_of
from featurespeed_service.settings import Settings
from featurespeed_service.store.counters import Tally
from featurespeed_service.store.errors import LeaseLost, StoreUnavailable
from featurespeed_service.store.interface import Store
from featurespeed_service.store.leases import ATTEMPTS_EXHAUSTED
from featurespeed_service.store.records import Lease
from featurespeed_service.telemetry import NO_TRACES, Traces
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.ray_tasks import Item, job_error, load_engine
from featurespeed_workers.stages import CellKey, Engine

log = logs.get(__name__)

POLL_SECONDS = 0.03
"""Longest pause between two looks at queue and tasks; an idle dispatcher's part in a job's latency."""
LOOK_SECONDS = 0.05
"""A dispatcher with jobs asks the store for more, and for cancellations, no more often than this."""
CLAIM_SECONDS = 0.1
"""How long it may go on claiming before it looks after the jobs that it has."""
RECORDS_PER_SECOND = 40
LAST_RECORD_SECONDS = 2.0
"""Of so many jobs a second the news goes to the store: of a single job at once, with many of each together, but no
later than this. A job's end never waits."""
JOBS_PER_TRANSACTION = 32
HEARTBEAT_SECONDS = 2.0
SLOTS_SECONDS = 5.0
"""How often the size of the cluster is asked for."""
WORKER_CRASHED = "worker-crashed"
INSUFFICIENT_RESOURCES = "insufficient-resources"
COMMAND = "featurespeed_service.dispatch.dispatcher"
CLUSTER_LOST = 75
"""Exit status (EX_TEMPFAIL): another dispatcher, with another Ray, can go on."""
NODE_DIED = JobError(type=ATTEMPTS_EXHAUSTED, detail="the dispatcher lost its Ray node each time")


class Dispatcher:
    """Works on jobs until it is told to stop. One thread: every decision is made in :meth:`step`."""

    def __init__(
        self, store: Store, cluster: Cluster, settings: Settings, engine: Engine, traces: Traces = NO_TRACES
    ) -> None:
        self._store = store
        self._traces = traces
        self._cluster = cluster
        self._datasets = SentDatasets(store, cluster)
        self._settings = settings
        self._engine = engine
        self._owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._jobs: dict[Lease, RunningJob] = {}
        self._doomed: dict[CellTask, float] = {}  # cancelled tasks, and when their grace ends
        self._outage = Outage()
        self._housekeeping = Housekeeping(store, settings)
        self._tally = Tally()
        self._running: dict[CellTask, tuple[RunningJob, float]] = {}  # whose it is, and when it was started
        self._due = {"look": 0.0, "beat": 0.0, "renew": 0.0, "slots": 0.0}

    def run(self, stop: threading.Event, signs: SignsOfLife) -> None:
        """Work until ``stop`` is set, then give the jobs back, at no cost; on an exception it costs them a start."""
        is_orderly = False
        try:
            while not stop.is_set():
                signs.give()
                if not self.step(POLL_SECONDS) and not self._cluster.running:
                    stop.wait(POLL_SECONDS)
            is_orderly = True
        finally:
            try:
                self._give_back(is_orderly)
            except StoreUnavailable as error:
                log.warning("jobs are not given back, their leases will run out", reason=str(error))

    def step(self, seconds: float) -> bool:
        """Look once at everything; waits up to ``seconds`` for news of running tasks. Whether there were any."""
        if self._is_due("look") or not self._jobs:
            self._outage.ask(self._keep_alive, self._claim, self._heed_stop_requests, self._housekeeping.step)
            self._done("look", LOOK_SECONDS)
        with self._outage.noticed():
            self._submit()
        has_news = False
        if self._cluster.running:
            for task, heard in self._cluster.poll(seconds):
                self._hear(task, heard)
                has_news = True
        self._outage.ask(self._record_all, self._end_all)
        self._force()
        return has_news

    def _is_due(self, what: str) -> bool:
        return time.monotonic() >= self._due[what]

    def _done(self, what: str, every: float) -> None:
        self._due[what] = time.monotonic() + every

    def _keep_alive(self) -> None:
        if self._is_due("slots"):
            self._cluster.refresh()
            self._done("slots", SLOTS_SECONDS)
        if self._is_due("beat"):
            self._store.beat(self._owner, self._tally.counted)
            self._tally = Tally()
            self._done("beat", HEARTBEAT_SECONDS)
        if self._is_due("renew"):
            for lease in self._store.renew_all(self._jobs):  # ran out in an outage, and another took the job
                self._lost(lease)
                self._drop(lease)
            self._done("renew", self._settings.lease_seconds / 3)

    def _claim(self) -> None:
        end = time.monotonic() + CLAIM_SECONDS
        while time.monotonic() < end and (claim := self._store.claim(self._owner, self._claim_order)):
            log.info("attempt started", **_of(claim.lease), cells_done=len(claim.cells))
            self._traces.attempt_started(claim.lease, claim.job.kind)
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
            self._fail(job, JobError(type=INSUFFICIENT_RESOURCES, detail=lack))
        return False

    def _start(self, job: RunningJob, share: Share) -> None:
        try:
            job.dataset = job.dataset or self._datasets.of(job.tenant, job.request)
        except SpecError as error:
            self._fail(job, job_error(error))
            return
        key = job.waiting.popleft()
        task = self._cluster.submit(share, job.request_json, key, job.inputs_of(key), job.dataset)
        self._running[task] = job, time.monotonic()
        job.start(key, task)

    def _hear(self, task: CellTask, heard: Item | Ended) -> None:
        if isinstance(heard, Ended):
            self._doomed.pop(task, None)
        job, started = self._running.pop(task) if isinstance(heard, Ended) else self._running[task]
        if job.lease not in self._jobs:
            return
        if isinstance(heard, Item) and heard.kind == "failed":
            self._fail(job, JobError.model_validate_json(heard.text))
        elif isinstance(heard, Item):
            if heard.kind == "cell":
                self._tally.observe_cell(job.request.kind, time.monotonic() - started)
            job.hear(task, heard)
        else:
            key = job.tasks.pop(task)
            if key not in job.done and job.outcome is None:
                self._ended_early(job, key, heard)

    def _ended_early(self, job: RunningJob, key: CellKey, ended: Ended) -> None:
        if ended.how == "error":
            self._fail(job, _internal_error(job, ended.text))
            return
        times = job.crashed(key)
        log.warning("cell ended early", **_of(job.lease), cell=key, how=ended.how, times=times, text=ended.text)
        self._tally.count("worker_crashes")
        if times >= self._settings.max_crashes:
            often = "once" if times == 1 else f"{times} times"
            self._fail(job, JobError(type=WORKER_CRASHED, detail=f"the worker of {key} died {often}"))

    def _fail(self, job: RunningJob, error: JobError) -> None:
        """Let a job end with an error, its finished cells kept; the store hears of it with the next write."""
        job.fail(error)
        self._stop_tasks(job)

    def _record_all(self) -> None:
        """Bring the jobs' news to the store, several jobs at a time."""
        now = time.monotonic()
        last = now - min((len(self._jobs) - 1) / RECORDS_PER_SECOND, LAST_RECORD_SECONDS)
        due = [job for job in self._jobs.values() if job.changed and (job.is_ending or job.written_at <= last)]
        for first in range(0, len(due), JOBS_PER_TRANSACTION):
            self._record(due[first : first + JOBS_PER_TRANSACTION], now)

    def _record(self, jobs: Sequence[RunningJob], now: float) -> None:
        lost = self._store.record_all({job.lease: job.news for job in jobs})
        for job in jobs:
            job.written(now)
        for lease in lost:
            self._lost(lease)
            self._drop(lease)

    def _end_all(self) -> None:
        for job in [job for job in self._jobs.values() if job.is_ending]:
            try:
                self._end(job)
            except LeaseLost:
                self._lost(job.lease)
                self._drop(job.lease)

    def _end(self, job: RunningJob) -> None:
        """Let a job end in the store, which has all its cells."""
        if job.is_complete and job.outcome is None:
            job.outcome = self._assembled(job)
        if isinstance(job.outcome, JobError):
            self._ended(self._store.fail(job.lease, job.outcome), job.lease)
        elif job.outcome is not None:
            self._ended(self._store.succeed(job.lease, job.outcome), job.lease)
        self._drop(job.lease)

    def _assembled(self, job: RunningJob) -> str | JobError:
        wall_seconds = (datetime.now(UTC) - (job.job.started_at or job.job.created_at)).total_seconds()
        try:
            return self._engine.assemble(job.request, job.done, wall_seconds=wall_seconds).model_dump_json()
        except (MeasurementError, SpecError) as error:
            return job_error(error)
        except Exception as error:
            log.exception("no report", **_of(job.lease))
            return _internal_error(job, repr(error))

    def _heed_stop_requests(self) -> None:
        for lease, what in self._store.stop_requests(self._jobs).items():
            self._stop(lease, what)

    def _ended(self, job: Job, lease: Lease) -> None:
        error = job.error.type if job.error is not None else None
        log.info("attempt ended", **_of(lease), status=job.status, error=error)
        self._traces.attempt_ended(lease, job.status, error)
        if job.error is not None:
            self._tally.count("job_failures", job.error.type)

    def _lost(self, lease: Lease) -> None:
        log.warning("lease lost", **_of(lease))
        self._traces.attempt_ended(lease, "lease lost")
        self._tally.count("lease_losses")

    def _stop(self, lease: Lease, what: str) -> None:
        if what == "cancel":
            try:
                self._ended(self._store.confirm_cancelled(lease), lease)
            except LeaseLost:
                self._lost(lease)
        else:
            self._lost(lease)
        self._drop(lease)

    def _drop(self, lease: Lease) -> None:
        """Forget a job, and stop what it still has running."""
        if (job := self._jobs.pop(lease, None)) is not None:
            self._stop_tasks(job)

    def _stop_tasks(self, job: RunningJob) -> None:
        for task in job.tasks:
            self._cluster.cancel(task, force=False)
            self._doomed[task] = time.monotonic() + self._settings.cancel_grace_seconds

    def _force(self) -> None:
        for task in [task for task, end in self._doomed.items() if time.monotonic() >= end]:
            del self._doomed[task]
            self._cluster.cancel(task, force=True)

    def _give_back(self, is_orderly: bool) -> None:
        """Let go of every lease: others may go on at once. The tasks end with the cluster's driver."""
        self._record([job for job in self._jobs.values() if job.changed], time.monotonic())
        for lease in list(self._jobs):
            try:
                if is_orderly:
                    self._ended(self._store.release(lease), lease)
                else:
                    self._ended(self._store.retry(lease, NODE_DIED), lease)
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


def main() -> int:
    """Run until SIGTERM, SIGINT or, with ``--exit-with-parent``, the end of standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m featurespeed_service.dispatch.dispatcher", description=main.__doc__
    )
    parser.add_argument("--exit-with-parent", action="store_true")
    parser.add_argument("--signs-of-life", type=int, metavar="FD", help="file descriptor to write to now and then")
    arguments = parser.parse_args()
    stop = threading.Event()
    stop_on_signals(stop)
    if arguments.exit_with_parent:
        threading.Thread(target=stop_with_parent, args=(stop,), daemon=True).start()
    signs = SignsOfLife(arguments.signs_of_life)
    try:
        settings = settings_of()
        logs.configure("dispatcher", settings)
        traces = telemetry.start("dispatcher", settings)
        if arguments.exit_with_parent:  # it was reached before: the supervisor's process has opened it
            wait_for_store(settings, stop, signs)
        with closing(traces), closing(opened(settings)) as store, connect(settings) as cluster:
            _work(store, cluster, settings, stop, signs, traces)
    except (CannotStart, NoCluster) as error:
        return refuse(str(error))
    return 0


def _work(
    store: Store, cluster: Cluster, settings: Settings, stop: threading.Event, signs: SignsOfLife, traces: Traces
) -> None:
    stop_on_signals(stop)  # ray.init has replaced the handlers
    logs.adopt()  # and brought its own for its log
    logs.catch_printed()  # Ray prints what raylets report
    warm = cluster.warm_up()
    engine = load_engine(settings.engine)
    end = time.monotonic() + WARM_UP_SECONDS
    while not (stop.is_set() or cluster.wait(warm, 0.1) or time.monotonic() > end):
        signs.give()
    try:
        Dispatcher(store, cluster, settings, engine, traces).run(stop, signs)  # gives its jobs back, whatever happens
    except ClusterLost as error:
        log.error("the cluster is lost; the jobs go back to the queue", error=str(error))
        traces.close()
        logging.shutdown()
        os._exit(CLUSTER_LOST)  # Ray's own ending would wait for a node that is gone


if __name__ == "__main__":
    raise SystemExit(main())
