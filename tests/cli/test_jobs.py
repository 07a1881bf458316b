"""featurespeed jobs, against the real service."""

import json
from pathlib import Path

from featurespeed.contract import Job, parse_request
from tests.cli.command import refused, run
from tests.client.live import LiveService
from tests.client.reports import SPEC


def submit(service: LiveService) -> str:
    return service.store.submit(parse_request(SPEC)).id


def lines(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_list_is_for_programs_when_piped_and_filtered(service: LiveService) -> None:
    ids = [submit(service) for _ in range(3)]
    service.fail()
    done = run("jobs", "list", FEATURESPEED_SERVER=service.url)
    assert done.returncode == 0, done.stderr
    titles, *rows = lines(done.stdout)
    assert titles[:3] == ["id", "kind", "status"]
    assert {row[0] for row in rows} == set(ids)
    (failed,) = lines(run("jobs", "list", "--status", "failed", "--server", service.url).stdout)[1:]
    assert failed[:3] == [ids[0], "recommend", "failed"]
    assert failed[-1] == "urn:test: features of block hidden_2 are not finite"
    assert lines(run("jobs", "list", "--kind", "measure", "--server", service.url).stdout) == [titles]
    found = json.loads(run("jobs", "list", "--limit", "2", "--json", "--server", service.url).stdout)
    assert [job["id"] for job in found] == [row[0] for row in rows[:2]]


def test_show_cancel_retry(service: LiveService) -> None:
    job_id = submit(service)
    shown = dict(lines(run("jobs", "show", job_id, "--server", service.url).stdout))
    assert (shown["id"], shown["status"], shown["attempt"]) == (job_id, "queued", "0")
    assert json.loads(shown["request"])["kind"] == "recommend"
    assert "is queued" in refused(run("jobs", "retry", job_id, "--server", service.url))
    cancelled = run("jobs", "cancel", job_id, "--json", "--server", service.url)
    assert json.loads(cancelled.stdout)["status"] == "cancelled"
    again = run("jobs", "retry", job_id, "--json", "--server", service.url)
    new = Job.model_validate_json(again.stdout)
    assert (new.status, new.retry_of) == ("queued", job_id)
    assert f"retry of {job_id}" in run("jobs", "list", "--server", service.url).stdout


def test_refusals(service: LiveService) -> None:
    assert "--status" in refused(run("jobs", "list", "--status", "lost", "--server", service.url))
    assert "--server" in refused(run("jobs", "list", "--server", "nonsense"))
    assert "job_none" in refused(run("jobs", "show", "job_none", "--server", service.url))
    assert "no answer" in refused(run("jobs", "list", "--server", "http://127.0.0.1:1"), 4)
    assert "--older-than" in refused(run("jobs", "prune", "--older-than", "30 days"))
    assert "--status" in refused(run("jobs", "prune", "--older-than", "1d", "--status", "queued"))
    line = refused(run("jobs", "prune", "--older-than", "1d", "--database", "sqlite:////nowhere/x"))
    assert "cannot open the database" in line


def test_prune_works_on_the_database(service: LiveService, tmp_path: Path) -> None:
    job_id, kept = submit(service), submit(service)
    service.store.cancel(job_id)
    where = ("--data-dir", service.settings.data_dir)
    assert run("jobs", "prune", "--older-than", "1h", *where).stdout == "cancelled\t0\nfailed\t0\nsucceeded\t0\n"
    dry = run("jobs", "prune", "--older-than", "0m", "--status", "cancelled", "--dry-run", *where)
    assert (dry.stdout, dry.stderr) == ("cancelled\t1\n", "1 jobs would be deleted\n")
    assert len(service.store.page().jobs) == 2
    assert run("jobs", "prune", "--older-than", "0m", *where).stdout.splitlines()[0] == "cancelled\t1"
    assert [job.id for job in service.store.page().jobs] == [kept]
