"""The command asking the real service."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from featurespeed.contract import Report
from tests.cli.command import refused, run, start
from tests.client.live import LiveService, meanwhile
from tests.client.reports import SPEC, report


def test_json_is_all_there_is_on_stdout(service: LiveService, spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    out.write_text("old")
    with meanwhile(lambda: service.succeed(watched=True)):
        done = run("recommend", spec, "--json", "--out", out, "--server", service.url)
    assert done.returncode == 0
    assert Report.model_validate_json(done.stdout) == report()
    assert out.read_text() == done.stdout
    assert not list(tmp_path.glob(".*"))  # no draft is left
    assert " 50% 0/1 done, measuring" in done.stderr.splitlines()


def test_table_for_people_and_server_from_the_environment(service: LiveService, spec: Path) -> None:
    with meanwhile(service.succeed):
        done = run("recommend", spec, FEATURESPEED_SERVER=service.url)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["block", "init", "std"] in [line[:3] for line in lines]
    (row,) = [line for line in lines if line[:1] == ["input"]]
    assert row[1] == "0.5"
    assert row[4] == "0.1"
    assert row[-3:] == ["[unusual]", "a", "note"]
    assert ["master", "LR", "4"] in [line[:3] for line in lines]
    assert ["formula", "residual", "1.0e-07"] in lines


def test_options_override_the_specification(service: LiveService, spec: Path) -> None:
    with meanwhile(service.succeed):
        run("measure", spec, "--seeds", "3,4", "--steps", "20", "--server", service.url)
    (job,) = service.store.page().jobs
    assert job.kind == "measure"
    assert (job.request.measurement.seeds, job.request.measurement.steps) == ((3, 4), 20)


def test_failed_job(service: LiveService, spec: Path) -> None:
    with meanwhile(service.fail):
        done = run("recommend", spec, "--server", service.url)
    assert refused(done, 3) == "error: features of block hidden_2 are not finite"


def test_job_cancelled_by_someone_else(service: LiveService, spec: Path) -> None:
    def cancel() -> None:
        claim = service.claim()
        service.store.cancel(claim.job.id)
        service.store.confirm_cancelled(claim.lease)

    with meanwhile(cancel):
        done = run("recommend", spec, "--server", service.url)
    assert "was cancelled" in refused(done, 3)


def test_the_server_refuses(service: LiveService) -> None:
    done = run("recommend", "-", "--server", service.url, stdin='{"architecture": {"family": "cnn"}}')
    assert "architecture.family" in refused(done)


def test_nobody_answers(spec: Path) -> None:
    line = refused(run("recommend", spec, "--server", "http://127.0.0.1:1"), 4)
    assert "no answer from http://127.0.0.1:1" in line


def test_ctrl_c_cancels_the_job(service: LiveService, spec: Path) -> None:
    process = start("recommend", spec, "--server", service.url, stdout=subprocess.PIPE)
    with meanwhile(service.confirm_cancel):
        assert process.stderr is not None
        assert "0/1 done" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "interrupted"
    assert service.store.page().jobs[0].status == "cancelled"


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_reader_that_leaves_is_no_error(form: list[str], service: LiveService, spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start("recommend", spec, *form, "--out", out, "--server", service.url, stdout=write_end)
    os.close(write_end)
    with meanwhile(service.succeed):
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Error" not in stderr
    assert Report.model_validate_json(out.read_text()) == report()


def test_a_full_disk_is_told(service: LiveService, spec: Path) -> None:
    with meanwhile(service.succeed), Path("/dev/full").open("w") as full:
        process = start("recommend", spec, "--json", "--server", service.url, stdout=full)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 2
    assert stderr.splitlines()[-1] == "error: No space left on device"


def test_a_pipe_may_be_the_output_file(service: LiveService, spec: Path) -> None:
    with meanwhile(service.succeed):
        done = run("recommend", spec, "--out", "/dev/stderr", "--server", service.url)
    assert done.returncode == 0
    assert done.stderr.rstrip().endswith("}")


def test_help_names_the_commands_that_there_are() -> None:
    done = run("--help", COLUMNS="100")
    assert done.returncode == 0
    for command in ("recommend", "measure", "plot", "serve", "Exit status"):
        assert command in done.stdout
    assert "transfer" not in done.stdout  # not yet
    assert "featurespeed recommend transformer.yaml" in run("recommend", "--help", COLUMNS="100").stdout
    assert run("--version").stdout.startswith("featurespeed ")


def test_specification_kind_of_the_other_command(service: LiveService, tmp_path: Path) -> None:
    assert SPEC["kind"] == "recommend"
    (tmp_path / "spec.yaml").write_text("kind: recommend")
    assert "kind: " in refused(run("measure", tmp_path / "spec.yaml", "--server", service.url))
