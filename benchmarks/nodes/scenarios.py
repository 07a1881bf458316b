"""Small jobs behind many large ones on 64 simulated nodes, with one dispatcher or several."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.nodes import trivial
from benchmarks.nodes.simulated import CPUS_PER_NODE, STEP_SECONDS, Account, dispatch, mean, quantile
from featurespeed_service.opening import opened
from featurespeed_service.settings import Settings
from featurespeed_service.store.interface import JobStore

LARGE_CELLS = 64
SMALL_SECONDS = 1.0
"""How long the one cell of a small job takes."""
SMALL_EVERY_SECONDS = 0.5
LAST_SMALL_SECONDS = 5.0
"""No small job comes so shortly before the end: it could not be done."""
HEADER = (
    "cells", "database", "dispatchers", "cells/s (the slots' own)", "CPU of each dispatcher", "CPU a cell, ms",
    "writing, reading transactions/s", "a claim, ms", "a turn of the loop, ms", "small job claimed after, ms",
    "small job waits in all, ms", "small jobs done",
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """``steps`` of 10 ms is what a cell takes on average; so many large jobs of 64 cells wait at the beginning."""

    name: str
    steps: int
    large: int


def run(scenario: Scenario, settings: Settings, *, dispatchers: int, nodes: int, seconds: float) -> tuple[str, ...]:
    """A row under HEADER. The nodes are divided among the dispatchers, each of which is a process."""
    context = multiprocessing.get_context("spawn")  # a fork would share the parent's connections
    barrier, answers = context.Barrier(dispatchers + 1), context.Queue()
    with closing(opened(settings)) as store:
        for number in range(scenario.large):
            store.submit(trivial.spec(number, LARGE_CELLS, scenario.steps))
        arguments = settings, nodes // dispatchers, seconds
        processes = [context.Process(target=_work, args=(*arguments, i, barrier, answers)) for i in range(dispatchers)]
        for process in processes:
            process.start()
        barrier.wait(120)
        small = _submit_small(store, seconds - LAST_SMALL_SECONDS)
        accounts = [answers.get(timeout=seconds + 120) for _ in processes]
        for process in processes:
            process.join()
        return _row(scenario, settings, nodes, accounts, *_waits(store, small))


def _work(settings: Settings, nodes: int, seconds: float, number: int, barrier: Any, answers: Any) -> None:
    barrier.wait(120)
    answers.put(dispatch(settings, nodes, seconds, seed=number))


def _submit_small(store: JobStore, seconds: float) -> list[str]:
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        request = trivial.spec(10**6 + len(found), 1, round(SMALL_SECONDS / STEP_SECONDS))
        found.append(store.submit(request).id)
        time.sleep(SMALL_EVERY_SECONDS)
    return found


def _waits(store: JobStore, small: list[str]) -> tuple[list[float], list[float], int]:
    """Seconds until each small job was claimed, and that it was not computed in until its end; how many there are."""
    jobs = [store.get(job) for job in small]
    claimed = [(job.started_at - job.created_at).total_seconds() for job in jobs if job.started_at]
    done = [(job.finished_at - job.created_at).total_seconds() - SMALL_SECONDS for job in jobs if job.finished_at]
    return claimed, done, len(small)


def _row(
    scenario: Scenario,
    settings: Settings,
    nodes: int,
    accounts: list[Account],
    claimed: list[float],
    waited: list[float],
    small: int,
) -> tuple[str, ...]:
    cells = sum(account.cells for account in accounts)
    wall = mean([account.wall for account in accounts])
    cpu = sum(account.cpu for account in accounts)
    writes, reads = sum(account.writes for account in accounts), sum(account.reads for account in accounts)
    own = f"{nodes * CPUS_PER_NODE / (scenario.steps * STEP_SECONDS):.0f}" if scenario.steps else "∞"
    return (
        scenario.name,
        "SQLite" if settings.database is None else "PostgreSQL",
        str(len(accounts)),
        f"{cells / wall:.0f} ({own})",
        f"{cpu / wall / len(accounts):.0%}",
        f"{1e3 * cpu / max(1, cells):.1f}",
        f"{writes / wall:.0f}, {reads / wall:.0f}",
        _spread([seconds for account in accounts for seconds in account.claims]),
        _spread([seconds for account in accounts for seconds in account.steps]),
        _spread(claimed),
        _spread(waited),
        f"{len(waited)} of {small}",
    )


def _spread(seconds: list[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    return f"{1e3 * quantile(seconds, 0.5):.0f}, {1e3 * quantile(seconds, 0.95):.0f}"


def fresh(directory: Path, database: str | None) -> Settings:
    """Settings of the scenario's store."""
    directory.mkdir(parents=True)
    return Settings(data_dir=directory, database=database, engine=trivial.__name__, log_level="error")
