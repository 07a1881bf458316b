"""Clients that send jobs as fast as they are answered: processes of their own, with little beside the socket."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import secrets
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any
from urllib.parse import urlsplit

PROCESSES = multiprocessing.get_context("fork")  # what is measured has its own interpreter; these need no second start
WARM_UP_SECONDS = 3.0
"""Before anything counts: connections, the pool, the database's first pages."""

SPEC: dict[str, Any] = {
    "kind": "measure",
    "architecture": {"family": "mlp", "input_dim": 8, "width": 16, "depth": 3, "output_dim": 4},
    "data": {"kind": "gaussian", "batch_size": 16},
    "loss": "cross_entropy",
    "measurement": {"seeds": [0]},
}


SMALL = {
    **SPEC,
    "kind": "recommend",
    "architecture": {"family": "mlp", "input_dim": 64, "width": 256, "depth": 8, "output_dim": 10},
    "data": {"kind": "gaussian", "batch_size": 64},
}
"""The smallest job that somebody would send in earnest: a tenth of a second or so of one core."""


def spec(number: int, like: dict[str, Any] = SPEC) -> bytes:
    """A job, tiny unless told otherwise; each number is another one."""
    return json.dumps({**like, "data": {**like["data"], "seed": number}}).encode()


@dataclass(frozen=True)
class Sent:
    """What the clients saw, in seconds from sending to the whole answer."""

    latencies: list[float]
    seconds: float
    cpu_seconds: float
    answers: Counter[int]

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, part: float) -> float:
        """The latency that ``part`` of the requests are within."""
        return sorted(self.latencies)[min(len(self.latencies) - 1, int(part * len(self.latencies)))]

    @property
    def median(self) -> float:
        """The latency in the middle."""
        return statistics.median(self.latencies)


def send(address: str, *, clients: int, seconds: float) -> Sent:
    """Let ``clients`` processes POST for ``seconds``, after a time to warm up that does not count."""
    barrier = PROCESSES.Barrier(clients)
    pipes, processes = [], []
    for number in range(clients):
        ours, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_client, args=(address, number, seconds, barrier, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    latencies: list[float] = []
    answers: Counter[int] = Counter()
    cpu = 0.0
    for pipe, process in zip(pipes, processes, strict=True):
        own, statuses, used = pipe.recv()
        process.join()
        latencies += own
        answers += statuses
        cpu += used
    return Sent(latencies, seconds, cpu, answers)


def _client(address: str, number: int, seconds: float, barrier: Barrier, pipe: Connection) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.connect()
    latencies: list[float] = []
    answers: Counter[int] = Counter()
    barrier.wait()
    start = time.perf_counter() + WARM_UP_SECONDS
    cpu = None
    sent = 0
    while (now := time.perf_counter()) < start + seconds:
        if cpu is None and now >= start:
            cpu = time.process_time()
        status = post(connection, spec(1_000_000 * number + sent))
        sent += 1
        if now >= start:
            answers[status] += 1
            latencies.append(time.perf_counter() - now)
    pipe.send((latencies, answers, time.process_time() - (cpu or 0.0)))
    connection.close()


def post(connection: http.client.HTTPConnection, body: bytes) -> int:
    """One job, with an idempotency key as our client sends it; the status of the answer."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(16)}
    connection.request("POST", "/v1/jobs", body, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status
