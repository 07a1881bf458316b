"""A state machine over the store, and beside it a model in plain Python that says what must come of each step."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from featurespeed.contract import TERMINAL, Job, Progress
from featurespeed_service.store.database import Database
from featurespeed_service.store.errors import IdempotencyConflict, JobNotFound, KeyOfDeletedJob, LeaseLost, WrongStatus
from featurespeed_service.store.records import DEAD, TRANSITIONS, Lease
from featurespeed_service.store.retention import KEY_SECONDS
from featurespeed_service.store.schema import metadata
from featurespeed_service.store.sql import SqlStore
from tests.chaos.store_model import CELLS, CRASH, MAX_ATTEMPTS, REQUESTS, Known
from tests.service.conftest import LEASE_SECONDS

OWNERS = st.sampled_from(["d1", "d2", "d3"])
TENANTS = ("ours", "theirs")
SOMETIMES = st.sampled_from([False, False, True])
WRITES = st.sampled_from(
    ["renew", "record", "cell", "cell", "succeed", "fail", "confirm_cancelled", "retry", "release"]
)


class StoreMachine(RuleBasedStateMachine):
    """Every rule does one thing to the store and to the model, and compares what comes of it.

    Leases are kept for ever: most writes come from somebody who holds nothing any more.
    """

    database: Database  # one for all runs: its tables are emptied before each
    jobs, leases = Bundle("jobs"), Bundle("leases")

    def __init__(self):
        super().__init__()
        self.clock = self.database.clock
        with self.database.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.store = SqlStore(self.database, LEASE_SECONDS, MAX_ATTEMPTS)
        self.known, self.keys, self.gone, self.seen = {}, {}, {}, {}
        self.made = []  # all leases
        self.touched = set()  # jobs whose events have to be looked at

    def _add(self, job, tenant, asked, cells=None):
        self.known[job.id] = Known(job.id, tenant, asked, self.clock.now, cells=dict(cells or {}))
        self.touched.add(job.id)
        self.clock.advance(0.001)
        return job.id

    @initialize(target=jobs)
    def two_jobs_wait(self):
        return multiple(*(self._add(self.store.of_tenant(t).submit(REQUESTS[0]), t, 0) for t in TENANTS))

    @rule(target=jobs, tenant=st.sampled_from(TENANTS), asked=st.integers(0, 1), key=st.sampled_from([None, "a", "b"]))
    def submit(self, tenant, asked, key):
        store, before = self.store.of_tenant(tenant), self.keys.get((tenant, key))
        if key is None or before is None:
            job_id = self._add(store.submit(REQUESTS[asked], key), tenant, asked)
            if key is not None:
                self.keys[tenant, key] = (job_id, asked)
            return job_id
        job_id, first = before
        if asked != first:
            with pytest.raises(IdempotencyConflict):
                store.submit(REQUESTS[asked], key)
        elif job_id in self.known:
            assert store.submit(REQUESTS[asked], key).id == job_id
        else:
            with pytest.raises(KeyOfDeletedJob):
                store.submit(REQUESTS[asked], key)
        return multiple()

    @rule(target=leases, owner=OWNERS, late=st.booleans())
    def claim(self, owner, late):
        """The oldest job; ``late`` also of somebody who believes to hold it still."""
        if late:
            self.clock.advance(LEASE_SECONDS + 1)
        return self._claim(owner)

    @rule(target=leases, lease=leases, owner=OWNERS, how=WRITES)
    def overtake(self, lease, owner, how):
        """Somebody sleeps longer than the lease, another claims, and the sleeper goes on as if nothing had been."""
        self.clock.advance(LEASE_SECONDS + 1)
        new = self._claim(owner)
        self._do(how, lease)
        return new

    def _claim(self, owner):
        claim = self.store.claim(owner)
        for job in sorted(self.known.values(), key=lambda job: job.created):
            expired = job.status == "running" and job.lease_until < self.clock.now
            if job.status != "queued" and not expired:
                continue
            self.touched.add(job.id)
            if job.cancel:
                job.end("cancelled", self.clock.now)
                continue
            if expired and job.is_exhausted:
                job.end("failed", self.clock.now)
                continue
            if expired:
                job.move("queued")
            job.move("running")
            job.attempt, job.fruitless = job.attempt + 1, job.fruitless + 1
            job.lease_until = self.clock.now + round(LEASE_SECONDS * 1e6)
            assert claim is not None
            assert (claim.lease, dict(claim.cells)) == (Lease(job.id, job.attempt), job.cells)
            self.made.append(claim.lease)
            return claim.lease
        assert claim is None
        return multiple()

    def _held(self, lease):
        job = self.known.get(lease.job_id)
        return job if job is not None and (job.status, job.attempt) == ("running", lease.attempt) else None

    @rule(lease=leases, how=WRITES)
    def write(self, lease, how):
        self._do(how, lease)

    def _do(self, how, lease):
        job = self._held(lease)
        cells = {}
        if how == "cell":
            missing = [key for key in CELLS if job is None or key not in job.cells]
            cells = {key: f"{lease.job_id} {key}" for key in missing[:1]}
        if job is None:
            before = self.store.events(lease.job_id)
            with pytest.raises(LeaseLost):
                self._call(how, lease, cells, 0)
            assert self.store.events(lease.job_id) == before
            return
        self._call(how, lease, cells, len(job.cells) + len(cells))
        self.touched.add(job.id)
        self._follow(how, job, cells)

    def _call(self, how, lease, cells, done):
        if how in ("record", "cell"):
            told = Progress(cells_done=done, cells_total=3, fraction=done / 3)
            self.store.record(lease, progress=told, cells=cells, measurements=["{}"])
        else:
            more = {"succeed": ["{}"], "fail": [CRASH], "retry": [CRASH]}
            getattr(self.store, how)(lease, *more.get(how, []))

    def _follow(self, how, job, cells):
        ends = {"succeed": "succeeded", "fail": "failed", "confirm_cancelled": "cancelled"}
        if how in ends:
            job.end(ends[how], self.clock.now)
        elif how == "renew":
            job.lease_until = self.clock.now + round(LEASE_SECONDS * 1e6)
        elif how == "retry" and job.is_exhausted:
            job.end("failed", self.clock.now)
        elif how in ("retry", "release"):
            job.move("queued")
            if how == "release":
                job.fruitless = max(0, job.fruitless - 1)
        job.cells |= cells
        job.fruitless = 0 if cells else job.fruitless

    def _owned(self, job_id, is_stranger):
        """The job and the store of who asks."""
        job = self.known.get(job_id)
        tenant = TENANTS[(TENANTS.index(job.tenant) + is_stranger) % 2] if job else TENANTS[0]
        return self.store.of_tenant(tenant), None if is_stranger else job

    @rule(job_id=jobs, is_stranger=SOMETIMES)
    def cancel(self, job_id, is_stranger):
        store, job = self._owned(job_id, is_stranger)
        if job is None:
            with pytest.raises(JobNotFound):
                store.cancel(job_id)
            return
        store.cancel(job_id)
        self.touched.add(job_id)
        job.cancel = job.cancel or job.status not in TERMINAL
        if job.status == "queued":
            job.end("cancelled", self.clock.now)

    @rule(target=jobs, job_id=jobs, is_stranger=SOMETIMES)
    def resubmit(self, job_id, is_stranger):
        store, job = self._owned(job_id, is_stranger)
        if job is None or (job.retried_as not in self.known and job.status not in DEAD):
            with pytest.raises(JobNotFound if job is None else WrongStatus):
                store.resubmit(job_id)
            return multiple()
        new = store.resubmit(job_id)
        if job.retried_as in self.known:
            assert new.id == job.retried_as
            return multiple()
        assert (new.retry_of, new.request) == (job_id, REQUESTS[job.asked])
        job.retried_as = self._add(new, job.tenant, job.asked, job.cells)
        return new.id

    @rule(what=st.sampled_from(["delete", "prune", "thin", "forget_keys", "wait"]), job_id=jobs, is_stranger=SOMETIMES)
    def tidy(self, what, job_id, is_stranger):
        """What is rare: one rule for all, so that it takes little room."""
        if what == "delete":
            self._delete(job_id, is_stranger)
        elif what == "prune":
            self._prune(seconds=3600 * is_stranger, limit=2)
        elif what == "thin":
            self.store.thin(seconds=0)  # nothing that the model knows of
        elif what == "wait":
            self.clock.advance(KEY_SECONDS if is_stranger else 3600)
        else:
            now = self.clock.now
            old = [key for key, (job_id, _) in self.keys.items() if self.gone.get(job_id, now + 1) <= now]
            assert self.store.forget_keys() == len(old)
            for key in old:
                del self.keys[key]

    def _delete(self, job_id, is_stranger):
        store, job = self._owned(job_id, is_stranger)
        if job is not None and job.status in TERMINAL:
            store.delete(job_id)
            self._forget(job)
        else:
            with pytest.raises(JobNotFound if job is None else WrongStatus):
                store.delete(job_id)

    def _prune(self, seconds, limit):
        old = [j for j in self.known.values() if j.status in TERMINAL and j.ended <= self.clock.now - seconds * 10**6]
        assert self.store.prune(seconds=seconds, limit=limit) == min(limit, len(old))
        left = {job.id for job in self.store.page(limit=200).jobs}
        for job in [job for job in old if job.id not in left]:
            self._forget(job)

    def _forget(self, job):
        del self.known[job.id]
        self.gone[job.id] = job.ended + KEY_SECONDS * 10**6
        for key, (job_id, _) in list(self.keys.items()):
            if job_id == job.id and self.gone[job.id] <= self.clock.now:
                del self.keys[key]

    @invariant()
    def the_store_agrees(self):
        counts = dict.fromkeys(TRANSITIONS, 0)
        for job in self.known.values():
            counts[job.status] += 1
        assert self.store.counts() == counts
        for tenant in TENANTS:
            listed = {(job.id, job.status, job.attempt) for job in self.store.of_tenant(tenant).page(limit=200).jobs}
            assert listed == {(job.id, job.status, job.attempt) for job in self.known.values() if job.tenant == tenant}

    @invariant()
    def leases_are_lost_or_stopped_or_good(self):
        expected = {lease: "cancel" if job.cancel else "good" for lease in self.made if (job := self._held(lease))}
        told = self.store.stop_requests(self.made)
        assert {lease: told.get(lease, "good") for lease in self.made} == {
            lease: expected.get(lease, "lost") for lease in self.made
        }

    @invariant()
    def events_tell_the_history(self):
        for job in [self.known[job_id] for job_id in self.touched if job_id in self.known]:
            told = self.store.events(job.id)
            numbers = [event.seq for event in told]
            assert numbers == sorted(set(numbers))
            assert numbers[-1] >= self.seen.get(job.id, 0)
            self.seen[job.id] = numbers[-1]
            statuses = [Job.model_validate_json(event.data).status for event in told if event.type == "status"]
            assert statuses == job.history
            assert sum(status in TERMINAL for status in statuses) == (job.status in TERMINAL)
        self.touched.clear()
