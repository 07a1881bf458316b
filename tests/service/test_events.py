"""Event streams: many share one look at the database, outlive its absence, and are resumed without gap or repeat."""

import asyncio
import random
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from httpx_sse import EventSource
from sqlalchemy.exc import OperationalError

from featurespeed.contract import Progress
from featurespeed_service.api.app import create_app
from featurespeed_service.api.routes import events
from featurespeed_service.api.watching import Watch
from featurespeed_service.store.errors import StoreUnavailable
from featurespeed_service.store.jobs import SqlJobStore
from tests.service.conftest import Api
from tests.service.service_process import wait_until
from tests.service.sse import read_events
from tests.service.test_api import claimed, submitted


@pytest.fixture
def own(tmp_path):
    with Api(tmp_path / "api") as api:
        yield api


def counted(monkeypatch, name):
    """The calls of a method of the store, whichever tenant's."""
    calls, method = [], getattr(SqlJobStore, name)

    def call(self, *arguments):
        calls.append(arguments)
        return method(self, *arguments)

    monkeypatch.setattr(SqlJobStore, name, call)
    return calls


def progress(done, total=3):
    return Progress(cells_done=done, cells_total=total, fraction=done / total, message="measuring")


def test_idle_streams_share_one_query(own, monkeypatch):
    jobs = [submitted(own, seed) for seed in range(40)]
    reads, looks = counted(monkeypatch, "events"), counted(monkeypatch, "newest_events")
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(own.http.stream("GET", f"/v1/jobs/{job.id}/events"))
        wait_until(lambda: looks and len(looks[-1][0]) == 40, 20, "all streams")
        wait_until(lambda: len(reads) >= 80, 20, "the first looks")
        before = len(reads), len(looks)
        wait_until(lambda: len(looks) >= before[1] + 5, 20, "five more looks")
        assert len(reads) == before[0]
        assert "featurespeed_event_streams 40.0" in own.http.get("/metrics").text
    wait_until(lambda: "featurespeed_event_streams 0.0" in own.http.get("/metrics").text, 20, "the end of the streams")
    end = len(looks)
    time.sleep(0.2)
    assert len(looks) <= end + 1  # nobody watches, nobody asks


def test_a_stream_waits_for_a_database_that_is_away(own, monkeypatch):
    job = submitted(own, 1)
    lease = claimed(own, job)
    away, asked, method = threading.Event(), threading.Event(), own.store.newest_events

    def newest_events(job_ids):
        if away.is_set():
            asked.set()
            raise OperationalError("SELECT", {}, Exception("gone"))
        return method(job_ids)

    monkeypatch.setattr(own.store, "newest_events", newest_events)
    with own.http.stream("GET", f"/v1/jobs/{job.id}/events") as answer:
        events = EventSource(answer).iter_sse()
        assert [next(events).event, next(events).event] == ["status", "status"]
        away.set()
        assert asked.wait(20)
        own.store.succeed(lease, "{}")
        away.clear()
        assert '"succeeded"' in next(events).data
        assert list(events) == []


def read_in_pieces(api, job_id, random, disconnects):
    """All events of a job over a connection that is cut at random and resumed."""
    seen, last = [], None
    while True:
        headers = {} if last is None else {"Last-Event-ID": last}
        left = random.randrange(1, 6) if disconnects > 0 else 10**9
        with api.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
            for event in EventSource(answer).iter_sse():
                seen.append((event.id, event.event, event.data))
                last = event.id
                left -= 1
                if left == 0:
                    break
        disconnects -= 1
        if seen and seen[-1][1] == "status" and '"status":"succeeded"' in seen[-1][2]:
            return seen, disconnects


def work(api, lease, stop, measurements):
    for number in range(measurements):
        api.store.record(lease, progress=progress(number, measurements), measurements=[f'{{"step": {number}}}'])
        if stop.wait(0.002):
            return
    api.store.succeed(lease, "{}")


def test_a_stream_that_is_cut_often_tells_everything_once(own):
    job = submitted(own, 3)
    lease, stop = claimed(own, job), threading.Event()
    worker = threading.Thread(target=work, args=(own, lease, stop, 60))
    worker.start()
    try:
        seen, left = read_in_pieces(own, job.id, random.Random(0), 12)
    finally:
        stop.set() if not worker.is_alive() else None
        worker.join(60)
    assert left < 0  # it was cut as often as it should be
    assert_told_once(seen, read_events(own.http, job.id))


def assert_told_once(seen, undisturbed):
    numbers = [int(number) for number, _, _ in seen]
    assert numbers == sorted(set(numbers))
    kept = [event for event in seen if event[1] != "progress"]
    assert kept == [tuple(event) for event in undisturbed if event.event != "progress"]


async def leave_while_an_event_is_sent(app, path):
    """Ask for events as a client that reads slowly and hangs up in the middle of one."""
    is_gone = asyncio.Event()
    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        if (first := next(asked, None)) is not None:
            return first
        await is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message.get("body"):
            await asyncio.sleep(0.05)
            is_gone.set()
            await asyncio.sleep(0.05)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [(b"host", b"localhost")]}
    scope |= {"asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http"}
    await app(
        scope | {"raw_path": path.encode(), "server": ("localhost", 80), "client": ("127.0.0.1", 1)}, receive, send
    )


def test_a_client_that_hangs_up_is_no_error(own, caplog):
    job = submitted(own)
    lease = claimed(own, job)
    own.store.record(lease, progress=progress(0), measurements=["{}"] * 50)
    app = create_app(own.settings, own.store)
    asyncio.run(leave_while_an_event_is_sent(app, f"/v1/jobs/{job.id}/events"))
    assert "request failed" not in caplog.text


def test_news_are_not_forgotten_while_the_key_cannot_be_asked_about(monkeypatch):
    """What a watch tells it tells once: also if the database is away just then."""
    monkeypatch.setattr(events, "RECHECK_SECONDS", 0.01)
    asked = []

    async def recheck():
        asked.append(1)
        if len(asked) == 1:
            raise StoreUnavailable("away")

    async def news():
        watch = Watch()
        watch.tell(7)
        return await asyncio.wait_for(events._news(watch, SimpleNamespace(recheck=recheck)), 5)

    assert asyncio.run(news()) is True
    assert len(asked) == 2
