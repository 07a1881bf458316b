"""Tenants are apart: every route, asked for another tenant's job, answers as if there were none."""

import re

import pytest

from featurespeed.contract import JobPage
from featurespeed_service.store.keys import SCOPES, Grant
from tests.service.conftest import Api
from tests.service.specs import request, spec
from tests.service.test_api import problem

OPEN = {"/", "/livez", "/readyz", "/v1/schema", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
"""What needs no key: nothing of it tells of jobs."""
OF_NO_JOB = {("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("PUT", "/v1/datasets/{sha256}"), ("GET", "/metrics")}
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
