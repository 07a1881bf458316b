"""Cancel works: in the middle of a large matmul too, and against a job that finishes at the same moment."""

import threading
import time
from pathlib import Path

import psutil

from featurespeed_service.store.database import Database
from featurespeed_service.store.errors import LeaseLost
from featurespeed_service.store.sql import SqlStore
from tests.chaos.checking import events_of
from tests.service import stand_in
from tests.service.service_process import TERMINAL, ServiceProcess, wait_until
from tests.service.specs import request

BOUND = 5


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def cancelled_after(service, number):
    """Seconds from the request to ``cancelled`` and the end of the worker that was in a matmul."""
    note = Path(f"{service.computed}.pid")
    note.unlink(missing_ok=True)
    job_id = service.submit(stand_in.MATMUL, seeds=(number,))
    pid = int(wait_until(lambda: note.exists() and note.read_text(), 120, "the matmul"))
    start = time.monotonic()
    assert service.http.post(f"/v1/jobs/{job_id}:cancel").status_code == 202
    wait_until(lambda: service.job(job_id)["status"] == "cancelled" and is_gone(pid), 30, "cancelled")
    return time.monotonic() - start


def test_cancel_in_the_middle_of_a_matmul(full, report, tmp_path):
    with ServiceProcess(tmp_path, cpus=1, cancel_grace_seconds=2) as service:
        seconds = sorted(cancelled_after(service, number) for number in range(100 if full else 2))
    p99 = seconds[int(0.99 * (len(seconds) - 1))]
    report.row("Cancel works: p99 in a matmul", f"≤ {BOUND} s", f"{p99:.2f} s of {len(seconds)}")
    assert p99 <= BOUND * (1 if full else 3)


def test_cancel_against_finish_has_one_outcome(full, report, database_url):
    races, wrong = 1000 if full else 40, []
    store = SqlStore(Database(database_url))
    for _ in range(races):
        job = store.submit(request(seeds=(0,)))
        lease = store.claim("d").lease
        together = threading.Barrier(2)

        def cancel(job=job, together=together):
            together.wait()
            store.cancel(job.id)

        thread = threading.Thread(target=cancel)
        thread.start()
        together.wait()
        try:
            store.record(lease, progress=job.progress, cells={"seed 0": "1"})
            if store.stop_requests([lease]):
                store.confirm_cancelled(lease)
            else:
                store.succeed(lease, "{}")
        except LeaseLost:
            wrong.append("a lease was lost")
        thread.join()
        ended = store.get(job.id)
        ends = [status for status in events_of(store, job.id) if status in TERMINAL]
        if ends != [ended.status] or ended.finished_at is None:
            wrong.append(f"{ends}, {ended.status}")
        if ended.status == "succeeded" and store.result(job.id).text != "{}":
            wrong.append("succeeded without its report")
    store.close()
    kind = database_url.partition(":")[0]
    report.row("Cancel against finish", f"{races} races, {kind}: one outcome each", f"{len(wrong)} others")
    assert wrong == []
