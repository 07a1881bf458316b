"""A queue of jobs that is there before the dispatcher is: how fast it is worked off, and on how many cores."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.load.clients import SMALL, SPEC, post, spec
from benchmarks.load.results import Row
from benchmarks.load.service import dispatching, place, serving

START_SECONDS = 120.0
DRAIN_SECONDS = 900.0


def drained(kind: str, *, jobs: int, tiny: bool = False) -> Row:
    """Queue ``jobs`` jobs, start a dispatcher, wait for the last one's end.

    Of tiny ones it is the dispatcher that bounds the rate, by its transactions: no bound is set for them.
    """
    with place(kind) as here, serving(here, "--no-dispatcher") as (address, _):
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        for number in range(jobs):
            assert post(connection, spec(number, SPEC if tiny else SMALL)) == 202
        connection.close()
        with dispatching(here):
            _until(lambda: _ended(address) > 0, START_SECONDS, "the first job's end")
            first, began = _ended(address), time.perf_counter()
            psutil.cpu_percent(percpu=True)
            _until(lambda: _ended(address) >= jobs, DRAIN_SECONDS, "the last job's end")
            seconds = time.perf_counter() - began
            busy = psutil.cpu_percent(percpu=True)
        failed = jobs - int(_metrics(address).get('featurespeed_jobs{status="succeeded"}', 0))
    cores = ", ".join(f"{percent:.0f} %" for percent in busy)
    return Row(
        f"{jobs} queued {'tiny' if tiny else 'small'} jobs worked off, {kind}, {os.cpu_count()} slots",
        f"{(jobs - first) / seconds:.1f} jobs/s; cores busy {cores}" + (f"; {failed} FAILED" if failed else ""),
        "none failed" if tiny else "every core busy",
        failed > 0 or (not tiny and min(busy) < 90),
    )


def wait_until_working(address: str) -> None:
    """Wait until the service has a dispatcher that lives."""
    _until(lambda: _get(f"{address}/readyz")["dispatcher"] == "alive", START_SECONDS, "the dispatcher")


def _until(condition: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {seconds:g} s")
        time.sleep(0.2)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def _metrics(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def _ended(address: str) -> int:
    found = _metrics(address)
    return int(sum(found.get(f'featurespeed_jobs{{status="{s}"}}', 0) for s in ("succeeded", "failed", "cancelled")))
