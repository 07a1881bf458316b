"""Hostile requests cost little and come to nothing: a real service, real HTTP, both databases."""

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path

import httpx
import psutil
import pytest

from featurespeed.contract import Problem, parse_request
from featurespeed_workers.ray_tasks import TINY
from tests.service import hostile, hostile_specs
from tests.service.hostile import http, post
from tests.service.service_process import ServiceProcess
from tests.service.specs import spec

MIB = 2**20
SECONDS = 1.0
GROWTH = 100 * 10**6
BODY_SECONDS = 5
LEAST = 200
ON_SQLITE = pytest.mark.parametrize("target", ["sqlite"], indirect=True)
"""What no database has to do with."""


def connect(service):
    url = service.http.base_url
    return socket.create_connection((url.host, url.port), timeout=30)


def sent(connection, wire):
    """Send until all is sent or the other end has had enough; how many bytes."""
    size = 0
    with suppress(OSError):
        for piece in [wire] if isinstance(wire, bytes) else wire:
            connection.sendall(piece)
            size += len(piece)
    return size


def answered(connection):
    """(status, content type, body) of the next answer."""
    with closing(HTTPResponse(connection)) as answer:
        answer.begin()
        return answer.status, answer.headers["content-type"], answer.read()


def asked(service, case):
    """The answer to a case, and the seconds that it took."""
    with connect(service) as connection:
        sending = threading.Thread(target=sent, args=(connection, case.wire), daemon=True)
        start = time.perf_counter()
        sending.start()
        try:
            answer = answered(connection)
        except (OSError, HTTPException) as error:
            raise AssertionError(f"{case.name}: no answer: {error!r}") from error
        seconds = time.perf_counter() - start
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        sending.join()
    return answer, seconds


def refused(service, case):
    """Check that a case is refused as promised; gives its status, and the seconds of the quietest try."""
    best = float("inf")
    for _ in range(3):  # two cores, shared with what else runs
        (status, media_type, body), seconds = asked(service, case)
        assert 400 <= status < 500, (case.name, status, body[:300])
        assert media_type == "application/problem+json", (case.name, media_type)
        assert Problem.model_validate_json(body).status == status, case.name
        assert len(body) < 32_000, (case.name, len(body))
        best = min(best, seconds)
        if best <= SECONDS:
            return status, best
    raise AssertionError(f"{case.name}: {best:.2f} s at best")


WARM_UP = parse_request(TINY).sha256
"""What workers compute before anybody has asked."""


def peak(service):
    """The most memory that the process has had, in bytes; where that is not told, what it has."""
    status = Path(f"/proc/{service.process.pid}/status")
    if status.is_file():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return psutil.Process(service.process.pid).memory_info().rss


BEGUN = post(b"", b"Content-Length: 1000")
SLOW = [
    (b"", b"", b""),
    (b"", b"\r\n", b"HTTP/1.1 408 "),
    (b"GET / HTTP/1.1\r\n", b"", b"HTTP/1.1 408 "),
    (b"GET / HTTP/1.1\r\nX: ", b"x", b"HTTP/1.1 408 "),
    (BEGUN, b"", b"HTTP/1.1 408 "),
    (BEGUN, b" ", b"HTTP/1.1 408 "),
    (http("POST", "/v2", b"", b"Content-Length: 1000"), b"x", b"HTTP/1.1 404 "),
    (http("GET", "/v2"), b"\r\n", b"HTTP/1.1 404 "),
]
"""What is sent at once, what then every half second, and what is to come back before the connection ends."""


def slow(service, first, then=b""):
    """Send something, then little by little, until the other end closes; what came back."""
    with connect(service) as connection:
        connection.sendall(first)
        came, end = b"", time.monotonic() + 60
        connection.settimeout(0.5)
        while time.monotonic() < end:
            try:
                piece = connection.recv(65_536)
            except TimeoutError:
                with suppress(OSError):
                    connection.sendall(then)
                continue
            except OSError:
                return came
            if not piece:
                return came
            came += piece
    raise AssertionError(f"{first[:30]!r}: still open")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def target(request, tmp_path_factory):
    """An API; in full, with a dispatcher and Ray behind it."""
    settings = {"body_seconds": BODY_SECONDS}
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        settings["database"] = server.new_database(request.getfixturevalue("migrated"))
    dispatcher = request.getfixturevalue("full")
    with ServiceProcess(tmp_path_factory.mktemp(request.param), dispatcher=dispatcher, **settings) as service:
        if dispatcher:
            service.wait_ready()
        with ThreadPoolExecutor(len(SLOW)) as pool:  # all the while, as they take long
            each = SLOW if request.param == "sqlite" else ()
            service.slow = [pool.submit(slow, service, first, then) for first, then, _ in each]
            yield service


def test_hostile_requests_are_refused_and_cost_little(target, full, report):
    cases = list(hostile.cases())
    assert len(cases) >= LEAST
    refused(target, cases[0])
    before = psutil.Process(target.process.pid).memory_info().rss
    results = [refused(target, case) for case in cases * (3 if full else 1)]
    with ThreadPoolExecutor(16) as pool:  # the heaviest, at once: here it is memory that counts
        heavy = [case for case in cases if isinstance(case.wire, bytes) and len(case.wire) > 100_000]
        statuses = {
            status for (status, *_), _ in pool.map(lambda case: asked(target, case), heavy[:: 1 if full else 3])
        }
    growth = peak(target) - before
    assert all(400 <= status < 500 for status in statuses)
    assert growth < GROWTH, f"{growth / 1e6:.0f} MB"
    assert target.http.get("/v1/jobs").json() == {"jobs": [], "next_cursor": None}
    assert {line.split()[0] for line in target.computed.read_text().splitlines()} <= {WARM_UP}
    assert "Traceback" not in target.log.read_text()
    slowest = max(seconds for _, seconds in results)
    measured = f"{len(results)} requests, slowest {slowest:.2f} s, {growth / 1e6:.0f} MB"
    report.row("Specs cannot exhaust it", "4xx in 1 s, < 100 MB, none reaches Ray", measured)


@ON_SQLITE
def test_what_has_no_end_is_given_up(target):
    for case in [hostile.FLOOD, *hostile.cases()]:
        if not isinstance(case.wire, bytes):
            with connect(target) as connection:
                assert sent(connection, case.wire) < 40 * MIB, case.name  # of which the sockets keep a few


def test_good_requests_go_on_meanwhile(target):
    answer = target.http.post("/v1/jobs", json=spec(3))
    assert answer.status_code == 202
    large = b"%s%s" % (b" " * 900_000, httpx.Request("POST", "http://x", json=spec(3)).content)
    assert target.http.post("/v1/jobs", content=large).status_code == 202
    with connect(target) as connection:  # the body of what is refused is read, and the connection goes on
        for wire, status in [(http("POST", "/v2", b" " * 3 * MIB), 404), (http("GET", "/livez"), 200)]:
            connection.sendall(wire)
            assert answered(connection)[0] == status


def test_fifty_posts_with_one_key_are_one_job(target):
    key = {"Idempotency-Key": "fifty"}
    barrier = threading.Barrier(50)

    def submit(_):
        with httpx.Client(base_url=target.http.base_url, timeout=60) as client:
            barrier.wait()
            return client.post("/v1/jobs", json=spec(50), headers=key)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(submit, range(50)))
    assert Counter(answer.status_code for answer in answers) == {202: 50}
    (job_id,) = {answer.json()["id"] for answer in answers}
    listed = [
        job["id"]
        for job in target.http.get("/v1/jobs?limit=200").json()["jobs"]
        if job["request"]["data"]["seed"] == 50
    ]
    assert listed == [job_id]
    other = target.http.post("/v1/jobs", json=spec(51), headers=key)
    assert (other.status_code, other.json()["type"]) == (422, "urn:featurespeed:problem:idempotency-conflict")


def test_a_page_of_large_requests_is_no_larger_than_four_mebibytes(target):
    values = dict.fromkeys(hostile_specs.NAMES, 0.12345678901234567)
    large = spec(60, architecture=hostile_specs.DEEP, initialization=values, learning_rates=values)
    ids = [target.http.post("/v1/jobs", json=large).raise_for_status().json()["id"] for _ in range(17)]
    found, parameters = [], {"limit": 200}
    pages = 0
    while len(found) < len(ids):
        answer = target.http.get("/v1/jobs", params=parameters)
        assert len(answer.content) < 5 * MIB
        page = answer.json()
        found += [job["id"] for job in page["jobs"]]
        parameters["cursor"] = page["next_cursor"]
        pages += 1
    assert found[: len(ids)] == ids[::-1]
    assert pages > 1


@ON_SQLITE
def test_slow_requests_are_ended(target):
    for (first, then, expected), pending in zip(SLOW, target.slow, strict=True):
        answer = pending.result()
        assert answer.startswith(expected), (first, then, answer)
        assert bool(answer) == bool(expected)
