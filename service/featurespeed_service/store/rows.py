"""Between rows and the contract, and the one place where a job's status changes."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, insert, select, update

from featurespeed.contract import TERMINAL, Job, JobError, JobRequest, Progress, Status, shown
from featurespeed_service.store.errors import InvalidCursor, JobNotFound
from featurespeed_service.store.records import TRANSITIONS, EventType
from featurespeed_service.store.schema import events, jobs

LISTED = [c for c in jobs.c if c.name not in ("result", "result_sha256")]
"""The columns that a contract.Job is made of: all but the result, which may be large."""


_JOB_ID = re.compile(r"job_[0-9a-f]{24}")
_LATEST = 2**63 - 1


def to_job(row: Mapping[str, Any] | RowMapping, request: JobRequest | None = None) -> Job:
    """A row of ``jobs`` as the contract's Job; ``request`` is that of the row, if it has been parsed already."""
    error = row["error_type"]
    return Job(
        id=row["id"],
        kind=row["kind"],
        status=row["status"],
        progress=Progress(
            cells_done=row["cells_done"],
            cells_total=row["cells_total"],
            fraction=row["fraction"],
            message=row["message"],
        ),
        created_at=_time(row["created_at"]),
        started_at=_time(row["started_at"]) if row["started_at"] is not None else None,
        finished_at=_time(row["finished_at"]) if row["finished_at"] is not None else None,
        attempt=row["attempt"],
        error=JobError(type=error, detail=row["error_detail"]) if error is not None else None,
        request=request or JobRequest.model_validate_json(row["request"]),
        retry_of=row["retry_of"],
    )


def _time(microseconds: int) -> datetime:
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def find(connection: Connection, job_id: str, *, tenant: str | None = None, lock: bool = False) -> RowMapping:
    """The row of a job, without its result; ``lock`` keeps it from changing until the end of the transaction.

    Raises JobNotFound, also if the job is another tenant's; ``None`` finds the jobs of all.
    """
    if not _JOB_ID.fullmatch(job_id):  # what is no id is not asked for: databases differ in what text they take
        raise JobNotFound(f"no job has the id {shown(job_id)}")
    query = select(*LISTED).where(jobs.c.id == job_id)
    if tenant is not None:
        query = query.where(jobs.c.tenant == tenant)
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if row is None:
        raise JobNotFound(f"no job has the id {shown(job_id)}")
    return row


def move(
    connection: Connection, row: RowMapping, to: Status, now: int, *fence: ColumnElement[bool], **values: Any
) -> Job | None:
    """Bring a job to another status, and tell it as an event; ``None`` if ``fence`` no longer holds.

    A move that TRANSITIONS does not list is a mistake in the program: AssertionError.
    """
    assert to in TRANSITIONS[row["status"]], f"a job cannot go from {row['status']} to {to}"
    if to != "running":
        values |= {"owner": None, "lease_until": None}
    if to in TERMINAL:
        values |= {"finished_at": now}
    same = (jobs.c.id == row["id"], jobs.c.status == row["status"], *fence)
    changed = update(jobs).where(*same).values(status=to, **values).returning(*LISTED)
    if (new := connection.execute(changed).mappings().one_or_none()) is None:
        return None
    job = to_job(new)
    emit(connection, job.id, "status", job.model_dump_json())
    return job


def emit(connection: Connection, job_id: str, type: EventType, *data: str) -> int:
    """Append events to a job whose row this transaction has written, which keeps others from taking the same number.

    Returns the number of the last.
    """
    last = connection.execute(select(func.max(events.c.seq)).where(events.c.job_id == job_id)).scalar() or 0
    _append(connection, job_id, last, type, data)
    return last + len(data)


def new_id() -> str:
    """The id of a job to be."""
    return f"job_{secrets.token_hex(12)}"


def insert_job(
    connection: Connection,
    request: JobRequest,
    now: int,
    *,
    tenant: str,
    job_id: str | None = None,
    retry_of: str | None = None,
    done: int = 0,
) -> Job:
    """A new job in the queue, of whose cells ``done`` are there already; told as its first event."""
    row = {
        "id": job_id or new_id(),
        "tenant": tenant,
        "kind": request.kind,
        "status": "queued",
        "request": request.model_dump_json(),
        "created_at": now,
        "started_at": None,
        "finished_at": None,
        "attempt": 0,
        "cells_done": done,
        "cells_total": request.cells_total,
        "fraction": min(1.0, done / request.cells_total),
        "message": "",
        "error_type": None,
        "error_detail": None,
        "retry_of": retry_of,
    }
    connection.execute(insert(jobs), row)
    job = to_job(row, request)  # what was written, without asking for it again
    _append(connection, job.id, 0, "status", (job.model_dump_json(),))
    return job


def _append(connection: Connection, job_id: str, last: int, type: EventType, data: Sequence[str]) -> None:
    new = [{"job_id": job_id, "seq": last + i, "type": type, "data": d} for i, d in enumerate(data, 1)]
    if new:
        connection.execute(insert(events), new if len(new) > 1 else new[0])  # a single one without executemany


def to_cursor(created_at: int, job_id: str) -> str:
    """The place after a job in the listing, as an opaque text."""
    return base64.urlsafe_b64encode(json.dumps([created_at, job_id]).encode()).decode().rstrip("=")


def from_cursor(cursor: str) -> tuple[int, str]:
    """(created_at, id) of the row that a listing continues after; raises InvalidCursor."""
    try:
        created_at, job_id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, TypeError, binascii.Error):
        raise InvalidCursor(cursor) from None
    if type(created_at) is not int or not 0 <= created_at <= _LATEST:
        raise InvalidCursor(cursor)
    if type(job_id) is not str or not _JOB_ID.fullmatch(job_id):
        raise InvalidCursor(cursor)
    return created_at, job_id
