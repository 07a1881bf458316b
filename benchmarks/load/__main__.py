"""``make load``: the service under 16 clients, and a queue of 1,000 jobs worked off; appended to RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import psutil

from benchmarks.load import drain
from benchmarks.load.clients import WARM_UP_SECONDS, send
from benchmarks.load.results import RESULTS, Row
from benchmarks.load.service import cpu_seconds, place, serving

BOUNDS = {"postgresql": "≥ 300/s, p99 ≤ 200 ms", "sqlite": "≥ 50/s"}


def submissions(kind: str, *, clients: int, seconds: float, dispatcher: bool) -> Row:
    """How fast jobs are taken in."""
    options = () if dispatcher else ("--no-dispatcher",)
    with place(kind) as here, serving(here, *options) as (address, service):
        if dispatcher:
            drain.wait_until_working(address)
        before = {"service": cpu_seconds(service), "database": cpu_seconds(here.server)}
        sent = send(address, clients=clients, seconds=seconds)
        share = seconds / (seconds + WARM_UP_SECONDS)
        used = {
            "service": (cpu_seconds(service) - before["service"]) * share,
            "database": (cpu_seconds(here.server) - before["database"]) * share,
            "clients": sent.cpu_seconds,
        }
    failed = {status: count for status, count in sent.answers.items() if status != 202}
    over = bool(failed) or sent.rate < (300 if kind == "postgresql" else 50)
    over = over or (kind == "postgresql" and sent.quantile(0.99) > 0.2)
    cores = ", ".join(f"{name} {seconds_ / seconds:.2f}" for name, seconds_ in used.items() if seconds_)
    return Row(
        f"POST /v1/jobs, {clients} clients, {kind}, {'with' if dispatcher else 'no'} dispatcher",
        f"{sent.rate:.0f}/s, p50 {1e3 * sent.median:.0f} ms, p99 {1e3 * sent.quantile(0.99):.0f} ms"
        + (f", failed: {failed}" if failed else "")
        + f" (cores: {cores})",
        BOUNDS[kind],
        over,
    )


def rows(asked: argparse.Namespace) -> Iterator[Row]:
    """Everything, in the order of the table."""
    for kind in asked.databases:
        for dispatcher in (False, True):
            if not dispatcher or not asked.no_dispatcher:
                yield submissions(kind, clients=asked.clients, seconds=asked.seconds, dispatcher=dispatcher)
        if asked.jobs:
            yield drain.drained(kind, jobs=asked.jobs)
            yield drain.drained(kind, jobs=asked.jobs, tiny=True)


def main() -> None:
    """Print the rows as they come; append them to the results when all are there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--databases", nargs="*", default=["postgresql", "sqlite"], choices=["postgresql", "sqlite"])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--jobs", type=int, default=1000, help="of the queue that is worked off; 0: none")
    parser.add_argument("--no-dispatcher", action="store_true", help="leave the runs with a dispatcher out")
    parser.add_argument("--keep", action="store_true", help="append to RESULTS.md")
    asked = parser.parse_args()
    began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    busy = psutil.cpu_percent(3)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, of which others kept {busy:.0f} % busy at the start"
    command = " ".join(["python -m benchmarks.load", *sys.argv[1:]])
    lines = [
        f"## {began}, load",
        "",
        f"`{command}` on {machine}; Python {platform.python_version()}. Clients, service and database share the cores.",
        "",
        "| what | measured | bound |",
        "|---|---|---|",
    ]
    print("\n".join(lines))
    for row in rows(asked):
        lines.append(row.line)
        print(lines[-1], flush=True)
    if asked.keep:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")
        print(f"\nappended to {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
