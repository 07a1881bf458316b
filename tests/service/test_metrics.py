"""/metrics as Prometheus reads it, and the dashboard and alerts that are made of it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from featurespeed_service.store.counters import Tally
from tests.service import stand_in
from tests.service.conftest import Api
from tests.service.service_process import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
NOT_METRICS = {"and", "or", "unless", "by", "on", "without", "le"}


def samples(http):
    """Value of every sample, by name and labels."""
    answer = http.get("/metrics").raise_for_status()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def scraped(service):
    """A scrape of a service that has done, failed and crashed."""
    failures = "featurespeed_job_failures_total", ("type", "worker-crashed")
    before = samples(service.http).get(failures, 0)
    for seed in (41, stand_in.UNMEASURABLE, stand_in.CRASH_ALWAYS):
        service.wait(service.submit(seed, seeds=(0, 1)))
    wait_until(lambda: samples(service.http).get(failures, 0) > before, 20, "what it has counted")
    return samples(service.http)


def test_work_is_counted(scraped):
    assert scraped[("featurespeed_cell_seconds_count", ("kind", "measure"))] >= 2
    assert scraped[("featurespeed_cell_seconds_bucket", ("kind", "measure"), ("le", "+Inf"))] >= 2
    assert scraped[("featurespeed_cell_seconds_sum", ("kind", "measure"))] > 0
    assert scraped[("featurespeed_job_failures_total", ("type", "zero-gradient"))] >= 1
    assert scraped[("featurespeed_job_failures_total", ("type", "worker-crashed"))] >= 1
    assert scraped[("featurespeed_attempts_total",)] >= 3
    assert scraped[("featurespeed_dispatcher_heartbeat_age_seconds",)] < 60
    route = (("route", "/v1/jobs"), ("status", "202"))
    assert scraped[("featurespeed_http_request_seconds_count", *route)] >= 3
    assert scraped[("process_resident_memory_bytes",)] > 10**7


def metrics_in(expr):
    """Names in a PromQL expression that are neither functions, words of the language, nor labels."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"|\b(?:by|on|without)\s*\([^)]*\)", " ", expr)
    return set(re.findall(r"\b([a-z_][a-z0-9_]*)\b(?!\s*\()", bare)) - NOT_METRICS


def test_the_dashboard_shows_what_there_is(scraped):
    names = {name for name, *_ in scraped}
    board = json.loads((DEPLOY / "grafana" / "featurespeed.json").read_text())
    shown = set()
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            assert metrics_in(target["expr"]), target["expr"]
            shown |= metrics_in(target["expr"])
    assert shown <= names
    bare = {re.sub("_(bucket|count|sum|created|total)$", "", name) for name in shown}
    told = {
        re.sub("_(bucket|count|sum|created|total)$", "", name) for name in names if name.startswith("featurespeed_")
    }
    assert told - bare == {"featurespeed_build_info"}  # nothing is told that nobody sees


def test_panels_do_not_overlap():
    board = json.loads((DEPLOY / "grafana" / "featurespeed.json").read_text())
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_alerts_are_about_what_there_is(scraped):
    names = {name for name, *_ in scraped}
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"]
            assert metrics_in(rule["expr"]) <= names, rule["alert"]
            assert metrics_in(rule["expr"])


def test_without_the_database_the_process_is_still_told(tmp_path):
    with Api(tmp_path / "api") as api:
        assert samples(api.http)[("featurespeed_store_up",)] == 1
        with api.store._database.writing() as connection:
            connection.execute(text("DROP TABLE counters"))
        found = samples(api.http)
        assert found[("featurespeed_store_up",)] == 0
        assert found[("process_resident_memory_bytes",)] > 0
        assert ("featurespeed_queue_depth",) not in found


def test_statistics(store, clock):
    from tests.service.specs import request

    store.submit(request(1))
    clock.advance(7)
    store.submit(request(2))
    found = store.statistics(10.0)
    assert (found.jobs["queued"], found.oldest_queued_seconds, found.lease_age_seconds) == (2, 7.0, 0.0)
    assert found.heartbeat_age_seconds is None
    lease = store.claim("a").lease
    clock.advance(3)
    tally = Tally()
    tally.count("attempts")
    tally.observe_cell("measure", 0.3)
    for owner in ("a", "b"):
        store.beat(owner, tally.counted)
    found = store.statistics(10.0)
    assert (found.oldest_queued_seconds, found.lease_age_seconds, found.heartbeat_age_seconds) == (3.0, 3.0, 0.0)
    assert found.counted == {
        ("attempts", "", ""): 2,
        ("cell_seconds", "measure", "0.5"): 2,
        ("cell_seconds_sum", "measure", ""): 0.6,
    }
    store.renew(lease)
    assert store.statistics(10.0).lease_age_seconds == 0.0
