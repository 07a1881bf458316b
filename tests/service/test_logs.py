"""Logs: a JSON object a line, the job's id on every line of a job, nothing secret, no forged lines."""

import io
import json
import logging
import sys

import httpx
import pytest

from featurespeed_service import logs
from featurespeed_service.settings import Settings
from featurespeed_service.store.keys import Grant
from tests.service import stand_in
from tests.service.conftest import Api
from tests.service.service_process import ServiceProcess, wait_until

SECRET = "fs_Zm9vYmFy"


def test_every_line_of_a_service_is_json_and_names_its_job(tmp_path):
    with ServiceProcess(tmp_path, cpus=2, log_format="json") as service:
        service.wait_ready()
        job = service.wait(service.submit(stand_in.CRASH_ONCE, seeds=(0, 1), steps=2))
        broken = service.wait(service.submit(stand_in.BROKEN))
        assert (job["status"], broken["status"]) == ("succeeded", "failed")
        service.http.get("/v1/jobs/x%0A%7B%22event%22:%22forged%22%7D", headers={"Authorization": f"Bearer {SECRET}"})
        wait_until(lambda: "forged" in service.log.read_text(), 10, "the line of the last request")
    text = service.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert SECRET not in text
    assert all({"event", "level", "logger", "timestamp", "process"} <= set(line) for line in lines)
    assert not [line for line in lines if line["event"] == "forged"]
    for found in (job, broken):
        told = [line for line in lines if found["id"] in json.dumps(line)]
        assert all(line.get("job_id") == found["id"] for line in told)
        assert {"api", "dispatcher"} <= {line["process"] for line in told}
    attempts = [line for line in lines if line["event"] == "attempt started" and line["job_id"] == job["id"]]
    assert [line["attempt"] for line in attempts] == list(range(1, job["attempt"] + 1))
    (early, *_) = [line for line in lines if line["event"] == "cell ended early"]
    assert (early["job_id"], early["cell"][:4]) == (job["id"], "seed")
    posts = [line for line in lines if line["event"] == "request" and line["method"] == "POST"]
    assert {line["job_id"] for line in posts} == {job["id"], broken["id"]}
    assert all((line["route"], line["status"]) == ("/v1/jobs", 202) and line["request_id"] for line in posts)


@pytest.fixture
def configured(monkeypatch):
    """Configures the log as a process does; gives what was written."""
    written = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook
    monkeypatch.setattr(logs, "adopt", lambda: None)
    monkeypatch.setattr("threading.excepthook", logs.threading.excepthook)

    def configure(**settings):
        monkeypatch.setattr(sys, "stderr", written)  # here: pytest puts its own in place when the test begins
        logs.configure("api", Settings(**settings))
        return written

    yield configure
    root.handlers[:], root.level, sys.excepthook = before
    logging.captureWarnings(False)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_nothing_forges_a_line_or_tells_a_secret(configured, log_format):
    written = configured(log_format=log_format, log_level="info")
    evil = "x\n2026-01-01 [info] forged\x1b[2J\r\u2028"
    try:
        raise ValueError(f"{evil} postgresql://user:hunter2@host/db")
    except ValueError:
        logs.get("a").exception("first", path=evil, header=f"Bearer {SECRET}")
    logging.getLogger("somebody").warning("got %s", evil)
    lines = written.getvalue().splitlines()
    assert "hunter2" not in written.getvalue()
    assert SECRET not in written.getvalue()
    assert not [line for line in lines if line.startswith("2026-01-01")]
    assert "\x1b[2J" not in written.getvalue()
    if log_format == "json":
        assert [json.loads(line)["level"] for line in lines] == ["error", "warning"]
    else:
        assert len([line for line in lines if not line.startswith("    ")]) == 2


def test_lines_of_libraries_name_the_job_too(configured):
    written = configured(log_format="json", log_level="info")
    job_id = "job_" + "a1" * 12
    logging.getLogger("somebody").error("no row for %s", job_id)
    assert json.loads(written.getvalue())["job_id"] == job_id


def test_the_level_is_chosen(configured):
    written = configured(log_format="json", log_level="warning")
    logs.get("a").info("quiet")
    logs.get("a").warning("loud")
    assert [json.loads(line)["event"] for line in written.getvalue().splitlines()] == ["loud"]


def test_a_request_line_has_template_status_and_time(api, caplog):
    caplog.set_level(logging.INFO)
    answer = httpx.get(api.http.base_url.join("/v1/jobs/job_unknown"))
    api.http.get("/livez")
    (line,) = [r.msg for r in caplog.records if isinstance(r.msg, dict) and r.msg["event"] == "request"]
    assert (line["route"], line["status"], line["job_id"]) == ("/v1/jobs/{job_id}", 404, "job_unknown")
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["seconds"] >= 0


def test_a_request_line_names_the_tenant(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with Api(tmp_path, require_keys=True) as api:
        _, token = api.store.keys.create("laptop", Grant("alice"))
        api.http.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"}).raise_for_status()
        assert api.http.get("/v1/jobs").status_code == 401
    known, unknown = [r.msg for r in caplog.records if isinstance(r.msg, dict) and r.msg["event"] == "request"]
    assert known["tenant"] == "alice"
    assert "tenant" not in unknown
