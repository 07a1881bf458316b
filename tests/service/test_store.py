"""The store, one suite for every kind of database."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from featurespeed.contract import Job, JobError, Progress
from featurespeed_service.store.database import Database
from featurespeed_service.store.errors import (
    IdempotencyConflict,
    InvalidCursor,
    JobNotFound,
    KeyOfDeletedJob,
    LeaseLost,
    WrongStatus,
)
from featurespeed_service.store.records import TRANSITIONS, Lease, News
from featurespeed_service.store.schema import dispatchers
from featurespeed_service.store.sql import SqlStore
from tests.service.conftest import LEASE_SECONDS
from tests.service.specs import request

PROGRESS = Progress(cells_done=1, cells_total=3, fraction=0.5, message="seed 0: step 1")
STARTS = "the job was started 3 times in a row without finishing a cell"
CRASH = JobError(type="worker-crashed", detail="the worker of seed 0 died")


def statuses(store, job_id):
    return [Job.model_validate_json(e.data).status for e in store.events(job_id) if e.type == "status"]


def test_a_job_lives_from_submission_to_result(store, clock):
    job = store.submit(request())
    assert (job.status, job.attempt, job.progress.cells_total) == ("queued", 0, 3)
    clock.advance(1)
    claim = store.claim("d1")
    assert (claim.job.id, claim.lease.attempt, claim.cells) == (job.id, 1, {})
    assert claim.job.request == request()
    store.record(claim.lease, progress=PROGRESS, cells={"seed 0": "{}"}, measurements=['{"m": 1}'])
    assert store.get(job.id).progress == PROGRESS
    clock.advance(1)
    done = store.succeed(claim.lease, '{"report": 1}')
    assert (done.status, done.progress.fraction) == ("succeeded", 1.0)
    assert (done.finished_at - done.created_at).total_seconds() == 2
    assert store.result(job.id).text == '{"report": 1}'
    assert statuses(store, job.id) == ["queued", "running", "succeeded"]


def test_jobs_are_claimed_in_the_order_of_submission(store, clock):
    ids = []
    for seed in range(3):
        ids.append(store.submit(request(seed)).id)
        clock.advance(0.001)
    assert [store.claim("d").job.id for _ in ids] == ids
    assert store.claim("d") is None


def test_an_idempotency_key_gives_the_same_job(store):
    job = store.submit(request(1), "key")
    assert store.submit(request(1), "key").id == job.id
    assert store.submit(request(1), "other").id != job.id
    with pytest.raises(IdempotencyConflict):
        store.submit(request(2), "key")


def test_one_key_at_the_same_time_makes_one_job(store):
    barrier = threading.Barrier(8)

    def submit(_):
        barrier.wait()
        return store.submit(request(), "key").id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(submit, range(8)))) == 1


def test_a_job_is_claimed_once_by_many_dispatchers(store, database_url, clock):
    for seed in range(12):
        store.submit(request(seed))
    barrier = threading.Barrier(4)

    def claim_all(owner):
        own = SqlStore(Database(database_url, clock), LEASE_SECONDS)
        barrier.wait()
        claims = []
        while claim := own.claim(owner):
            claims.append(claim.job.id)
        own.close()
        return claims

    with ThreadPoolExecutor(4) as pool:
        claimed = [job_id for claims in pool.map(claim_all, "abcd") for job_id in claims]
    assert len(claimed) == len(set(claimed)) == 12


def test_an_expired_lease_is_claimed_again_with_its_cells(store, clock):
    store.submit(request())
    first = store.claim("d1")
    store.record(first.lease, progress=PROGRESS, cells={"seed 0": '{"seed": 0}'})
    clock.advance(LEASE_SECONDS)
    assert store.claim("d2") is None
    clock.advance(0.001)
    second = store.claim("d2")
    assert second.lease == Lease(first.lease.job_id, 2)
    assert second.cells == {"seed 0": '{"seed": 0}'}
    assert second.job.started_at == first.job.started_at


def test_a_renewed_lease_does_not_expire(store, clock):
    store.submit(request())
    claim = store.claim("d1")
    for _ in range(3):
        clock.advance(LEASE_SECONDS - 1)
        store.renew(claim.lease)
    assert store.claim("d2") is None


@pytest.mark.parametrize(
    "write",
    [
        lambda s, lease: s.renew(lease),
        lambda s, lease: s.record(lease, progress=PROGRESS, cells={"seed 2": "late"}, measurements=["late"]),
        lambda s, lease: s.succeed(lease, "late"),
        lambda s, lease: s.fail(lease, CRASH),
        lambda s, lease: s.retry(lease, CRASH),
        lambda s, lease: s.release(lease),
        lambda s, lease: s.confirm_cancelled(lease),
    ],
    ids=["renew", "record", "succeed", "fail", "retry", "release", "confirm_cancelled"],
)
@pytest.mark.parametrize("how", ["taken", "ended", "released and taken", "deleted"])
def test_a_lost_lease_writes_nothing(store, clock, write, how):
    job = store.submit(request())
    old = store.claim("d1").lease
    if how == "released and taken":
        store.release(old)
    elif how != "ended":
        clock.advance(LEASE_SECONDS + 1)
    new = store.claim("d2").lease if how != "ended" else old
    if how in ("ended", "deleted"):
        store.succeed(new, "{}")
    if how == "deleted":
        store.delete(job.id)
    before = store.events(job.id)
    with pytest.raises(LeaseLost):
        write(store, old)
    assert store.events(job.id) == before
    assert store.stop_requests([old]) == {old: "lost"}
    if "taken" in how:
        assert store.claim("d3") is None  # still held by the new one
        store.release(new)
        assert store.claim("d3").cells == {}


def test_attempts_are_bounded(store, clock):
    job = store.submit(request())
    for attempt in (1, 2, 3):
        assert store.claim("d").lease.attempt == attempt
        clock.advance(LEASE_SECONDS + 1)
    assert store.claim("d") is None
    failed = store.get(job.id)
    assert (failed.status, failed.error.type) == ("failed", "attempts-exhausted")
    assert "3 times" in failed.error.detail


def test_a_finished_cell_makes_the_attempts_start_over(store, clock):
    store.submit(request())
    for number in range(6):
        claim = store.claim("d")
        if number % 2:
            store.record(claim.lease, progress=PROGRESS, cells={f"seed {number}": "{}"})
        clock.advance(LEASE_SECONDS + 1)
    assert store.claim("d").lease.attempt == 7


def test_a_record_may_be_repeated(store):
    store.submit(request())
    lease = store.claim("d").lease
    for _ in range(2):
        store.record(lease, progress=PROGRESS, cells={"seed 0": "first", "seed 1": "{}"})
    store.record(lease, progress=PROGRESS, cells={"seed 0": "second", "seed 2": "{}"})
    store.release(lease)
    assert store.claim("d").cells == {"seed 0": "first", "seed 1": "{}", "seed 2": "{}"}


def test_a_crash_is_retried_until_the_attempts_are_used_up(store):
    job = store.submit(request())
    for _ in range(2):
        assert store.retry(store.claim("d").lease, CRASH).status == "queued"
    failed = store.retry(store.claim("d").lease, CRASH)
    assert failed.status == "failed"
    assert failed.error == JobError(type="worker-crashed", detail=f"{CRASH.detail}; {STARTS}")
    assert store.get(job.id) == failed


def test_a_release_costs_no_attempt(store, clock):
    job = store.submit(request())
    for _ in range(5):
        store.release(store.claim("d").lease)
    assert store.get(job.id).status == "queued"
    for _ in range(3):
        assert store.claim("d") is not None
        clock.advance(LEASE_SECONDS + 1)
    assert store.claim("d") is None


def test_cancel_queued_running_and_finished(store):
    queued = store.submit(request())
    assert store.cancel(queued.id).status == "cancelled"
    assert store.claim("d") is None

    running = store.submit(request())
    lease = store.claim("d").lease
    assert store.cancel(running.id).status == "running"
    assert store.stop_requests([lease]) == {lease: "cancel"}
    assert store.confirm_cancelled(lease).status == "cancelled"
    assert store.cancel(running.id).status == "cancelled"

    finished = store.submit(request())
    store.succeed(store.claim("d").lease, "{}")
    assert store.cancel(finished.id).status == "succeeded"


def test_a_cancelled_job_whose_dispatcher_died_is_not_started_again(store, clock):
    job = store.submit(request())
    store.claim("d")
    store.cancel(job.id)
    clock.advance(LEASE_SECONDS + 1)
    assert store.claim("d") is None
    assert store.get(job.id).status == "cancelled"


def test_listing_is_newest_first_filtered_and_paged(store, clock):
    ids = []
    for seed in range(5):
        ids.append(store.submit(request(seed, kind="recommend" if seed % 2 else "measure")).id)
        clock.advance(0.5 if seed < 3 else 0)  # the last two at the same moment
    newest = ids[:3][::-1]
    newest = sorted(ids[3:], reverse=True) + newest
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = store.page(cursor=cursor, limit=2)
        found += [job.id for job in page.jobs]
        cursor, pages = page.next_cursor, pages + 1
    assert (found, pages) == (newest, 3)
    assert [j.id for j in store.page(kind="recommend").jobs] == [i for i in newest if i in (ids[1], ids[3])]
    store.cancel(ids[0])
    assert [j.id for j in store.page(status="cancelled").jobs] == [ids[0]]
    assert store.counts() == {"queued": 4, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 1}


def test_a_page_that_ends_exactly_has_no_next(store):
    store.submit(request())
    assert store.page(limit=1).next_cursor is None


@pytest.mark.parametrize("cursor", ["", "x", "bnVsbA", "WzEsMl0", "WyJhIiwiYiJd", "é", "e30"])
def test_a_foreign_cursor_is_refused(store, cursor):
    with pytest.raises(InvalidCursor):
        store.page(cursor=cursor)


def test_only_the_newest_progress_is_kept_and_all_measurements(store):
    job = store.submit(request())
    lease = store.claim("d").lease
    for i in range(4):
        store.record(lease, progress=PROGRESS.model_copy(update={"message": f"{i}"}), measurements=[f'"{i}"'])
    told = store.events(job.id)
    assert [e.data for e in told if e.type == "measurement"] == ['"0"', '"1"', '"2"', '"3"']
    assert [Progress.model_validate_json(e.data).message for e in told if e.type == "progress"] == ["3"]
    assert [e.seq for e in told] == sorted({e.seq for e in told})
    middle = told[2].seq
    assert store.events(job.id, after=middle) == [e for e in told if e.seq > middle]


def test_delete_is_for_finished_jobs_and_complete(store):
    job = store.submit(request(), "key")
    with pytest.raises(WrongStatus, match="queued"):
        store.delete(job.id)
    lease = store.claim("d").lease
    store.record(lease, progress=PROGRESS, cells={"seed 0": "{}"}, measurements=["{}"])
    with pytest.raises(WrongStatus, match="running"):
        store.delete(job.id)
    store.succeed(lease, "{}")
    store.delete(job.id)
    assert store.events(job.id) == []
    for call in (store.get, store.delete, store.cancel, store.result):
        with pytest.raises(JobNotFound):
            call(job.id)
    with pytest.raises(KeyOfDeletedJob):
        store.submit(request(), "key")


def test_result_of_a_job_without_one(store):
    job = store.submit(request())
    with pytest.raises(WrongStatus, match="queued"):
        store.result(job.id)
    store.fail(store.claim("d").lease, CRASH)
    with pytest.raises(WrongStatus, match="the worker of seed 0 died"):
        store.result(job.id)


def test_heartbeats(store, clock):
    assert store.last_heartbeat() is None
    store.beat("a")
    clock.advance(3)
    store.beat("b")
    clock.advance(1)
    assert store.last_heartbeat() == 1
    store.retire("b")
    assert store.last_heartbeat() == 4
    store.beat("a")
    assert store.last_heartbeat() == 0


def test_the_transitions_end_where_the_contract_says():
    assert {status for status, following in TRANSITIONS.items() if not following} == {
        "succeeded",
        "failed",
        "cancelled",
    }
    assert set().union(*TRANSITIONS.values()) == set(TRANSITIONS)


def test_tenants_do_not_see_each_other(store):
    """Every method that takes a job's id, and the listing; a key of one is not a key of the other."""
    ours, theirs = store.of_tenant("ours"), store.of_tenant("theirs")
    job = ours.submit(request(1), "key")
    assert theirs.submit(request(2), "key").id != job.id
    assert ours.submit(request(1), "key").id == job.id
    for method in (theirs.get, theirs.result, theirs.cancel, theirs.delete):
        with pytest.raises(JobNotFound):
            method(job.id)
    assert theirs.events(job.id) == []
    assert [event.type for event in ours.events(job.id)] == ["status"]
    assert [job.id for job in ours.page().jobs] == [job.id]
    assert job.id not in [job.id for job in theirs.page().jobs]
    assert (ours.counts()["queued"], store.counts()["queued"]) == (1, 2)
    assert ours.get(job.id).status == "queued"


def test_news_whose_acknowledgement_was_lost_is_told_once(store):
    job = store.submit(request())
    lease = store.claim("d").lease
    first = News(job.progress, {"seed 0": "1"}, ("[1]", "[2]"))
    store.record_all({lease: first})
    again = News(job.progress, {"seed 0": "1"}, ("[1]", "[2]", "[3]"), in_doubt=True)
    store.record_all({lease: again})
    told = [event.data for event in store.events(job.id) if event.type == "measurement"]
    assert told == ["[1]", "[2]", "[3]"]


def test_a_dispatcher_that_died_long_ago_is_forgotten(store, clock):
    store.beat("dead")
    clock.advance(86_401)
    store.beat("alive")
    with store._database.reading() as connection:
        assert connection.execute(select(dispatchers.c.id)).scalars().all() == ["alive"]
