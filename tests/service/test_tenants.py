"""Tenants are apart: every route, asked for another tenant's job, answers as if there were none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from featurespeed.contract import JobPage
from featurespeed_service.store.keys import JOB_SCOPES, SCOPES, Grant, parse_token
from tests.service.conftest import Api
from tests.service.service_process import wait_until
from tests.service.specs import request, spec
from tests.service.test_api import dataset, problem

HTTP_PAGE = Path(__file__).parents[2] / "docs" / "http.md"

OPEN = {
    "/",
    "/static/{name}",
    "/livez",
    "/readyz",
    "/v1/schema",
    "/docs",
    "/openapi.json",
}
"""What needs no key: nothing of it tells of jobs."""
OF_NO_JOB = {
    ("GET", "/v1/events"),
    ("GET", "/v1/jobs"),
    ("POST", "/v1/jobs"),
    ("PUT", "/v1/datasets/{sha256}"),
    ("PUT", "/v1/checkpoints/{sha256}"),
    ("GET", "/metrics"),
}
"""What needs a key and names no job; each has a test of its own. Whatever else there is must name one."""


def routes(app):
    """(method, path) of all that the application answers."""
    found = set()
    for route in app.routes:
        included = getattr(route, "original_router", None)
        inner = included.routes if included else [route]
        found |= {(method, part.path) for part in inner for method in part.methods - {"HEAD", "OPTIONS"}}
    return found


@pytest.fixture(scope="module")
def tenants(tmp_path_factory):
    with Api(tmp_path_factory.mktemp("tenants"), require_keys=True) as api:
        names = ("alice", "bob")
        tokens = {name: api.store.keys.create(name, Grant(name, SCOPES))[1] for name in names}
        api.headers = {name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()}
        yield api


def ended(api, tenant):
    """A job of the tenant that has succeeded, so that nothing about its status keeps others from it."""
    job = api.store.of_tenant(tenant).submit(request(1))
    while claim := api.store.claim("test"):
        if claim.job.id == job.id:
            api.store.succeed(claim.lease, "{}")
            return job.id
    raise AssertionError("nobody can claim it")


def test_the_list_as_it_changes_is_of_ones_own_jobs(tenants):
    own, foreign = ended(tenants, "bob"), ended(tenants, "alice")
    with tenants.http.stream("GET", "/v1/events", headers=tenants.headers["bob"]) as stream:
        data = next(line for line in stream.iter_lines() if line.startswith("data: "))
    assert own in data
    assert foreign not in data


def test_every_route_is_of_a_known_sort(tenants):
    closed = {(method, path) for method, path in routes(tenants.app) if path not in OPEN}
    assert closed >= OF_NO_JOB
    assert {path for _, path in closed - OF_NO_JOB if "{job_id}" not in path} == set()
    assert len(closed - OF_NO_JOB) >= 5


def test_every_route_asks_for_a_key(tenants):
    for method, path in routes(tenants.app):
        if path not in OPEN:
            answer = tenants.http.request(method, re.sub(r"{\w+}", "0" * 64, path))
            problem(answer, 401, "unauthenticated")


def test_every_route_with_a_foreign_job_is_404(tenants):
    job = ended(tenants, "alice")
    before = tenants.store.get(job)
    paths = [(m, p) for m, p in routes(tenants.app) if "{job_id}" in p]
    for method, path in paths:
        foreign = tenants.http.request(method, path.replace("{job_id}", job), headers=tenants.headers["bob"])
        unknown = tenants.http.request(
            method, path.replace("{job_id}", "job_" + "0" * 24), headers=tenants.headers["bob"]
        )
        problem(foreign, 404, "not-found")
        assert foreign.text.replace(job, "") == unknown.text.replace("job_" + "0" * 24, "")  # not even that it exists
    assert tenants.store.get(job) == before
    for method, path in sorted(paths, key=lambda route: route[0] == "DELETE"):  # to its own tenant each answers
        answer = tenants.http.request(method, path.replace("{job_id}", job), headers=tenants.headers["alice"])
        assert answer.status_code in (200, 202, 204, 409), (method, path)


def test_listings_are_apart(tenants):
    mine = {tenants.http.post("/v1/jobs", json=spec(), headers=tenants.headers["alice"]).json()["id"] for _ in range(3)}
    for name in tenants.headers:
        page = JobPage.model_validate_json(tenants.http.get("/v1/jobs", headers=tenants.headers[name]).content)
        listed = {job.id for job in page.jobs}
        assert mine <= listed if name == "alice" else not mine & listed


def test_idempotency_keys_are_apart(tenants):
    def submit(name, seed):
        headers = {**tenants.headers[name], "Idempotency-Key": "same"}
        return tenants.http.post("/v1/jobs", json=spec(seed), headers=headers)

    first, other = submit("alice", 1), submit("bob", 2)
    assert (first.status_code, other.status_code) == (202, 202)
    assert submit("bob", 2).json()["id"] == other.json()["id"] != first.json()["id"]
    problem(submit("bob", 1), 422, "idempotency-conflict")


def test_a_cursor_of_another_tenant_shows_nothing_of_it(tenants):
    mine = {tenants.http.post("/v1/jobs", json=spec(), headers=tenants.headers["alice"]).json()["id"] for _ in range(2)}
    page = tenants.http.get("/v1/jobs", params={"limit": 1}, headers=tenants.headers["alice"]).json()
    cursor = {"cursor": page["next_cursor"]}
    listed = tenants.http.get("/v1/jobs", params=cursor, headers=tenants.headers["bob"]).json()["jobs"]
    assert not mine & {job["id"] for job in listed}


def key(api, tenant, scopes=JOB_SCOPES, **limits):
    """The headers of a new key."""
    return {"Authorization": f"Bearer {api.store.keys.create(tenant, Grant(tenant, scopes, **limits))[1]}"}


@pytest.mark.parametrize("kind", ["dataset", "checkpoint"])
def test_files_are_apart(tenants, kind):
    content, sha256 = dataset()
    section = "data" if kind == "dataset" else "checkpoint"
    named = {
        "dataset": {"data": {"kind": "dataset", "sha256": sha256, "batch_size": 8}},
        "checkpoint": {"checkpoint": {"sha256": sha256}, "kind": "recommend"},
    }[kind]

    def put(name):
        path, headers = f"/v1/{kind}s/{sha256}", tenants.headers[name]
        return tenants.http.put(path, content=content, headers=headers).status_code

    def submit(name):
        return tenants.http.post("/v1/jobs", json=spec(**named), headers=tenants.headers[name])

    unknown = problem(submit("bob"), 422, "invalid-spec")
    assert put("alice") == 201
    assert submit("alice").status_code == 202
    assert problem(submit("bob"), 422, "invalid-spec") == unknown  # not even that it exists
    assert [error.field for error in unknown.errors] == [f"{section}.sha256"]
    assert [put("bob"), put("bob")] == [201, 200]
    assert submit("bob").status_code == 202


def test_metrics_have_a_scope_of_their_own_and_name_nobody(tenants):
    job = ended(tenants, "alice")
    watcher = key(tenants, "watcher", ("metrics:read",))
    answer = tenants.http.get("/metrics", headers=watcher)
    assert answer.status_code == 200
    assert "featurespeed_queue_depth" in answer.text
    assert not [told for told in (job, "alice", "bob", "watcher") if told in answer.text]
    for method, path in routes(tenants.app):
        if path not in OPEN | {"/metrics"}:
            refused = tenants.http.request(method, re.sub(r"{\w+}", job, path), headers=watcher)
            problem(refused, 403, "forbidden")
    problem(tenants.http.get("/metrics", headers=key(tenants, "alice")), 403, "forbidden")


def test_a_retry_needs_a_place_in_the_quota(tenants):
    headers = key(tenants, "carol", max_active_jobs=1)

    def post(path, **options):
        return tenants.http.post(path, headers=headers, **options)

    first = post("/v1/jobs", json=spec()).json()["id"]
    post(f"/v1/jobs/{first}:cancel")
    second = post("/v1/jobs", json=spec()).json()["id"]
    refused = post(f"/v1/jobs/{first}:retry")
    problem(refused, 429, "quota-exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    post(f"/v1/jobs/{second}:cancel")
    again = post(f"/v1/jobs/{first}:retry")
    assert again.status_code == 202
    assert post(f"/v1/jobs/{first}:retry").json()["id"] == again.json()["id"]  # a repetition takes no place


def test_two_keys_of_a_tenant_share_its_jobs_and_its_quota(tenants):
    one, two = (key(tenants, "dora", max_active_jobs=2, requests_per_minute=60) for _ in range(2))
    jobs = [tenants.http.post("/v1/jobs", json=spec(), headers=headers).json()["id"] for headers in (one, two)]
    for headers in (one, two):
        problem(tenants.http.post("/v1/jobs", json=spec(), headers=headers), 429, "quota-exceeded")
        listed = tenants.http.get("/v1/jobs", headers=headers).json()["jobs"]
        assert [job["id"] for job in listed] == jobs[::-1]
    assert tenants.http.post(f"/v1/jobs/{jobs[0]}:cancel", headers=two).json()["status"] == "cancelled"
    assert tenants.http.post("/v1/jobs", json=spec(), headers=one).status_code == 202
    wider = key(tenants, "dora", max_active_jobs=3)  # the limit is the key's, what is counted the tenant's
    assert tenants.http.post("/v1/jobs", json=spec(), headers=wider).status_code == 202
    problem(tenants.http.post("/v1/jobs", json=spec(), headers=wider), 429, "quota-exceeded")


def test_a_key_is_changed_as_the_page_says(tenants, tmp_path):
    (script,) = re.findall(r"^```bash\n(.*?keys revoke.*?)^```$", HTTP_PAGE.read_text(), re.MULTILINE | re.DOTALL)
    old = tenants.headers["alice"]
    job = ended(tenants, "alice")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESPEED_")}
    environment = {
        **clean,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FEATURESPEED_DATABASE": tenants.settings.database_url,
        "SERVER": str(tenants.http.base_url),
        "OLD_ID": parse_token(old["Authorization"].removeprefix("Bearer "))[0],
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert job in done.stdout
    assert (tmp_path / "new.key").stat().st_mode & 0o777 == 0o600
    new = {"Authorization": f"Bearer {(tmp_path / 'new.key').read_text().strip()}"}
    wait_until(lambda: tenants.http.get("/v1/jobs", headers=old).status_code == 401, 30, "the end of the old key")
    assert tenants.http.get(f"/v1/jobs/{job}", headers=new).status_code == 200
