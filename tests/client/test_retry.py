"""Retries and cut streams: what a real server cannot be made to do on demand, at the transport seam."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from featurespeed import (
    Client,
    DeadlineExceeded,
    FeaturespeedError,
    JobFailed,
    NotFound,
    ProblemError,
    ServerUnreachable,
    connection,
)
from featurespeed.contract import Progress
from featurespeed.events import StatusEvent
from featurespeed.retry import EMPTY_STREAMS, MAX_RETRY_AFTER, REQUEST, Deadline, Retry
from tests.client.reports import SPEC, job_json, report

Handler = Callable[[httpx.Request], httpx.Response]


class Script:
    """Answers in turn, the last one again and again; remembers what was asked and how long the client paused."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.bodies.append(request.read())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def client_of(handler: Handler) -> Client:
    return Client("http://test", transport=httpx.MockTransport(handler))


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", made.append)
    return made


def accepted() -> httpx.Response:
    return httpx.Response(202, json=job_json())


BUSY = {"type": "urn:busy", "title": "Busy", "status": 503, "detail": "the queue is full"}


def test_one_idempotency_key_over_all_tries(pauses: list[float]) -> None:
    lost = httpx.ReadError("cut")  # perhaps after the job was queued
    script = Script(httpx.ConnectError("refused"), lost, httpx.Response(503, json=BUSY), accepted())
    client = client_of(script)
    assert client.submit(SPEC).id == "j1"
    keys = {request.headers["idempotency-key"] for request in script.requests}
    assert len(script.requests) == 4
    assert len(keys) == 1
    assert len({*script.bodies}) == 1
    client.submit(SPEC)
    assert script.requests[-1].headers["idempotency-key"] not in keys


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int, pauses: list[float]) -> None:
    script = Script(httpx.Response(status, text="<html>"), httpx.Response(200, json={}))
    assert client_of(script).schema() == {}
    assert len(pauses) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_what_will_not_pass_is_not(status: int, pauses: list[float]) -> None:
    script = Script(httpx.Response(status, text="<html>no</html>"))
    with pytest.raises(ProblemError, match=f"GET http://test/v1/schema answered {status}") as caught:
        client_of(script).schema()
    assert caught.value.status == caught.value.problem.status == status
    assert len(script.requests) == 1


def test_patience_ends(pauses: list[float]) -> None:
    script = Script(httpx.Response(503, json=BUSY, headers={"x-request-id": "r7"}))
    with pytest.raises(ProblemError, match="the queue is full") as caught:
        client_of(script).schema()
    assert caught.value.request_id == "r7"
    assert len(script.requests) == REQUEST.attempts

    with pytest.raises(ServerUnreachable, match="no answer from http://test: refused") as gone:
        client_of(Script(httpx.ConnectError("refused"))).schema()
    assert isinstance(gone.value, ConnectionError)
    assert isinstance(gone.value.__cause__, httpx.ConnectError)
    assert sum(pauses) < 10


def test_the_servers_wish_is_followed(pauses: list[float]) -> None:
    script = Script(httpx.Response(429, headers={"retry-after": "7"}), httpx.Response(200, json={}))
    client_of(script).schema()
    assert pauses == [7.0]


@pytest.mark.parametrize(
    ("wish", "at_least", "at_most"),
    [
        ("100000", MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 0.1, 0.2),
        ("soon", 0.1, 0.2),
        (None, 0.1, 0.2),
    ],
)
def test_retry_after(wish: str | None, at_least: float, at_most: float) -> None:
    assert at_least <= Retry(attempts=2, base=0.2).pause(1, wish) <= at_most


def test_pauses_grow_up_to_a_limit() -> None:
    retry = Retry(attempts=1000, base=1.0, cap=8.0)
    for attempt, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (900, 8)):
        assert longest / 2 <= retry.pause(attempt) <= longest


def test_deadline() -> None:
    assert Deadline().limit(3.0) == 3.0
    assert Deadline(10.0).limit(99.0) <= 10.0
    with pytest.raises(DeadlineExceeded, match="the answer was not there within 0 s") as caught:
        Deadline(0.0).remaining()
    assert isinstance(caught.value, TimeoutError)


def test_upload_sends_the_whole_file_at_every_try(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "set").write_bytes(content)
    script = Script(httpx.Response(503), httpx.ConnectError("refused"), httpx.Response(201, json={}))
    client_of(script).upload_dataset(tmp_path / "set")
    assert script.bodies == [content] * 3
    assert {request.headers["content-length"] for request in script.requests} == {str(len(content))}
    assert "transfer-encoding" not in script.requests[0].headers


class CutStream(httpx.SyncByteStream):
    """Server-sent events, and then no end of the stream but a broken connection."""

    def __init__(self, *messages: str, error: Exception | None = None) -> None:
        self.messages = messages
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        for message in self.messages:
            yield message.encode()
        if self.error is not None:
            raise self.error


def sse(event: str, data: object, number: int) -> str:
    return f"id: {number}\nevent: {event}\ndata: {json.dumps(data)}\n\n"


class Follower:
    """A server whose streams follow a script, and whose job ends after ``looks`` looks at it."""

    def __init__(self, *streams: httpx.Response | Exception, looks: int = 1000, end: str = "succeeded") -> None:
        self.streams = Script(*streams)
        self.looks = looks
        self.end = end

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return self.streams(request)
        if request.url.path.endswith("/result"):
            return httpx.Response(200, text=report().model_dump_json())
        self.looks -= 1
        error = {"type": "urn:x", "detail": "no"} if self.end == "failed" else None
        status = self.end if self.looks <= 0 else "running"
        return httpx.Response(200, json=job_json(status=status, fraction=0.75, error=error))


def stream(*messages: str, error: Exception | None = None) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=CutStream(*messages, error=error))


PROGRESS = {"cells_done": 0, "cells_total": 2, "fraction": 0.25, "message": "", "of_a_newer_version": True}


def test_a_cut_stream_goes_on_after_the_last_event() -> None:
    server = Follower(
        stream(": hello\n\n", sse("progress", PROGRESS, 3), error=httpx.ReadError("cut")),
        httpx.ConnectError("restarting"),
        stream(sse("of_a_newer_version", {}, 4), sse("status", job_json(status="succeeded"), 9)),
    )
    events = list(client_of(server).job("j1").events())
    assert events[0] == Progress(cells_done=0, cells_total=2, fraction=0.25)
    assert events[-1] == StatusEvent(status="succeeded")
    assert [r.headers.get("last-event-id") for r in server.streams.requests] == [None, "3", "3"]


def test_job_that_ends_between_two_streams() -> None:
    server = Follower(stream(sse("progress", PROGRESS, 1)), looks=2)  # the first look is job()
    events = list(client_of(server).job("j1").events())
    assert events[-1] == StatusEvent(status="succeeded")
    assert len(server.streams.requests) == 1


@pytest.mark.parametrize(
    "useless",
    [
        httpx.Response(501),
        httpx.Response(200, text="<html>"),
        httpx.ReadTimeout("a proxy keeps it all back"),
        httpx.RemoteProtocolError("cut"),
    ],
)
def test_without_streams_the_job_is_polled(useless: httpx.Response | Exception) -> None:
    server = Follower(useless, looks=20)
    assert client_of(server).job("j1").wait() == report()
    assert len(server.streams.requests) == EMPTY_STREAMS


def test_events_of_polling_are_told_once() -> None:
    events = list(client_of(Follower(httpx.Response(501), looks=20)).job("j1").events())
    assert events == [
        Progress(cells_done=0, cells_total=1, fraction=0.75),
        StatusEvent(status="running"),
        StatusEvent(status="succeeded"),
    ]


def test_failed_job_is_told_by_polling_too() -> None:
    def no_result(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/result"):
            return httpx.Response(409, json={"type": "x", "title": "t", "status": 409, "detail": "failed"})
        return server(request)

    server = Follower(httpx.Response(501), looks=3, end="failed")
    with pytest.raises(JobFailed, match="job j1 failed: no"):
        client_of(no_result).job("j1").wait()


def test_unknown_job_and_gone_server_end_a_wait() -> None:
    known = Script(
        httpx.Response(200, json=job_json()),
        httpx.Response(404, json={"type": "x", "title": "t", "status": 404, "detail": "no such job"}),
    )
    with pytest.raises(NotFound, match="no such job"):
        client_of(known).job("j1").wait()
    gone = Script(httpx.Response(200, json=job_json()), httpx.ConnectError("refused"))
    with pytest.raises(ServerUnreachable):
        client_of(gone).job("j1").wait()


def test_keep_alives_do_not_hide_the_deadline(pauses: list[float]) -> None:
    class Ticking(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b": ping\n\n"

    ticking = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Ticking())
    with pytest.raises(DeadlineExceeded):
        client_of(Follower(ticking)).job("j1").wait(timeout=0.1)


def test_an_answer_of_another_kind_is_no_traceback() -> None:
    with pytest.raises(FeaturespeedError, match="cannot read"):
        client_of(Script(httpx.Response(200, json={"id": 3}))).job("j1")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "", "http://", "http://[::1"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Client(url)


def test_headers_paths_and_agent() -> None:
    script = Script(httpx.Response(200, json={}))
    client = Client("http://test/below/", transport=httpx.MockTransport(script), headers={"Authorization": "Bearer x"})
    client.schema()
    (request,) = script.requests
    assert str(request.url) == "http://test/below/v1/schema"
    assert request.headers["authorization"] == "Bearer x"
    assert request.headers["user-agent"].startswith("featurespeed/")


def test_ids_cannot_leave_their_path() -> None:
    script = Script(httpx.Response(404))
    with pytest.raises(NotFound):
        client_of(script).job("../datasets?x")
    assert script.requests[0].url.raw_path == b"/v1/jobs/..%2Fdatasets%3Fx"
