"""API keys: what is kept of them, what they allow, how fast a revoked one stops, when the service asks for them."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psutil
import pytest

from featurespeed_service.api.security import KEY_CACHE_SECONDS
from featurespeed_service.exposure import guarded
from featurespeed_service.opening import CannotStart
from featurespeed_service.settings import Settings
from featurespeed_service.store.database import Database
from featurespeed_service.store.errors import QuotaExceeded
from featurespeed_service.store.keys import SCOPES, Grant, InvalidToken, KeyExists, KeyNotFound, parse_token
from featurespeed_service.store.sql import SqlStore
from tests.service.conftest import Api
from tests.service.service_process import ServiceProcess, wait_until
from tests.service.specs import request, spec
from tests.service.test_api import problem

TOKEN = "fsk_bootstrap_" + "5ecret00" * 8


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded_api(tmp_path_factory):
    with Api(tmp_path_factory.mktemp("guarded"), require_keys=True) as api:
        yield api


@pytest.fixture
def key(guarded_api):
    """A function that makes a key and gives the headers that carry it."""

    def make(tenant="alice", *limits, scopes=("jobs:read", "jobs:write")):
        _, token = guarded_api.store.keys.create(tenant, Grant(tenant, scopes, *limits))
        return bearer(token)

    return make


def test_only_a_digest_of_the_secret_is_kept(store, database_url):
    made, token = store.keys.create("alice", Grant("alice", SCOPES, 3, 60))
    key_id, secret = parse_token(token)
    assert made.id == key_id
    assert len(bytes.fromhex(secret)) == 32
    with closing(Database(database_url)) as database, database.reading() as connection:
        (row,) = connection.exec_driver_sql("SELECT * FROM api_keys").all()
    assert secret not in str(row)
    assert store.keys.find(key_id) == made
    assert made.grant == Grant("alice", SCOPES, 3, 60)
    assert made.opens_with(secret)
    assert not made.opens_with(secret[:-1] + "x")
    assert store.keys.create("alice", Grant("alice"))[1] != token


def test_a_revoked_key_opens_nothing(store, clock):
    made, token = store.keys.create("alice", Grant("alice"))
    assert store.keys.any_active()
    clock.advance(5)
    revoked = store.keys.revoke(made.id)
    assert revoked.revoked_at == clock.now
    assert not revoked.opens_with(parse_token(token)[1])
    clock.advance(5)
    assert store.keys.revoke(made.id) == revoked
    assert not store.keys.any_active()
    assert store.keys.all() == [revoked]
    with pytest.raises(KeyNotFound):
        store.keys.revoke("none")


def test_a_given_key_is_made_once(store):
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: store.keys.ensure(TOKEN, "b", Grant("admin", SCOPES)), range(6)))
    assert store.keys.all() == [made[0]]
    assert made[0].opens_with(parse_token(TOKEN)[1])
    with pytest.raises(KeyExists):
        store.keys.ensure(TOKEN[:-1] + "9", "b", Grant("admin"))
    store.keys.revoke(made[0].id)
    assert store.keys.ensure(TOKEN, "b", Grant("admin")).revoked_at is not None
    for text in ("", "fsk_a_b", TOKEN + "-", TOKEN + "\n", "xyz_bootstrap_" + "0" * 64):
        with pytest.raises(InvalidToken) as refusal:
            store.keys.ensure(text, "b", Grant("admin"))
        assert "b" * 20 not in str(refusal.value)


def test_a_quota_holds_under_concurrent_submissions(store):
    tenant = store.of_tenant("alice", 5)
    barrier = threading.Barrier(12)

    def submit(seed):
        barrier.wait()
        try:
            return tenant.submit(request(seed), f"k{seed}").id
        except QuotaExceeded:
            return None

    with ThreadPoolExecutor(12) as pool:
        ids = [job_id for job_id in pool.map(submit, range(12)) if job_id]
    assert len(ids) == tenant.counts()["queued"] == 5
    assert store.of_tenant("bob", 5).submit(request(1)).status == "queued"  # others have quotas of their own
    taken = tenant.get(ids[0])
    again = next(tenant.submit(taken.request, f"k{seed}") for seed in range(12) if request(seed) == taken.request)
    assert again.id == taken.id  # a repetition takes no place
    tenant.cancel(ids[0])
    assert tenant.submit(request(50)).status == "queued"
    with pytest.raises(QuotaExceeded, match="5 jobs"):
        tenant.submit(request(51))


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer x", "Basic YTpi", f"Bearer {TOKEN}", TOKEN, "Bearer fsk_" + "a" * 5000],
)
def test_no_valid_key_is_401(guarded_api, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs/job_x/events")):
        answer = guarded_api.http.request(method, path, headers=headers)
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "a" * 100 not in answer.text


def test_a_wrong_secret_is_401(guarded_api, key):
    headers = key()
    assert guarded_api.http.get("/v1/jobs", headers=headers).status_code == 200
    wrong = headers["Authorization"][:-1] + ("0" if headers["Authorization"][-1] != "0" else "1")
    problem(guarded_api.http.get("/v1/jobs", headers={"Authorization": wrong}), 401, "unauthenticated")


def test_scopes(guarded_api, key):
    reader, writer, watcher = key(scopes=("jobs:read",)), key(scopes=("jobs:write",)), key(scopes=("metrics:read",))
    found = problem(guarded_api.http.post("/v1/jobs", json=spec(), headers=reader), 403, "forbidden")
    assert "jobs:write" in found.detail
    job = guarded_api.http.post("/v1/jobs", json=spec(), headers=writer).json()["id"]
    assert guarded_api.http.get(f"/v1/jobs/{job}", headers=reader).status_code == 200
    problem(guarded_api.http.get(f"/v1/jobs/{job}", headers=writer), 403, "forbidden")
    problem(guarded_api.http.post(f"/v1/jobs/{job}:cancel", headers=reader), 403, "forbidden")
    problem(guarded_api.http.get("/metrics", headers=writer), 403, "forbidden")
    assert guarded_api.http.get("/metrics", headers=watcher).status_code == 200
    problem(guarded_api.http.get("/metrics"), 401, "unauthenticated")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/docs", "/openapi.json", "/v1/schema", "/"])
def test_what_tells_nothing_of_jobs_is_open(guarded_api, path):
    assert guarded_api.http.get(path).status_code == 200


def test_the_reference_says_what_needs_a_key(guarded_api, tmp_path):
    """So that /docs lets one be entered; where none are needed it says nothing of them."""
    document = guarded_api.http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["API key"]["scheme"] == "bearer"
    operations = {(m, p): o for p, path in document["paths"].items() for m, o in path.items()}
    open_to_all = {path for (_, path), operation in operations.items() if "security" not in operation}
    assert open_to_all == {"/livez", "/readyz", "/v1/schema"}
    for (method, path), operation in operations.items():
        if "security" in operation:
            assert operation["security"] == [{"API key": []}]
            problem(guarded_api.http.request(method, re.sub(r"{\w+}", "0" * 64, path)), 401, "unauthenticated")
    with Api(tmp_path / "open") as api:
        assert "securit" not in api.http.get("/openapi.json").text


def test_a_revoked_key_stops_within_the_stated_time(guarded_api, key):
    headers = key("revoked")
    job = guarded_api.http.post("/v1/jobs", json=spec(), headers=headers).json()["id"]
    key_id = parse_token(headers["Authorization"].removeprefix("Bearer "))[0]
    with guarded_api.http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: status"
        guarded_api.store.keys.revoke(key_id)
        time.sleep(KEY_CACHE_SECONDS)
        problem(guarded_api.http.get("/v1/jobs", headers=headers), 401, "unauthenticated")
        list(lines)  # ends, though the job does not


def test_keys_are_not_asked_for_at_every_request(guarded_api, key, monkeypatch):
    headers = key()
    asked = []
    find = type(guarded_api.store.keys).find
    monkeypatch.setattr(type(guarded_api.store.keys), "find", lambda self, id: asked.append(id) or find(self, id))
    started = time.monotonic()
    for _ in range(30):
        assert guarded_api.http.get("/v1/jobs", headers=headers).status_code == 200
    assert len(asked) <= 1 + (time.monotonic() - started) / KEY_CACHE_SECONDS


def test_a_rate_limit_says_when_to_ask_again(guarded_api, key):
    headers, other = key("alice", None, 5), key("alice", None, 5)
    first = time.time()
    for _ in range(5):
        assert guarded_api.http.get("/v1/jobs", headers=headers).status_code == 200
    last = time.time()
    answer = guarded_api.http.get("/v1/jobs", headers=headers)
    found = problem(answer, 429, "rate-limited")
    assert "5 times a minute" in found.detail
    # a place is free a minute after the first request
    assert first + 60 <= time.time() + int(answer.headers["retry-after"])
    assert int(answer.headers["retry-after"]) <= 60 - (time.time() - last) + 1 + (last - first)
    assert guarded_api.http.get("/v1/jobs", headers=other).status_code == 200  # a key's limit is its own


def test_a_quota_is_429(guarded_api, key):
    headers = key("bob", 2)
    jobs = [guarded_api.http.post("/v1/jobs", json=spec(), headers=headers).json()["id"] for _ in range(2)]
    answer = guarded_api.http.post("/v1/jobs", json=spec(), headers=headers)
    assert "2 jobs" in problem(answer, 429, "quota-exceeded").detail
    assert int(answer.headers["retry-after"]) >= 1
    guarded_api.http.post(f"/v1/jobs/{jobs[0]}:cancel", headers=headers)
    assert guarded_api.http.post("/v1/jobs", json=spec(), headers=headers).status_code == 202


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Host": "localhost:8000"}, 202),
        ({"Host": "[::1]"}, 202),
        ({"Host": "127.9.9.9:1"}, 202),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[x"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 202),
    ],
    ids=str,
)
def test_without_keys_a_browser_cannot_be_used_against_the_service(api, headers, status):
    answer = api.http.post("/v1/jobs", json=spec(), headers=headers)
    assert answer.status_code == status, answer.text
    if status == 403:
        problem(answer, 403, "forbidden")
    reading = api.http.get("/v1/jobs", headers=headers)  # of another origin it cannot read the answer
    assert reading.status_code == (403 if status == 403 and "Origin" not in headers else 200)


def test_with_keys_any_host_will_do(guarded_api, key):
    headers = {**key(), "Host": "featurespeed.example", "Origin": "https://page.example"}
    assert guarded_api.http.post("/v1/jobs", json=spec(), headers=headers).status_code == 202


def test_when_keys_are_required(store, tmp_path):
    def required(address, **settings):
        return guarded(Settings(data_dir=tmp_path, **settings), address, store.keys).require_keys

    assert [required(address) for address in ("127.0.0.1", "127.1.2.3", "::1")] == [False] * 3
    assert required("127.0.0.1", require_keys=True)
    for address in ("0.0.0.0", "::", "192.168.1.7", "fe80::1%eth0"):
        with pytest.raises(CannotStart, match="keys create"):
            required(address)
        with pytest.raises(CannotStart, match="without API keys"):
            required(address, require_keys=False)
    made, _ = store.keys.create("alice", Grant("alice"))
    assert required("0.0.0.0")
    store.keys.revoke(made.id)
    with pytest.raises(CannotStart, match="keys create"):
        required("0.0.0.0")
    assert required("0.0.0.0", bootstrap_key=TOKEN)


def test_the_bootstrap_key_is_never_shown_nor_handed_down(tmp_path):
    secret = parse_token(TOKEN)[1]
    environment = {"FEATURESPEED_BOOTSTRAP_KEY": TOKEN, "FEATURESPEED_BOOTSTRAP_KEY_FILE": "/x", "PATH": "/bin"}
    settings = Settings.from_environment(environment)
    assert settings.bootstrap_key.get_secret_value() == TOKEN
    assert secret not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    handed = settings.environment_of_child(environment)
    assert secret not in str(handed)
    assert not any("BOOTSTRAP_KEY" in name for name in handed)
    assert handed["PATH"] == "/bin"


def serve(directory, host, **environment):
    command = f"import sys; from featurespeed_service.serve import serve; sys.exit(serve({host!r}, 0))"
    given = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESPEED_")}
    given |= {"FEATURESPEED_DATA_DIR": str(directory), **environment}
    done = subprocess.run([sys.executable, "-c", command], env=given, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


def test_an_operators_mistake_is_one_line(tmp_path):
    assert "featurespeed keys create NAME" in serve(tmp_path, "0.0.0.0")
    line = serve(tmp_path, "127.0.0.1", FEATURESPEED_BOOTSTRAP_KEY=TOKEN + "!")
    assert line.startswith("featurespeed: FEATURESPEED_BOOTSTRAP_KEY: a key is fsk_<id>_<secret>")
    assert parse_token(TOKEN)[1] not in line


def test_a_service_with_keys(tmp_path):
    """A real one: the bootstrap key from a file opens it, the dispatcher knows nothing of it, nor does the log."""
    (tmp_path / "key").write_text(f"{TOKEN}\n")
    bootstrap = {"bootstrap_key_file": tmp_path / "key", "require_keys": True, "bootstrap_tenant": "ops"}
    with ServiceProcess(tmp_path, **bootstrap) as service:
        problem(service.http.get("/v1/jobs"), 401, "unauthenticated")
        service.http.headers.update(bearer(TOKEN))
        job = service.submit(1, seeds=(0,))
        dispatcher = wait_until(lambda: _dispatcher(service), 30, "a dispatcher")
        assert not any("BOOTSTRAP" in name and "KEY" in name for name in dispatcher.environ())
        assert service.http.get("/metrics").status_code == 200
        with closing(SqlStore(Database(f"sqlite:///{service.database}"))) as store:
            assert store.of_tenant("ops").get(job)
            assert store.of_tenant("admin").page().jobs == ()
            assert [(key.id, key.name) for key in store.keys.all()] == [("bootstrap", "bootstrap")]
    assert parse_token(TOKEN)[1] not in service.log.read_text()


def _dispatcher(service):
    try:
        return service.dispatcher()
    except (StopIteration, psutil.Error):
        return None


def command(*arguments, **options):
    given = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESPEED_")}
    line = [sys.executable, "-m", "featurespeed", "keys", *map(str, arguments)]
    return subprocess.run(line, env=given, capture_output=True, text=True, timeout=60, **options)


def test_the_command(tmp_path):
    where = ("--database", f"sqlite:///{tmp_path / 'x.sqlite3'}", "--data-dir", tmp_path)
    plain = command("create", "alice", *where)
    assert parse_token(plain.stdout.strip())
    made = json.loads(command("create", "ops", "--tenant", "t", "--scopes", "metrics:read", "--json", *where).stdout)
    assert (made["tenant"], made["scopes"], made["max_active_jobs"]) == ("t", ["metrics:read"], None)
    assert command("revoke", made["id"], *where).returncode == 0
    listed = json.loads(command("list", "--json", *where).stdout)
    assert [(key["name"], key["revoked_at"] is None) for key in listed] == [("alice", True), ("ops", False)]
    table = command("list", *where).stdout
    assert made["id"] in table
    with closing(SqlStore(Database(where[1]))) as store:
        digests = [key.sha256 for key in store.keys.all()]
    assert not any(digest in table + str(listed) for digest in digests)
    for wrong in (
        ("create", "a b"),
        ("create", "a", "--scopes", "all"),
        ("revoke", "nobody"),
        ("create", "a", "--max-active-jobs", "0"),
    ):
        done = command(*wrong, *where)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
