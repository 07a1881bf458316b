"""Dead jobs are retried or pruned; what is old goes; what may still be sent again is remembered."""

import itertools

import pytest
import sqlalchemy as sa

from featurespeed.contract import JobError, Progress
from featurespeed_service.dispatch.housekeeping import EVERY_SECONDS, Housekeeping
from featurespeed_service.settings import DAY_SECONDS, Settings
from featurespeed_service.store.errors import (
    IdempotencyConflict,
    JobNotFound,
    KeyOfDeletedJob,
    StoreUnavailable,
    WrongStatus,
)
from featurespeed_service.store.retention import KEY_SECONDS
from tests.service.specs import request

CRASH = JobError(type="worker-crashed", detail="the worker of seed 0 died")
PROGRESS = Progress(cells_done=1, cells_total=3, fraction=0.4, message="seed 0: done")


def failed(store, asked=None, key=None):
    store.submit(asked or request(), key)
    lease = store.claim("d").lease
    store.record(lease, progress=PROGRESS, cells={"seed 0": "0.5"}, measurements=["{}"])
    return store.fail(lease, CRASH)


def succeeded(store):
    store.submit(request())
    lease = store.claim("d").lease
    store.record(lease, progress=PROGRESS, cells={"seed 0": "0.5"}, measurements=["{}"])
    return store.succeed(lease, '{"report": 1}')


def cancelled(store):
    return store.cancel(store.submit(request()).id)


def rows(database_url, table):
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        found = connection.execute(sa.text(f"SELECT * FROM {table}")).mappings().all()
    engine.dispose()
    return found


def test_a_retry_is_a_new_job_with_the_finished_cells_of_the_old(store):
    old = failed(store)
    new = store.resubmit(old.id)
    assert (new.status, new.retry_of, new.request, new.attempt) == ("queued", old.id, old.request, 0)
    assert (new.progress.cells_done, new.progress.cells_total) == (1, 3)
    assert store.get(new.id) == new
    assert [event.type for event in store.events(new.id)] == ["status"]
    claim = store.claim("d")
    assert (claim.job.id, claim.cells) == (new.id, {"seed 0": "0.5"})
    assert store.get(old.id) == old  # stays as it is
    store.record(claim.lease, progress=PROGRESS, cells={"seed 1": "0.5"})
    store.succeed(claim.lease, "{}")
    assert store.resubmit(old.id).id == new.id


def test_a_retry_that_is_sent_again_makes_no_second_job(store):
    old = cancelled(store)
    assert store.resubmit(old.id).id == store.resubmit(old.id).id
    assert store.counts()["queued"] == 1


def test_only_dead_jobs_are_retried(store):
    queued = store.submit(request())
    with pytest.raises(WrongStatus, match="queued"):
        store.resubmit(queued.id)
    store.claim("d")
    with pytest.raises(WrongStatus, match="running"):
        store.resubmit(queued.id)
    store.cancel(queued.id)
    with pytest.raises(WrongStatus, match="succeeded"):
        store.resubmit(succeeded(store).id)
    with pytest.raises(JobNotFound):
        store.resubmit("job_unknown")


def test_a_retry_belongs_to_the_tenant_of_the_job(store):
    ours = store.of_tenant("ours")
    old = ours.submit(request())
    ours.cancel(old.id)
    with pytest.raises(JobNotFound):
        store.of_tenant("theirs").resubmit(old.id)
    assert ours.get(store.resubmit(old.id).id).retry_of == old.id


def test_prune_takes_what_ended_long_ago_and_all_that_belongs_to_it(store, clock, database_url):
    failed(store, key="key")
    succeeded(store)
    clock.advance(DAY_SECONDS)
    kept = [succeeded(store), cancelled(store), store.submit(request())]
    clock.advance(10)
    running = store.claim("d").job
    clock.advance(DAY_SECONDS - 20)
    assert store.prunable(seconds=DAY_SECONDS) == {"failed": 1, "succeeded": 1}
    assert store.prune(seconds=DAY_SECONDS, statuses=["failed", "cancelled", "queued", "running"]) == 1
    assert store.prune(seconds=DAY_SECONDS, limit=1) == 1
    assert store.prune(seconds=DAY_SECONDS) == 0
    assert sorted(job.id for job in store.page().jobs) == sorted(job.id for job in kept)
    assert running.id == kept[2].id
    ids = {job.id for job in kept}
    assert {row["job_id"] for table in ("cells", "events") for row in rows(database_url, table)} <= ids
    assert rows(database_url, "idempotency_keys") == []  # its job ended a day ago: nobody sends it any more


def test_a_key_outlives_its_job_for_a_day_from_its_end(store, clock):
    job = failed(store, key="key")
    clock.advance(3600)
    store.delete(job.id)
    for seconds in (0, KEY_SECONDS - 3600 - 1):
        clock.advance(seconds)
        assert store.forget_keys() == 0
        with pytest.raises(KeyOfDeletedJob):
            store.submit(request(), "key")
        with pytest.raises(IdempotencyConflict):
            store.submit(request(1), "key")
    clock.advance(1)
    assert store.forget_keys() == 1
    assert store.submit(request(), "key").id != job.id


def test_thinning_keeps_what_is_still_asked_for(store, clock, database_url):
    dead, done = failed(store), succeeded(store)
    clock.advance(8 * DAY_SECONDS)
    young = succeeded(store)
    assert store.thin(seconds=7 * DAY_SECONDS) == 2
    assert store.thin(seconds=7 * DAY_SECONDS) == 0
    for job in (dead, done):
        assert [event.type for event in store.events(job.id)] == ["status"] * 3
    assert "measurement" in [event.type for event in store.events(young.id)]
    assert store.result(done.id).text == '{"report": 1}'
    assert sorted(row["job_id"] for row in rows(database_url, "cells")) == sorted([dead.id, young.id])
    assert store.claim("d") is None
    store.resubmit(dead.id)
    assert store.claim("d").cells == {"seed 0": "0.5"}


def housekeeping_round(store, days):
    moments = itertools.count(0, EVERY_SECONDS / 100)
    keeping = Housekeeping(store, Settings(retention_days=days), lambda: next(moments))
    for _ in range(20):
        keeping.step()


def test_the_dispatcher_deletes_after_the_retention_and_0_keeps_for_ever(store, clock):
    jobs = [cancelled(store) for _ in range(3)]
    clock.advance(30 * DAY_SECONDS)
    housekeeping_round(store, 31)
    housekeeping_round(store, 0)
    assert len(store.page().jobs) == len(jobs)
    housekeeping_round(store, 30)
    assert store.page().jobs == ()


def test_housekeeping_does_one_batch_a_turn_and_comes_back_after_an_hour():
    calls = []

    class Counting:
        batches = iter([50, 3, 0, 0])

        def prune(self, **options):
            calls.append("prune")
            return next(self.batches)

        def thin(self, **options):
            calls.append("thin")
            return 0

        def prune_datasets(self, **options):
            calls.append("datasets")
            return 0

        def forget_keys(self):
            calls.append("keys")
            return 0

        def drop_orphans(self):
            calls.append("orphans")
            return 0

    now = [0.0]
    keeping = Housekeeping(Counting(), Settings(retention_days=1), lambda: now[0])
    for number in range(1, 9):
        keeping.step()
        assert len(calls) == min(number, 7)
    assert calls == ["prune", "prune", "prune", "datasets", "thin", "keys", "orphans"]
    now[0] = EVERY_SECONDS
    keeping.step()
    assert calls[7:] == ["prune"]


def test_housekeeping_goes_on_where_the_database_was_away_and_past_what_fails(caplog):
    calls = []

    class Failing:
        def prune(self, **options):
            calls.append("prune")
            if len(calls) == 1:
                raise StoreUnavailable("away")
            return 0

        def prune_datasets(self, **options):
            raise RuntimeError("a fault in a statement")

        def thin(self, **options):
            calls.append("thin")
            return 0

        forget_keys = drop_orphans = thin

    keeping = Housekeeping(Failing(), Settings(retention_days=1), lambda: 0.0)
    with pytest.raises(StoreUnavailable):
        keeping.step()
    for _ in range(3):
        keeping.step()
    assert calls == ["prune", "prune", "thin"]
    assert "a fault in a statement" in caplog.text
