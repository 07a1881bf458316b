"""The command at a service that asks for keys."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featurespeed.cli import app
from featurespeed.contract import Job, parse_request
from featurespeed_service.store.keys import Grant, Scope
from tests.cli.command import refused, run
from tests.client.reports import SPEC, SPEC_WITHOUT_KIND
from tests.service.conftest import Api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with Api(tmp_path_factory.mktemp("keys"), require_keys=True) as api:
        yield api


def key_file(api: Api, path: Path, *scopes: Scope, **limits: int) -> Path:
    _, token = api.store.keys.create("alice", Grant("alice", scopes or ("jobs:read", "jobs:write"), **limits))
    path.write_text(f"{token}\n")
    return path


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in this process: the one line on standard error of one that came to nothing."""
    monkeypatch.setattr("featurespeed.retry.MAX_RETRY_AFTER", 0.0)  # the minute that a limit asks for

    def refuse(*arguments: str | Path, key: str | None = None) -> str:
        with monkeypatch.context() as context:
            context.delenv("FEATURESPEED_API_KEY", raising=False)
            if key is not None:
                context.setenv("FEATURESPEED_API_KEY", key)
            status = app.run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert (status, printed.out) == (2, "")
        (line,) = printed.err.splitlines()
        assert isinstance(line, str)
        return line

    return refuse


def test_a_key_in_a_file_or_in_the_environment(api: Api, tmp_path: Path) -> None:
    key, server = key_file(api, tmp_path / "key"), str(api.http.base_url)
    job = api.http.post(
        "/v1/jobs",
        json={"kind": "measure", **SPEC_WITHOUT_KIND},
        headers={"Authorization": f"Bearer {key.read_text().strip()}"},
    ).json()["id"]
    shown = run("jobs", "show", job, "--json", "--server", server, "--api-key-file", key, FEATURESPEED_API_KEY="fsk_no")
    assert Job.model_validate_json(shown.stdout).id == job  # the option wins
    listed = run("jobs", "list", "--json", "--server", server, FEATURESPEED_API_KEY=key.read_text())
    assert [found["id"] for found in json.loads(listed.stdout)] == [job]


def test_a_key_that_is_missing_wrong_or_revoked(
    api: Api, spec: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    server = str(api.http.base_url)
    line = refused(run("recommend", spec, "--server", server))
    assert line.startswith("error: an API key is needed")
    assert "--api-key-file FILE" in line
    key = key_file(api, tmp_path / "key")
    _, key_id, secret = key.read_text().strip().split("_")
    api.store.keys.revoke(key_id)
    line = refusal("measure", spec, "--server", server, "--api-key-file", key)
    assert "unknown, wrong or revoked" in line
    assert secret not in line


def test_a_scope_that_is_missing_is_named(api: Api, spec: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    reader = key_file(api, tmp_path / "key", "jobs:read")
    line = refusal("recommend", spec, "--server", api.http.base_url, "--api-key-file", reader)
    assert "this needs the scope jobs:write; the key has jobs:read" in line


def test_limits_are_told_after_the_retries(
    api: Api, spec: Path, tmp_path: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_file(api, tmp_path / "key", requests_per_minute=1)
    command = ["jobs", "list", "--json", "--server", str(api.http.base_url), "--api-key-file", str(key)]
    assert app.run(command) == 0
    capsys.readouterr()
    assert refusal(*command).startswith("error: this key may ask 1 times a minute")
    key = key_file(api, tmp_path / "key", max_active_jobs=1)
    api.store.of_tenant("alice").submit(parse_request(SPEC))
    line = refusal("recommend", spec, "--server", api.http.base_url, "--api-key-file", key)
    assert "jobs are queued or running, and this key allows 1" in line


@pytest.mark.parametrize("content", [b"", b"fsk_a secret", b"fsk_first\nfsk_secret", b"\xffsecret", b"secret\0"])
def test_a_file_without_a_key_is_refused_and_not_told(
    content: bytes, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "key").write_bytes(content)
    line = refusal("jobs", "list", "--api-key-file", tmp_path / "key")
    assert f"--api-key-file: {tmp_path / 'key'} should hold the key fsk_… alone" in line
    assert "secret" not in line


def test_other_mistakes(spec: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "nowhere: No such file" in refusal("jobs", "list", "--api-key-file", "nowhere")
    assert "FEATURESPEED_API_KEY: should hold" in refusal("jobs", "list", key="fsk_a b")
    (tmp_path / "key").write_text("fsk_a_b")
    assert "--api-key-file: is for a server" in refusal("recommend", spec, "--api-key-file", tmp_path / "key")
