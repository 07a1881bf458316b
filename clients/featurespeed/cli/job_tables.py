"""Jobs as text: a table on a terminal, lines with tabs for other programs, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime

from featurespeed.contract.job import Job

COLUMNS = ("id", "kind", "status", "cells", "created", "finished", "note")


def jobs_text(jobs: Sequence[Job]) -> str:
    """One line a job, under a line of titles."""
    if sys.stdout.isatty():
        return _table(jobs)
    lines = ["\t".join(COLUMNS), *("\t".join(map(_one_line, _cells(job))) for job in jobs)]
    return "\n".join(lines) + "\n"


def _table(jobs: Sequence[Job]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, no_wrap=column in ("id", "status"), overflow="fold")
    for job in jobs:
        table.add_row(*(Text(cell) for cell in _cells(job)))
    with console.capture() as text:
        console.print(table)
    return text.get()


def _cells(job: Job) -> tuple[str, ...]:
    progress = job.progress
    done = f"{progress.cells_done}/{progress.cells_total}"
    return job.id, job.kind, job.status, done, _time(job.created_at), _time(job.finished_at), _note(job)


def _note(job: Job) -> str:
    if job.error is not None:
        return f"{job.error.type}: {job.error.detail}"
    return f"retry of {job.retry_of}" if job.retry_of else progress_message(job)


def progress_message(job: Job) -> str:
    """What a job is at, while it is."""
    return job.progress.message if job.status == "running" else ""


def shown_job(job: Job) -> str:
    """One job, a line for each thing that is known of it, and its request."""
    return "".join(f"{name}\t{value}\n" for name, value in _facts(job))


def _facts(job: Job) -> Iterator[tuple[str, str]]:
    yield "id", job.id
    yield "kind", job.kind
    yield "status", job.status
    yield "cells", f"{job.progress.cells_done} of {job.progress.cells_total} done ({job.progress.fraction:.0%})"
    if message := progress_message(job):
        yield "at", _one_line(message)
    yield "created", _time(job.created_at)
    yield "started", _time(job.started_at)
    yield "finished", _time(job.finished_at)
    yield "attempt", str(job.attempt)
    if job.retry_of:
        yield "retry of", job.retry_of
    if job.error is not None:
        yield "error", f"{job.error.type}: {_one_line(job.error.detail)}"
    yield "request", job.request.model_dump_json(exclude_defaults=True)


def job_json(job: Job) -> str:
    """A job as the service gives it."""
    return job.model_dump_json(indent=2) + "\n"


def jobs_json(jobs: Sequence[Job]) -> str:
    """A list of jobs as the service gives them."""
    return json.dumps([job.model_dump(mode="json") for job in jobs], indent=2, ensure_ascii=False) + "\n"


def _time(moment: datetime | None) -> str:
    return "–" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _one_line(text: str) -> str:
    return " ".join(text.split())
