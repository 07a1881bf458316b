"""The contract holds: requests generated from the OpenAPI document, and every answer checked against it."""

import hashlib
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode

from featurespeed.contract import JobError
from featurespeed_service.api.app import create_app
from featurespeed_service.settings import Settings
from featurespeed_service.store.database import Database
from featurespeed_service.store.sql import SqlStore
from tests.service import stand_in
from tests.service.specs import request

STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
BEYOND_SCHEMAS = ("POST /v1/jobs", "GET /v1/jobs", "PUT /v1/datasets/{sha256}", "PUT /v1/checkpoints/{sha256}")
"""Where rules stand that JSON Schema cannot express: between fields of a spec, of an idempotency key and its first
request, of a file and its digest, and that a cursor is one that a listing gave. There the check that valid data is
accepted may see 422 too, and ``refused_beyond_schema`` looks at each of them instead."""
CONFIG = {
    "base-url": "http://127.0.0.1",  # where no keys are asked for, the service has no other name
    "operations": [
        {
            "include-name": name,
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "3xx", "404", "409", "422"]}},
        }
        for name in BEYOND_SCHEMAS
    ],
}
CAN_BE_WRONG = (*BEYOND_SCHEMAS, "GET /v1/jobs/{job_id}/events")
"""Of the others no request is against the document: any text may be a job's id, though none has it."""
REACHED = {
    "POST /v1/jobs": {202, 405, 422},
    "GET /v1/jobs": {200, 422},
    "GET /v1/jobs/{job_id}": {200, 404, 405},
    "DELETE /v1/jobs/{job_id}": {204, 404, 409},
    "GET /v1/jobs/{job_id}/result": {200, 404, 405, 409},
    "POST /v1/jobs/{job_id}:cancel": {202, 404, 405},
    "POST /v1/jobs/{job_id}:retry": {202, 404, 405, 409},
    "GET /v1/jobs/{job_id}/events": {200, 404, 405, 422},
    "PUT /v1/datasets/{sha256}": {200, 201, 405, 422},
    "PUT /v1/checkpoints/{sha256}": {200, 201, 405, 422},
    "GET /v1/schema": {200, 405},
    "GET /livez": {200, 405},
    "GET /readyz": {200, 405},
    "GET /metrics": {200, 405},
}
"""Answers that the requests must have led to: without them the checks would have had nothing to look at."""


class Service:
    """The application over SQLite, called without a network; the test plays the dispatcher."""

    def __init__(self, directory):
        own = Settings(data_dir=directory, max_parameters=10**9)
        own.datasets_dir.mkdir(parents=True)
        self.store = SqlStore(Database(own.database_url))
        app = create_app(own, self.store)
        self._stopping = app.state.context.stopping
        self.document = schemathesis.openapi.from_dict(app.openapi(), config=SchemathesisConfig.from_dict(CONFIG))
        self.document.app = app
        self.answers = {}
        done = {f"seed {seed}": str(seed / 10) for seed in request().measurement.seeds}
        self._report = stand_in.assemble(request(), done, wall_seconds=1.0).model_dump_json()
        self._datasets = [
            save({"inputs": np.zeros((n, 3), np.float32), "targets": np.zeros((n, 2), np.float32)}) for n in range(1, 9)
        ]

    def operations(self):
        for found in self.document.get_all_operations():
            operation = found.ok()
            if operation.path.endswith("/events"):
                self._stopping.set()  # else the stream of a job that nobody works on has no end
            yield operation
            self._stopping.clear()

    def ask(self, case):
        """Send a request; every check that schemathesis has looks at the answer."""
        answer = case.call_and_validate()
        self.answers.setdefault(case.operation.label, Counter())[answer.status_code] += 1
        return answer

    @property
    def asked(self):
        return sum(sum(counts.values()) for counts in self.answers.values())

    def job(self, status):
        """The id of a new job in a status."""
        job = self.store.submit(request())
        if status == "cancelled":
            self.store.cancel(job.id)
        elif status != "queued":
            while (claim := self.store.claim("test")).job.id != job.id:
                self.store.confirm_cancelled(claim.lease)  # an older one, which is claimed first
            if status == "succeeded":
                self.store.succeed(claim.lease, self._report)
            elif status == "failed":
                self.store.fail(claim.lease, JobError(type="not-finite", detail="the loss is not finite"))
        return job.id

    def aim(self, case, where):
        """Let a request meet what is there, as ``where`` in [0, 8) says; one against the document stays so."""
        if "job_id" in (case.path_parameters or {}) and where < len(STATUSES):
            case.path_parameters["job_id"] = self.job(STATUSES[where])
        if case.meta.generation.mode is GenerationMode.NEGATIVE:
            return
        if "sha256" in (case.path_parameters or {}) and where < 6:
            case.body = self._datasets[where]
            case.path_parameters["sha256"] = hashlib.sha256(case.body).hexdigest()
        elif "cursor" in (case.query or {}) and where < 6:
            case.query["cursor"] = self.store.page(limit=1).next_cursor
        elif case.operation.label == "POST /v1/jobs":
            case.body = written_out(case.body)
            if where < 3:  # of many families, one that takes most kinds of data; nothing that names what is not there
                unnamed = {"checkpoint", "initialization", "frozen", "learning_rates"}
                kept = {name: value for name, value in case.body.items() if name not in unnamed}
                case.body = kept | {"architecture": request().architecture.model_dump()}


def written_out(value):
    """The same JSON with 2.0 as 2: to JSON Schema both are integers, but the contract asks for the second."""
    if isinstance(value, dict):
        return {key: written_out(item) for key, item in value.items()}
    if isinstance(value, list):
        return [written_out(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def refused_beyond_schema(case, answer):
    """Whether a problem blames what no schema expresses; pydantic's own sentences begin with a capital letter."""
    found = answer.json()
    faults = found["errors"]
    if case.operation.label == "GET /v1/jobs":
        return [fault["field"] for fault in faults] == ["cursor"]
    if found["type"].endswith(":idempotency-conflict"):
        return True
    return bool(faults) and not any(fault["bound"][0].isupper() for fault in faults)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("schemathesis"))
    yield service
    service.store.close()


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.name.lower())
def test_generated_requests(service, full, mode):
    for operation in service.operations():
        if mode is GenerationMode.NEGATIVE and operation.label not in CAN_BE_WRONG:
            continue

        @settings(
            max_examples=500 if full else 20,
            deadline=None,
            derandomize=not full,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(operation.as_strategy(generation_mode=mode), st.integers(0, 7))
        def ask(case, where):
            service.aim(case, where)
            answer = service.ask(case)
            if mode is GenerationMode.POSITIVE and answer.status_code == 422:
                assert refused_beyond_schema(case, answer), answer.text

        ask()


def test_requests_at_the_bounds(service, full):
    """Each field at, and one beyond, each of its bounds; each method that a path does not have."""
    for operation in service.operations():
        cases = service.document.iter_coverage_cases(
            operation, generation_modes=list(GenerationMode), generation_config=service.document.config.generation
        )
        for case in cases if full else every(cases, 12 if operation.body else 1):
            service.ask(case)


def every(cases, step):
    """The first requests, and each ``step``-th of the others."""
    yield from islice(cases, 10)
    yield from islice(cases, 0, None, step)


def test_contract_holds(service, full, report):
    """Of the tests before: what they have asked for, and that it led somewhere."""
    for label, statuses in REACHED.items():
        assert statuses <= set(service.answers.get(label, ())), (label, service.answers.get(label))
    assert service.answers.keys() == REACHED.keys()
    assert service.asked >= (5000 if full else 300)
    answered = Counter()
    for counts in service.answers.values():
        answered += counts
    told = ", ".join(f"{status}: {answered[status]}" for status in sorted(answered))
    report.row(
        "The contract holds", "5,000 requests, no 5xx, answers as documented", f"{service.asked} requests ({told})"
    )
