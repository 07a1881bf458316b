"""The blocking client against the real service, over real HTTP."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from featurespeed import (
    Client,
    Conflict,
    DeadlineExceeded,
    InvalidSpec,
    JobCancelled,
    JobFailed,
    NotFound,
    SpecError,
    TooLarge,
)
from featurespeed.contract import MeasurementEvent, Progress, parse_request
from featurespeed.events import Event, StatusEvent
from tests.client.live import LiveService, meanwhile
from tests.client.reports import SPEC, SPEC_WITHOUT_KIND, report, request


def test_recommend_tells_all_on_the_way(service: LiveService, client: Client) -> None:
    events: list[Event] = []
    with meanwhile(service.succeed):
        found = client.recommend(SPEC_WITHOUT_KIND, on_event=events.append, timeout=20)
    assert found == report()
    assert MeasurementEvent(seed=0, step=0, loss=2.0, angles=(0.5, None)) in events
    assert events[-1] == StatusEvent(status="succeeded")
    assert any(isinstance(event, Progress) and event.fraction == 0.5 for event in events)


def test_a_request_object_is_a_specification_too(service: LiveService, client: Client) -> None:
    job = client.submit(request())
    with meanwhile(service.succeed):
        assert job.wait(timeout=20) == report()
    assert job.refresh().request == request()
    assert job.status == "succeeded"
    assert "succeeded" in repr(job)


def test_events_are_iterated_to_the_end(service: LiveService, client: Client) -> None:
    job = client.submit(SPEC)
    with meanwhile(service.succeed):
        events = list(job.events(timeout=20))
    assert [e.status for e in events if isinstance(e, StatusEvent)][-1] == "succeeded"
    assert list(job.events(timeout=20))[-1] == StatusEvent(status="succeeded")


def test_events_may_be_left_early(service: LiveService, client: Client) -> None:
    job = client.submit(SPEC)
    for event in job.events(timeout=20):
        assert isinstance(event, StatusEvent | Progress)
        break
    job.cancel()


def test_failure_carries_the_jobs_error(service: LiveService, client: Client) -> None:
    job = client.submit(SPEC)
    with meanwhile(service.fail), pytest.raises(JobFailed, match="hidden_2 are not finite") as caught:
        job.wait(timeout=20)
    assert caught.value.error.type == "urn:test"
    assert caught.value.job.id == job.id
    with pytest.raises(JobFailed):
        job.result()


def test_cancelled_job(service: LiveService, client: Client) -> None:
    job = client.submit(SPEC)
    assert job.cancel().status == "cancelled"
    with pytest.raises(JobCancelled):
        job.wait(timeout=20)
    job.delete()
    with pytest.raises(NotFound) as caught:
        job.refresh()
    assert caught.value.status == 404
    assert caught.value.request_id


def test_result_and_delete_of_an_unfinished_job_conflict(service: LiveService, client: Client) -> None:
    job = client.submit(SPEC)
    with pytest.raises(Conflict):
        job.result()
    with pytest.raises(Conflict):
        job.delete()
    job.cancel()


def test_deadline_of_a_wait_leaves_the_job_alone(service: LiveService, client: Client) -> None:
    job = client.submit(SPEC)
    with pytest.raises(DeadlineExceeded, match=job.id):
        job.wait(timeout=0.5)
    assert job.refresh().status == "queued"
    job.cancel()


def test_deadline_of_recommend_cancels_the_job(service: LiveService, client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        client.recommend(SPEC, timeout=0.5)
    assert next(client.jobs()).status == "cancelled"


def test_listing_goes_through_all_pages(service: LiveService, client: Client) -> None:
    submitted = [client.submit(SPEC).id for _ in range(53)]  # a page has 50
    listed = [job.id for job in client.jobs(status="queued", kind="recommend")]
    assert listed == submitted[::-1]
    assert list(client.jobs(kind="measure")) == []
    assert client.job(listed[0]).id == listed[0]
    for job in client.jobs(status="queued"):
        job.cancel()


def test_refused_specification_names_field_value_and_bound(client: Client) -> None:
    with pytest.raises(InvalidSpec) as caught:
        client.recommend({**SPEC, "architecture": {**SPEC["architecture"], "width": 0}})
    (fault,) = caught.value.errors
    assert (fault.field, fault.value) == ("architecture.width", 0)
    assert str(caught.value).startswith("architecture.width: ")
    assert isinstance(caught.value, SpecError)


def test_contradicting_kind_is_not_even_sent(client: Client) -> None:
    before = sum(1 for _ in client.jobs())
    with pytest.raises(SpecError, match=r"kind: .*'measure'"):
        client.measure(SPEC)
    assert sum(1 for _ in client.jobs()) == before


def test_local_dataset_is_uploaded_once_named(service: LiveService, client: Client, tmp_path: Path) -> None:
    save_file(
        {"inputs": np.ones((6, 4), np.float32), "targets": np.zeros((6, 2), np.float32)}, tmp_path / "set.safetensors"
    )
    digest = hashlib.sha256((tmp_path / "set.safetensors").read_bytes()).hexdigest()
    spec = {**SPEC, "data": {"kind": "dataset", "batch_size": 4, "path": str(tmp_path / "set.safetensors")}}
    job = client.submit(spec)
    assert job.info.request == parse_request({**spec, "data": {"kind": "dataset", "batch_size": 4, "sha256": digest}})
    assert client.upload_dataset(tmp_path / "set.safetensors") == digest
    assert client.upload_checkpoint(tmp_path / "set.safetensors") == digest
    job.cancel()


def test_dataset_over_the_limit(client: Client, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(1_000_001))
    with pytest.raises(TooLarge, match="1000000 bytes"):
        client.upload_dataset(tmp_path / "large")


def test_schema_describes_request_and_report(client: Client) -> None:
    assert client.schema().keys() >= {"JobRequest", "Report"}
