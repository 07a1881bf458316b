"""The HTTP interface over a real server; the test plays the dispatcher on the store."""

import hashlib
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from httpx_sse import EventSource
from safetensors.numpy import save

from featurespeed.contract import Job, JobError, JobPage, JobRequest, Problem, Progress, Report, parse_request
from featurespeed_service.store.jobs import SqlJobStore
from featurespeed_service.web.assets import content
from tests.service.specs import request, spec
from tests.service.sse import read_events

PROGRESS = Progress(cells_done=1, cells_total=3, fraction=0.4, message="measuring")


def problem(answer, status, slug):
    """The problem in an answer, checked for its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(answer.content)
    assert (found.status, found.type) == (status, f"urn:featurespeed:problem:{slug}")
    assert "Traceback" not in answer.text
    assert answer.headers["x-request-id"]
    return found


def submitted(api, seed=0, **options):
    return Job.model_validate_json(api.http.post("/v1/jobs", json=spec(seed, **options)).content)


def claimed(api, job):
    """The lease of a job; others that wait are claimed on the way."""
    while claim := api.store.claim("test"):
        if claim.job.id == job.id:
            return claim.lease
    raise AssertionError("nobody can claim it")


def test_submit_answers_with_the_job_and_where_it_is(api):
    answer = api.http.post("/v1/jobs", json=spec())
    assert answer.status_code == 202
    job = Job.model_validate_json(answer.content)
    assert (job.status, job.request) == ("queued", request())
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"
    assert int(answer.headers["retry-after"]) >= 1
    assert Job.model_validate_json(api.http.get(answer.headers["location"]).content) == job


def bad(path, value):
    """The spec with one field replaced; ``...`` removes it."""
    found = spec()
    *parents, last = path.split(".")
    inner = found
    for key in parents:
        inner = inner.setdefault(key, {})
    inner[last] = value
    if value is ...:
        del inner[last]
    return found


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        (bad("architecture.width", 0), "architecture.width", 0),
        (bad("architecture.depth", 1), "architecture.depth", 1),
        (bad("architecture.width", True), "architecture.width", True),
        (bad("architecture.width", "16"), "architecture.width", "16"),
        (bad("architecture.wdith", 3), "architecture.wdith", 3),
        (bad("architecture.input_dim", ...), "architecture.input_dim", None),
        (bad("architecture.family", "cnn"), "architecture.family", "cnn"),
        (bad("loss", "hinge"), "loss", "hinge"),
        (bad("measurement.seeds", [1, 1]), "measurement.seeds", [1, 1]),
        (bad("measurement.seeds", []), "measurement.seeds", []),
        (bad("frozen", ["hidden_7"]), "frozen", ["hidden_7"]),
        (bad("kind", "guess"), "kind", "guess"),
        ([1, 2], "body", [1, 2]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_spec_names_field_value_and_bound(api, body, field, value):
    found = problem(api.http.post("/v1/jobs", json=body), 422, "invalid-spec")
    assert [(e.field, e.value) for e in found.errors] == [(field, value)]
    assert found.errors[0].bound
    assert field in found.detail


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"NaN", b"[" * 10_000], ids=str)
def test_what_is_no_json_is_refused(api, body):
    found = problem(api.http.post("/v1/jobs", content=body), 422, "invalid-spec")
    assert found.errors[0].field == "body"


def test_a_spec_over_the_budget_is_refused(api):
    found = problem(api.http.post("/v1/jobs", json=bad("architecture.width", 60_000)), 422, "invalid-spec")
    assert found.errors
    assert "1000000" in found.detail.replace(",", "").replace("_", "")


def test_a_spec_over_the_byte_limit_is_refused(api):
    limit = api.settings.max_spec_bytes
    body = httpx.Request("POST", "http://x", json=spec()).content
    assert api.http.post("/v1/jobs", content=body + b" " * (limit - len(body))).status_code == 202
    for size in (limit + 1, 4_000_000):
        found = problem(api.http.post("/v1/jobs", content=b" " * size), 413, "too-large")
        assert str(limit) in found.detail
        assert [e.field for e in found.errors] == ["body"]
    chunks = (b" " * 1000 for _ in range(limit // 1000 + 1))  # no Content-Length
    problem(api.http.post("/v1/jobs", content=chunks), 413, "too-large")


def test_idempotency_key(api):
    def submit(body, key):
        return api.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})

    first, again = submit(spec(5), "k1"), submit(spec(5), "k1")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert submit(spec(5), "k2").json()["id"] != first.json()["id"]
    problem(submit(spec(6), "k1"), 422, "idempotency-conflict")
    found = problem(submit(spec(5), "x" * 256), 422, "invalid-request")
    assert found.errors[0].field == "idempotency-key"


def test_listing(api):
    jobs = [submitted(api, seed, kind="recommend" if seed % 2 else "measure") for seed in range(5)]
    newest = [job.id for job in jobs[::-1]]
    found, cursor = [], None
    while len(found) < 5:
        parameters = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = JobPage.model_validate_json(api.http.get("/v1/jobs", params=parameters).content)
        found += [job.id for job in page.jobs]
        cursor = page.next_cursor
    assert found[:5] == newest
    api.http.post(f"/v1/jobs/{newest[0]}:cancel")
    page = api.http.get("/v1/jobs", params={"status": "cancelled", "kind": "measure", "limit": 1}).json()
    assert [job["id"] for job in page["jobs"]] == newest[:1]


@pytest.mark.parametrize(
    ("query", "field"),
    [("status=lost", "status"), ("kind=x", "kind"), ("cursor=x", "cursor"), ("limit=0", "limit"), ("limit=a", "limit")],
)
def test_a_bad_query_names_its_field(api, query, field):
    found = problem(api.http.get(f"/v1/jobs?{query}"), 422, "invalid-request")
    assert [(e.field, e.value) for e in found.errors] == [(field, query.split("=")[1])]


def test_unknown_things_are_problems(api):
    for method, path in [
        ("GET", "/v1/jobs/job_none"),
        ("GET", "/v1/jobs/job_none/result"),
        ("GET", "/v1/jobs/job_none/events"),
        ("POST", "/v1/jobs/job_none:cancel"),
        ("DELETE", "/v1/jobs/job_none"),
        ("GET", "/v2"),
    ]:
        found = problem(api.http.request(method, path), 404, "not-found")
        assert [e.value for e in found.errors] == ["/v2" if path == "/v2" else "job_none"]
    answer = api.http.put("/v1/jobs")
    found = problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] in found.errors[0].bound
    assert (found.errors[0].field, found.errors[0].value) == ("method", "PUT")


def test_an_internal_error_tells_nothing_but_its_id(api, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("the secret")

    monkeypatch.setattr(SqlJobStore, "get", fail)
    answer = api.http.get(f"/v1/jobs/job_{0:024}")
    found = problem(answer, 500, "internal-error")
    assert answer.headers["x-request-id"] in found.detail
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text
    assert "the secret" in caplog.text


def test_result_with_etag(api):
    job = submitted(api, 11)
    url = f"/v1/jobs/{job.id}/result"
    problem(api.http.get(url), 409, "conflict")
    api.store.succeed(claimed(api, job), '{"kind": "measure"}')
    answer = api.http.get(url)
    assert (answer.status_code, answer.text) == (200, '{"kind": "measure"}')
    etag = answer.headers["etag"]
    assert etag == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        unchanged = api.http.get(url, headers={"If-None-Match": given})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert api.http.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_failed_job_tells_why_in_place_of_a_result(api):
    job = submitted(api, 12)
    error = JobError(type="zero-gradient", detail="the gradient of block hidden_2 is zero")
    api.store.fail(claimed(api, job), error)
    assert Job.model_validate_json(api.http.get(f"/v1/jobs/{job.id}").content).error == error
    found = problem(api.http.get(f"/v1/jobs/{job.id}/result"), 409, "conflict")
    assert error.detail in found.detail


def test_cancel_and_delete(api):
    job = submitted(api, 13)
    url = f"/v1/jobs/{job.id}"
    found = problem(api.http.delete(url), 409, "conflict")
    assert "queued" in found.detail
    answer = api.http.post(f"{url}:cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert api.http.post(f"{url}:cancel").status_code == 202
    answer = api.http.delete(url)
    assert (answer.status_code, answer.content) == (204, b"")
    problem(api.http.get(url), 404, "not-found")


def test_events_are_live_and_end_with_the_job(api):
    job = submitted(api, 14)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_events, api.http, job.id)
        lease = claimed(api, job)
        api.store.record(lease, progress=PROGRESS, measurements=['{"step": 0}'])
        time.sleep(0.3)
        assert not reading.done()
        api.store.succeed(lease, "{}")
        events = reading.result(10)
    statuses = [Job.model_validate_json(e.data).status for e in events if e.event == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    assert [e.data for e in events if e.event == "measurement"] == ['{"step": 0}']
    assert [Progress.model_validate_json(e.data) for e in events if e.event == "progress"] == [PROGRESS]
    assert events[-1].event == "status"
    numbers = [int(e.id) for e in events]
    assert numbers == sorted(set(numbers))


def test_events_go_on_after_the_last_one_seen(api):
    job = submitted(api, 15)
    lease = claimed(api, job)
    api.store.record(lease, progress=PROGRESS, measurements=["1", "2", "3"])
    api.store.succeed(lease, "{}")
    events = read_events(api.http, job.id)
    for i, event in enumerate(events[:-1]):
        assert read_events(api.http, job.id, last_event_id=event.id) == events[i + 1 :]
    (end,) = read_events(api.http, job.id, last_event_id=events[-1].id)  # all was seen: the end is told again
    assert Job.model_validate_json(end.data).status == "succeeded"
    (schema,) = [
        p["schema"] for p in api.app.openapi()["paths"]["/v1/jobs"]["get"]["parameters"] if p["name"] == "limit"
    ]
    assert (schema["minimum"], schema["maximum"], schema["type"]) == (1, 200, "integer")
    for number in ("x", "+0.0", "-1", "1.0", "²"):
        answer = api.http.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": number.encode()})
        assert answer.status_code == 422, number
    answer = api.http.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": "x"})
    problem(answer, 422, "invalid-request")


def test_events_of_a_deleted_job_end(api):
    job = submitted(api, 16)
    with api.http.stream("GET", f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": "1"}) as answer:
        api.store.cancel(job.id)
        api.store.delete(job.id)
        left = [event.event for event in EventSource(answer).iter_sse()]
    assert left in ([], ["status"])  # it may see the end of the job before it is deleted


def dataset(rows=8, columns=8, outputs=2, **changed):
    tensors = {
        "inputs": np.ones((rows, columns), dtype=np.float32),
        "targets": np.ones((rows, outputs), dtype=np.float32),
    }
    content = save(tensors | changed)
    return content, hashlib.sha256(content).hexdigest()


def test_datasets_are_stored_once_and_used(api):
    content, sha256 = dataset()
    with_dataset = spec(data={"kind": "dataset", "sha256": sha256, "batch_size": 8})
    found = problem(api.http.post("/v1/jobs", json=with_dataset), 422, "invalid-spec")
    assert [(e.field, e.value) for e in found.errors] == [("data.sha256", sha256)]
    assert [api.http.put(f"/v1/datasets/{sha256}", content=content).status_code for _ in range(2)] == [201, 200]
    stored = api.store.datasets.find(sha256)
    assert b"".join(api.store.datasets.read(stored)) == content
    assert list(api.settings.datasets_dir.iterdir()) == []
    assert api.http.post("/v1/jobs", json=with_dataset).status_code == 202
    narrow = with_dataset | {"architecture": spec()["architecture"] | {"input_dim": 9}}
    found = problem(api.http.post("/v1/jobs", json=narrow), 422, "invalid-spec")
    assert found.errors[0].field == "dataset.inputs"


def test_a_bad_dataset_leaves_nothing(api):
    before = sorted(api.settings.datasets_dir.iterdir())
    content, sha256 = dataset(rows=7)
    other = "0" * 64
    found = problem(api.http.put(f"/v1/datasets/{other}", content=content), 422, "invalid-request")
    assert (found.errors[0].value, sha256 in found.errors[0].bound) == (other, True)
    problem(api.http.put("/v1/datasets/XYZ", content=content), 422, "invalid-request")
    for content, sha256 in [
        dataset(inputs=np.full((8, 8), np.nan, dtype=np.float32)),
        dataset(extra=np.ones(1)),
        dataset(rows=8, targets=np.ones((7, 2))),
        (b"no tensors", hashlib.sha256(b"no tensors").hexdigest()),
    ]:
        found = problem(api.http.put(f"/v1/datasets/{sha256}", content=content), 422, "invalid-spec")
        assert found.errors[0].field.startswith("dataset")
    content, sha256 = dataset(rows=20_000)
    problem(api.http.put(f"/v1/datasets/{sha256}", content=content), 413, "too-large")
    assert sorted(api.settings.datasets_dir.iterdir()) == before


def test_checkpoints_are_stored_once_and_used(api):
    content = save({"input.weight": np.ones((3, 2), np.float32), "optimizer.state.input.weight.step": np.array(3.0)})
    sha256 = hashlib.sha256(content).hexdigest()
    asked = spec(kind="recommend", checkpoint={"sha256": sha256})
    found = problem(api.http.post("/v1/jobs", json=asked), 422, "invalid-spec")
    assert [(e.field, e.value) for e in found.errors] == [("checkpoint.sha256", sha256)]
    assert [api.http.put(f"/v1/checkpoints/{sha256}", content=content).status_code for _ in range(2)] == [201, 200]
    stored = api.store.datasets.of_kind("checkpoint")
    assert b"".join(stored.read(stored.find(sha256))) == content
    assert list(api.settings.datasets_dir.iterdir()) == []
    posted = api.http.post("/v1/jobs", json=asked)
    assert (posted.status_code, posted.json()["request"]["checkpoint"]) == (202, {"sha256": sha256})
    api.store.cancel(posted.json()["id"])
    as_dataset = spec(data={"kind": "dataset", "sha256": sha256, "batch_size": 8})
    problem(api.http.post("/v1/jobs", json=as_dataset), 422, "invalid-spec")
    found = problem(api.http.post("/v1/jobs", json={**asked, "kind": "measure"}), 422, "invalid-spec")
    assert found.errors[0].field == "checkpoint"


def test_a_bad_checkpoint_leaves_nothing(api):
    before = sorted(api.settings.datasets_dir.iterdir())
    for tensors, field in [
        ({"a": np.full((8, 8), np.nan, np.float32)}, "checkpoint.a"),
        ({"a": np.ones(3), "b": np.array(np.inf)}, "checkpoint.b"),
        ({"a": np.ones(3, np.complex64)}, "checkpoint.a"),
        ({}, "checkpoint"),
        (None, "checkpoint"),
    ]:
        content = b"no tensors" if tensors is None else save(tensors)
        sha256 = hashlib.sha256(content).hexdigest()
        found = problem(api.http.put(f"/v1/checkpoints/{sha256}", content=content), 422, "invalid-spec")
        assert [fault.field for fault in found.errors] == [field]
    problem(api.http.put(f"/v1/checkpoints/{'0' * 64}", content=save({"a": np.ones(3)})), 422, "invalid-request")
    content, sha256 = dataset(rows=20_000)
    problem(api.http.put(f"/v1/checkpoints/{sha256}", content=content), 413, "too-large")
    assert sorted(api.settings.datasets_dir.iterdir()) == before


def test_the_same_dataset_at_the_same_time(api):
    content, sha256 = dataset(rows=9)
    barrier = threading.Barrier(4)

    def put(_):
        barrier.wait()
        return httpx.put(api.http.base_url.join(f"/v1/datasets/{sha256}"), content=content).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(put, range(4))) <= {200, 201}
    assert [p.name for p in api.settings.datasets_dir.iterdir() if p.name.startswith("upload-")] == []


def test_schema_is_that_of_the_models(api):
    found = api.http.get("/v1/schema").json()
    assert found["JobRequest"] == JobRequest.model_json_schema()
    assert found["Report"] == Report.model_json_schema(mode="serialization")


def test_openapi_describes_the_spec(api):
    document = api.http.get("/openapi.json").json()
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/JobRequest"}
    text = str(document)
    for name in [part.split("'")[0] for part in text.split("#/components/schemas/")[1:]]:
        assert name in document["components"]["schemas"]
    assert api.http.get("/docs").status_code == 200


def test_metrics(api):
    api.http.get("/v1/jobs/nobody")
    answer = api.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'featurespeed_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="404"}' in answer.text
    counts = api.store.counts()
    for status, count in counts.items():
        assert f'featurespeed_jobs{{status="{status}"}} {float(count)}' in answer.text
    assert f"featurespeed_queue_depth {float(counts['queued'])}" in answer.text


def test_the_page_stands_alone(api):
    answer = api.http.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "script-src 'self';" in answer.headers["content-security-policy"]
    assert "://" not in answer.text  # nothing from elsewhere
    assert "<script>" not in answer.text
    named = set(re.findall(r'(?:src|href)="(static/[^"]+)"', answer.text))
    for path in (*named, "static/plotly.js", "static/examples.json"):
        file = api.http.get(f"/{path}")
        assert file.status_code == 200
        assert file.headers["x-content-type-options"] == "nosniff"
        again = api.http.get(f"/{path}", headers={"If-None-Match": file.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for path in ("/static/nothing.js", "/static/..%2Fassets.py", "/static/assets.py"):
        problem(api.http.get(path), 404, "not-found")


def test_examples_to_start_from_are_accepted():
    for name, document in json.loads(content("examples.json")[0]).items():
        assert parse_request(document).kind in ("recommend", "measure"), name
