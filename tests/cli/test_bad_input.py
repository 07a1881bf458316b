"""Bad input: exit status 2, one line on standard error, nothing on standard output, no traceback."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ENVIRONMENT, refused, run
from tests.client.reports import SPEC

MLP: dict[str, Any] = SPEC["architecture"]
HUGE = {**MLP, "width": 65_536, "depth": 4096}


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"architecture": {**MLP, "width": 0}}, "architecture.width", "0"),
        ({"architecture": {**MLP, "depth": 1}}, "architecture.depth", "1"),
        ({"architecture": {**MLP, "width": True}}, "architecture.width", "true"),
        ({"architecture": HUGE}, "architecture", ""),
        ({"colour": "red"}, "colour", '"red"'),
        ({"kind": "measure"}, "kind", '"measure"'),
        ({"data": {"kind": "dataset", "path": "nowhere"}}, "data.path", '"nowhere"'),
        ({"data": {"kind": "dataset", "sha256": "0" * 64}}, "data.sha256", f'"{"0" * 64}"'),
        ({"measurement": 3}, "measurement", "3"),
    ],
)
def test_a_specification_is_refused_by_field_value_and_bound(change: dict[str, Any], field: str, value: str) -> None:
    line = refused(run("recommend", "-", stdin=json.dumps({**SPEC, **change})))
    assert line.startswith(f"error: {field}")
    assert f"(got {value}" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["guess"], "No such command 'guess'"),
        (["recommend"], "Missing argument 'SPEC'"),
        (["recommend", "-", "--colour"], "No such option: --colour"),
        (["recommend", "-", "--steps", "many"], "Invalid value for '--steps'"),
        (["recommend", "nowhere.yaml"], "nowhere.yaml: No such file or directory"),
        (["recommend", "/"], "/: Is a directory"),
        (["recommend", "-", "--seeds", "1;2"], "--seeds: should be integers"),
        (["recommend", "-", "--server", "localhost:8000"], "--server: should begin with http://"),
        (["recommend", "-", "--out", "/nowhere/report.json"], "/nowhere/report.json: No such file or directory"),
        (["recommend", "-", "--out", "/tmp"], "/tmp: Is a directory"),
        (["serve", "--port", "99999"], "Invalid value for '--port'"),
    ],
)
def test_options_and_files(arguments: list[str], message: str) -> None:
    assert message in refused(run(*arguments, stdin=json.dumps(SPEC)))


def test_broken_yaml_says_where() -> None:
    line = refused(run("measure", "-", stdin="architecture: {family: mlp\nloss: mse"))
    assert "standard input: not YAML at line 2, column 5" in line


def test_tracebacks_are_for_those_who_ask() -> None:
    done = run("recommend", "nowhere.yaml", FEATURESPEED_DEBUG="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: nowhere.yaml: No such file or directory"


def test_serve_refuses_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", str(port), "--data-dir", tmp_path)
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("torch", ["measure", "SPEC"], "workers"),
        ("fastapi", ["serve"], "service"),
        ("typer", ["--help"], "cli"),
        ("rich", ["--help"], "cli"),
    ],
)
def test_a_missing_extra_is_named(missing: str, arguments: list[str], extra: str, spec: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from featurespeed.cli import main; main()"
    words = [str(spec) if word == "SPEC" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {missing} is not installed: pip install 'featurespeed[{extra}]'"
    assert done.stdout == ""
