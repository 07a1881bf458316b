"""What probes see: a process that lives, a service that is ready, and HEAD."""

import threading
import time

import pytest
from sqlalchemy import text

from featurespeed_service.api.looking import Look
from featurespeed_service.store.errors import JobNotFound
from tests.service.conftest import Api
from tests.service.specs import spec
from tests.service.test_api import problem


@pytest.fixture
def own(tmp_path):
    """An API that a test may break."""
    with Api(tmp_path / "api") as api:
        yield api


def test_readiness_is_about_the_database_and_tells_of_the_dispatcher(own):
    assert own.http.get("/readyz").json() == {"status": "ready", "dispatcher": "none yet"}
    own.store.beat("test")
    assert own.http.get("/readyz").json() == {"status": "ready", "dispatcher": "alive"}
    with own.store._database.writing() as connection:
        connection.execute(text("UPDATE dispatchers SET beat_at = beat_at - 12000000"))
    assert own.http.get("/readyz").json()["dispatcher"].startswith("silent for 1")


def test_another_revision_of_the_database_is_not_ready(own):
    with own.store._database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    answer = own.http.get("/readyz")
    found = problem(answer, 503, "not-ready")
    assert "9999" in found.detail
    assert int(answer.headers["retry-after"]) > 0
    assert own.http.get("/livez").status_code == 200


def test_a_database_that_hangs_is_asked_by_one_thread_alone(own, monkeypatch):
    freed, calls = threading.Event(), []

    def hang():
        calls.append(threading.current_thread())
        freed.wait(60)
        return 0.0

    monkeypatch.setattr(own.store, "last_heartbeat", hang)
    for _ in range(2):
        found = problem(own.http.get("/readyz"), 503, "not-ready")
        assert found.detail == "the database does not answer"
    assert own.http.get("/livez").status_code == 200
    assert len(calls) == 1
    freed.set()
    calls[0].join(10)
    end = time.monotonic() + 20
    while own.http.get("/readyz").status_code != 200:
        assert time.monotonic() < end


def test_a_database_that_is_broken_says_so(own):
    with own.store._database.writing() as connection:
        connection.execute(text("DROP TABLE dispatchers"))
    assert "cannot be reached (OperationalError)" in problem(own.http.get("/readyz"), 503, "not-ready").detail


def test_a_service_that_stops_is_not_ready(own):
    own.app.state.context.stopping.set()
    problem(own.http.get("/readyz"), 503, "not-ready")
    assert own.http.get("/livez").status_code == 200


@pytest.mark.anyio
async def test_a_look_raises_what_it_meets():
    def look():
        raise JobNotFound("x")

    with pytest.raises(JobNotFound):
        await Look(look).ask()


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_head_is_get_without_a_body(api):
    job = api.http.post("/v1/jobs", json=spec()).json()["id"]
    for path in (
        "/livez",
        "/v1/jobs",
        f"/v1/jobs/{job}",
        f"/v1/jobs/{job}/events",
        "/metrics",
        "/",
        "/static/main.js",
        "/v1/events",
        "/v1/jobs/nobody",
    ):
        head = api.http.head(path)
        assert (head.content, bool(head.headers["x-request-id"])) == (b"", True)
        with api.http.stream("GET", path) as get:
            assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert api.http.head(f"/v1/datasets/{0:064d}").status_code == 405
