"""SIGTERM and Ctrl-C in the middle of everything: what was accepted is there, and nobody sees a traceback."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from httpx_sse import EventSource

from tests.service.service_process import ServiceProcess, wait_until
from tests.service.specs import spec

STREAMS = POSTERS = 20
BOUND_SECONDS = 10
SIGNALS = {"SIGTERM": signal.SIGTERM, "Ctrl-C again and again": signal.SIGINT}


class Stream:
    """Events of one job; ``follow`` ends with the server, and may be called again for those that came after."""

    def __init__(self, job_id):
        self.job_id = job_id
        self.ids = []
        self.statuses = []

    def follow(self, url):
        headers = {"Last-Event-ID": str(self.ids[-1])} if self.ids else {}
        path = f"{url}/v1/jobs/{self.job_id}/events"
        with httpx.stream("GET", path, headers=headers, timeout=60) as answer:
            assert answer.status_code == 200
            for event in EventSource(answer).iter_sse():
                self.ids.append(int(event.id))
                self.statuses += [event.data] if event.event == "status" else []


class Poster:
    """Sends one job after another, each with a key, until the server has gone."""

    def __init__(self, number):
        self._number = number
        self.accepted = {}
        self.unanswered = []

    def send(self, http, seed):
        key = f"{self._number}-{seed}"
        answer = http.post("/v1/jobs", json=spec(seed % 900), headers={"Idempotency-Key": key})
        assert answer.status_code in (202, 503), answer.text
        if answer.status_code == 202:
            self.accepted[key] = answer.json()["id"]
        else:
            assert int(answer.headers["Retry-After"]) > 0
            self.unanswered.append(seed)

    def post_until_gone(self, url):
        with httpx.Client(base_url=url, timeout=20) as http:
            for seed in range(10_000):
                try:
                    self.send(http, seed)
                except httpx.TransportError:
                    self.unanswered.append(seed)
                    return


def listed(http):
    """Ids of all jobs there are."""
    found, cursor = [], None
    while True:
        page = http.get("/v1/jobs", params={"limit": 200} | ({"cursor": cursor} if cursor else {})).json()
        found += [job["id"] for job in page["jobs"]]
        if (cursor := page["next_cursor"]) is None:
            return found


def stop(service, name):
    """The exit status, and the seconds that the stop took; Ctrl-C is pressed until the service has gone."""
    began = time.monotonic()
    service.process.send_signal(name)
    while service.process.poll() is None:
        assert time.monotonic() < began + 60
        time.sleep(0.1)  # a finger on a key
        if name == signal.SIGINT:
            service.process.send_signal(name)
    return service.process.returncode, time.monotonic() - began


def stop_under_load(service, name, streams, posters):
    """The exit status, and the seconds that the stop took."""
    url = str(service.http.base_url)
    with ThreadPoolExecutor(STREAMS + POSTERS) as pool:
        following = [pool.submit(stream.follow, url) for stream in streams]
        posting = [pool.submit(poster.post_until_gone, url) for poster in posters]
        wait_until(lambda: all(poster.accepted for poster in posters), 120, "everybody's first job is accepted")
        wait_until(lambda: all(stream.ids for stream in streams), 60, "everybody sees events")
        status, seconds = stop(service, name)
        for ended in (*following, *posting):
            ended.result(60)  # raises if a stream was cut off instead of ended
    service.end()
    return status, seconds


def assert_nothing_is_lost(service, posters):
    """All that was accepted is there; what was not answered is sent again, and becomes one job each."""
    accepted = {job_id for poster in posters for job_id in poster.accepted.values()}
    assert accepted <= set(listed(service.http))
    for poster in posters:
        again, poster.unanswered = poster.unanswered, []
        for seed in again:
            poster.send(service.http, seed)
        assert not poster.unanswered
    kept = [job_id for poster in posters for job_id in poster.accepted.values()]
    assert len(set(kept)) == len(kept)
    return set(kept)


@pytest.mark.parametrize("how", SIGNALS)
def test_a_stop_loses_nothing_and_is_quick(tmp_path, database_url, how, full, report):
    kind = database_url.partition(":")[0].partition("+")[0]
    if not full and (kind, how) != ("postgresql", "SIGTERM"):
        pytest.skip("both signals on both databases with --full")
    with ServiceProcess(tmp_path, cpus=1, database=database_url) as service:
        service.wait_ready()
        job_id = service.submit(1, seeds=(0, 1), steps=5000)
        streams, posters = [Stream(job_id) for _ in range(STREAMS)], [Poster(number) for number in range(POSTERS)]
        status, seconds = stop_under_load(service, SIGNALS[how], streams, posters)
        assert (status, seconds < BOUND_SECONDS) == (0, True), f"status {status} after {seconds:.1f} s"
        service.start()
        jobs = assert_nothing_is_lost(service, posters)
        assert sorted(listed(service.http)) == sorted({job_id, *jobs})
        assert_streams_resume(service, streams)
        status, _ = stop(service, signal.SIGINT)
        assert status == 0
        assert "Traceback" not in service.log.read_text()
    row = f"stop by {how} with {STREAMS} streams and {POSTERS} posters ({kind})"
    report.row(row, f"<= {BOUND_SECONDS} s, 0 lost", f"{seconds:.1f} s, 0 of {len(jobs)} lost")


def assert_streams_resume(service, streams):
    """Each goes on after the last event that it has seen, to the end of the job, without a gap or a repeat."""
    service.http.post(f"/v1/jobs/{streams[0].job_id}:cancel").raise_for_status()
    for stream in streams:
        stream.follow(str(service.http.base_url))
        assert stream.ids == sorted(set(stream.ids))
        assert '"status":"cancelled"' in stream.statuses[-1]
