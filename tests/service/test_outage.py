"""The database goes away and comes back: what the store raises, and what the API says."""

import errno
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx_sse import EventSource

from featurespeed_service.dispatch.outage import Outage
from featurespeed_service.settings import Settings
from featurespeed_service.store.database import Database
from featurespeed_service.store.errors import StoreFull, StoreUnavailable
from featurespeed_service.store.sql import SqlStore
from tests.service.conftest import Api
from tests.service.postgres import Unavailable, running
from tests.service.specs import request, spec
from tests.service.sse import read_events


@pytest.fixture(scope="module")
def mortal():
    """A PostgreSQL that may be stopped."""
    try:
        with running() as server:
            yield server
    except Unavailable as error:
        pytest.skip(f"no PostgreSQL here: {error}")


def test_a_restart_of_postgresql_loses_nothing(mortal):
    store = SqlStore(Database(mortal.new_database()))
    job = store.submit(request(), "key")
    lease = store.claim("d").lease
    mortal.stop()
    for call in (store.revision, lambda: store.submit(request(), "key"), lambda: store.renew(lease)):
        with pytest.raises(StoreUnavailable):
            call()
    mortal.start()
    assert store.submit(request(), "key").id == job.id
    store.renew(lease)
    assert store.succeed(lease, "{}").status == "succeeded"
    store.close()


def test_a_transaction_that_is_cut_off_is_unavailable(mortal):
    database = Database(mortal.new_database())
    with pytest.raises(StoreUnavailable), database.writing() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(StoreUnavailable), database.reading() as connection:
        connection.exec_driver_sql("SET statement_timeout = 10; SELECT pg_sleep(5)")
    database.close()


def test_a_server_that_became_read_only_is_unavailable(mortal):
    """As the old primary after a failover."""
    url = mortal.new_database()
    database = Database(url)
    name = url.rsplit("/", 1)[1]
    with database.writing() as connection:
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    database.close()
    database = Database(url)
    store = SqlStore(database)
    with pytest.raises(StoreUnavailable, match="read-only"):
        store.submit(request())
    store.close()


def test_a_full_disk_and_a_locked_file_of_sqlite(tmp_path, monkeypatch):
    monkeypatch.setattr("featurespeed_service.store.database.BUSY_TIMEOUT_SECONDS", 0.1)
    path = tmp_path / "store.sqlite3"
    store = SqlStore(Database(f"sqlite:///{path}"))
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.submit(request())
        other.execute("ROLLBACK")
    other.close()
    with store._database.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFull):  # the pool hands out the same connection
        list(map(store.submit, map(request, range(1000))))
    store.close()


def test_a_mistake_in_a_statement_is_no_outage(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'store.sqlite3'}")
    with pytest.raises(Exception, match="no such table") as raised, database.reading() as connection:
        connection.exec_driver_sql("SELECT * FROM nowhere")
    assert not isinstance(raised.value, StoreUnavailable)
    database.close()


def test_every_route_says_503_and_when_to_come_again(tmp_path, monkeypatch):
    monkeypatch.setattr("featurespeed_service.store.database.BUSY_TIMEOUT_SECONDS", 0.1)
    with Api(tmp_path) as api:
        job_id = api.http.post("/v1/jobs", json=spec()).json()["id"]
        path = api.settings.database_url.removeprefix("sqlite:///")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        asked = [
            ("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("GET", f"/v1/jobs/{job_id}"), ("DELETE", f"/v1/jobs/{job_id}"),
            ("GET", f"/v1/jobs/{job_id}/result"), ("POST", f"/v1/jobs/{job_id}:cancel"),
            ("GET", f"/v1/jobs/{job_id}/events"),
        ]  # fmt: skip
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(
                pool.map(lambda what: api.http.request(*what, json=spec() if what == asked[0] else None), asked)
            )
        other.execute("ROLLBACK")
        other.close()
        for what, answer in zip(asked, answers, strict=True):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), (what, answer.text)
            assert answer.json()["type"] == "urn:featurespeed:problem:database-unavailable"
        assert api.http.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"


def test_a_stream_loses_nothing_in_an_outage(tmp_path, monkeypatch):
    """It waits, or ends so that the client resumes."""
    monkeypatch.setattr("featurespeed_service.store.database.BUSY_TIMEOUT_SECONDS", 0.1)
    with Api(tmp_path) as api:
        job_id = api.http.post("/v1/jobs", json=spec()).json()["id"]
        other = sqlite3.connect(api.settings.database_url.removeprefix("sqlite:///"), isolation_level=None)
        with api.http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            seen = EventSource(answer).iter_sse()
            first = next(seen)
            other.execute("BEGIN EXCLUSIVE")
            for _ in range(10):  # a tenth of a second each
                with pytest.raises(StoreUnavailable):
                    api.store.counts()
            other.execute("ROLLBACK")
            api.store.cancel(job_id)
            rest = list(seen)
        rest = rest or read_events(api.http, job_id, first.id)
        other.close()
    assert ['"status":"cancelled"' in event.data for event in rest] == [True]


def test_sqlite_in_memory_is_refused():
    with pytest.raises(ValueError, match="sqlite:///FILE"):
        Database("sqlite://")
    assert Settings().max_crashes == 3


def test_signs_of_life_are_given_before_every_call_that_may_wait():
    told = []
    outage = Outage(lambda: told.append("alive"))
    outage.ask(lambda: told.append("first"), lambda: told.append("second"))
    with outage.noticed():
        told.append("third")
    assert all(told[told.index(call) - 1] == "alive" for call in ("first", "second", "third"))


def test_a_disk_that_fills_up_under_an_upload_is_507(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("featurespeed_service.api.datasets.tempfile.NamedTemporaryFile", full)
    with Api(tmp_path / "api") as api:
        answer = api.http.put(f"/v1/datasets/{'0' * 64}", content=b"x")
    assert answer.status_code == 507
    assert answer.json()["type"].endswith(":insufficient-storage")
