"""The dispatcher: claims jobs, has their cells computed, writes down what comes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

from featurespeed.contract import JobError, SpecError
from featurespeed_service import logs
from featurespeed_service.dispatch.cluster import CellTask, Cluster, Ended
from featurespeed_service.dispatch.datasets import SentDatasets
from featurespeed_service.dispatch.fair_share import claim_order, held_by_tenant, in_turn
from featurespeed_service.dispatch.held import HeldJobs, internal_error, said_of
from featurespeed_service.dispatch.housekeeping import Housekeeping
from featurespeed_service.dispatch.outage import Outage
from featurespeed_service.dispatch.process import MUTE, SignsOfLife
from featurespeed_service.dispatch.running import RunningJob
from featurespeed_service.dispatch.shares import Share
from featurespeed_service.job_errors import INSUFFICIENT_RESOURCES, WORKER_CRASHED
from featurespeed_service.settings import Settings
from featurespeed_service.store.errors import StoreUnavailable
from featurespeed_service.store.interface import Store
from featurespeed_service.telemetry import NO_TRACES, Traces
from featurespeed_workers.ray_tasks import Item, job_error
from featurespeed_workers.stages import CellKey, Engine

log = logs.get(__name__)

POLL_SECONDS = 0.03
"""Longest pause between two looks at queue and tasks; an idle dispatcher's part in a job's latency."""
LOOK_SECONDS = 0.05
"""A dispatcher with jobs asks the store for more, and for cancellations, no more often than this."""
HEARTBEAT_SECONDS = 2.0
SLOTS_SECONDS = 5.0
"""How often the size of the cluster is asked for."""


class Dispatcher:
    """Works on jobs until it is told to stop. One thread: every decision is made in :meth:`step`."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        settings: Settings,
        engine: Engine,
        traces: Traces = NO_TRACES,
        signs: SignsOfLife = MUTE,
    ) -> None:
        self._cluster = cluster
        self._datasets = SentDatasets(store, cluster)
        self._settings = settings
        self._jobs = HeldJobs(store, engine, traces, let_go=self._stop_tasks)
        self._signs = signs
        self._outage = Outage(signs.give)
        self._housekeeping = Housekeeping(store, settings)
        self._running: dict[CellTask, tuple[RunningJob, float]] = {}  # whose it is, and when it was started
        self._due = {"look": 0.0, "beat": 0.0, "renew": 0.0, "slots": 0.0}

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set, then give the jobs back, at no cost; on an exception it costs them a start."""
        is_orderly = False
        try:
            while not stop.is_set():
                self._signs.give()
                if not self.step(POLL_SECONDS) and not self._cluster.running:
                    stop.wait(POLL_SECONDS)
            is_orderly = True
        finally:
            try:
                self._jobs.give_back(is_orderly=is_orderly)
            except StoreUnavailable as error:
                log.warning("jobs are not given back, their leases will run out", reason=str(error))

    def step(self, seconds: float) -> bool:
        """Look once at everything; waits up to ``seconds`` for news of running tasks. Whether there were any."""
        if self._is_due("look") or not self._jobs:
            self._outage.ask(self._keep_alive, self._claim, self._jobs.heed_stop_requests, self._housekeeping.step)
            self._done("look", LOOK_SECONDS)
        with self._outage.noticed():
            self._submit()
        has_news = False
        if self._cluster.running:
            for task, heard in self._cluster.poll(seconds):
                self._hear(task, heard)
                has_news = True
        self._outage.ask(self._jobs.record, self._jobs.end)
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
            self._jobs.beat()
            self._done("beat", HEARTBEAT_SECONDS)
        if self._is_due("renew"):
            self._jobs.renew()
            self._done("renew", self._settings.lease_seconds / 3)

    def _claim(self) -> None:
        if self._cluster.slots > 0:  # else jobs stay in the queue, for a dispatcher that has nodes
            self._jobs.claim(self._claim_order)

    def _claim_order(self, waiting: Collection[str]) -> list[tuple[str, int | None]]:
        return claim_order(waiting, held_by_tenant(self._jobs), self._cluster.slots)

    def _submit(self) -> None:
        """Fill the cluster in turn (``fair_share.py``); a cell that has no room yet keeps others from taking it."""
        if self._cluster.slots == 0:  # no job's fault: all wait
            for job in self._jobs:
                job.say("waits for a node of the cluster")
            return
        for job in in_turn([job for job in self._jobs if self._fits(job)]):
            share = self._cluster.capacity.share(job.memory_bytes)
            if not self._cluster.has_room(share):
                break
            self._start(job, share)

    def _fits(self, job: RunningJob) -> bool:
        """Whether the cells of a job fit a node, or one may come; a job that waits for one in vain fails."""
        capacity = self._cluster.capacity
        lack = capacity.lack(capacity.share(job.memory_bytes), job.memory_bytes) if job.has_waiting else None
        if lack is None or self._settings.autoscaling:
            job.unfit_since = None
            return True
        job.unfit_since = job.unfit_since or time.monotonic()
        if time.monotonic() - job.unfit_since >= self._settings.node_wait_seconds:
            self._fail(job, JobError(type=INSUFFICIENT_RESOURCES, detail=lack))
        return False

    def _start(self, job: RunningJob, share: Share) -> None:
        try:
            if job.files is None:
                job.files = self._datasets.of(job.tenant, job.request)
        except SpecError as error:
            self._fail(job, job_error(error))
            return
        except StoreUnavailable:
            raise
        except Exception as error:  # a file with a piece missing, a full object store: this job's, not the others'
            log.exception("no dataset or checkpoint", **said_of(job.lease))
            self._fail(job, internal_error(job.lease, repr(error)))
            return
        key = job.next_cell()
        task = self._cluster.submit(share, job.request_json, key, job.inputs_of(key), job.files)
        self._running[task] = job, time.monotonic()
        job.start(key, task)

    def _hear(self, task: CellTask, heard: Item | Ended) -> None:
        job, started = self._running.pop(task) if isinstance(heard, Ended) else self._running[task]
        if job not in self._jobs:
            return
        if isinstance(heard, Item) and heard.kind == "failed":
            self._fail(job, JobError.model_validate_json(heard.text))
        elif isinstance(heard, Item):
            if heard.kind == "cell":
                self._jobs.tally.observe_cell(job.request.kind, time.monotonic() - started)
            job.hear(task, heard)
        else:
            key = job.tasks.pop(task)
            if key not in job.done and job.outcome is None:
                self._ended_early(job, key, heard)

    def _ended_early(self, job: RunningJob, key: CellKey, ended: Ended) -> None:
        if ended.how == "error":
            self._fail(job, internal_error(job.lease, ended.text))
            return
        times = job.crashed(key)
        log.warning("cell ended early", **said_of(job.lease), cell=key, how=ended.how, times=times, text=ended.text)
        self._jobs.tally.count("worker_crashes")
        if times >= self._settings.max_crashes:
            often = "once" if times == 1 else f"{times} times"
            self._fail(job, JobError(type=WORKER_CRASHED, detail=f"the worker of {key} died {often}"))

    def _fail(self, job: RunningJob, error: JobError) -> None:
        """Let a job end with an error, its finished cells kept; the store hears of it with the next write."""
        job.fail(error)
        self._stop_tasks(job)

    def _stop_tasks(self, job: RunningJob) -> None:
        for task in job.unfinished_tasks():
            self._cluster.stop(task)
