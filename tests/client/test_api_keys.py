"""Clients with API keys, against a real service that asks for them."""

from pathlib import Path

import pytest

from featurespeed import Client, Forbidden, RateLimited, Unauthenticated
from featurespeed_service.store.keys import Grant
from tests.client.reports import SPEC_WITHOUT_KIND
from tests.service.conftest import Api

SPEC = {"kind": "measure", **SPEC_WITHOUT_KIND}


def test_api_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Api(tmp_path, require_keys=True) as api:
        url = str(api.http.base_url)
        _, token = api.store.keys.create("alice", Grant("alice"))
        _, reading = api.store.keys.create("reader", Grant("alice", ("jobs:read",)))
        _, limited = api.store.keys.create("limited", Grant("limited", requests_per_minute=1))
        with Client(url) as client, pytest.raises(Unauthenticated, match="API key is needed"):
            client.submit(SPEC)
        with Client(url, api_key=token) as client:
            job = client.submit(SPEC)
        with Client(url, api_key=reading) as client:
            assert client.job(job.id).id == job.id
            with pytest.raises(Forbidden, match="jobs:write"):
                client.submit(SPEC)
        monkeypatch.setenv("FEATURESPEED_API_KEY", token)
        with Client(url) as client:
            assert client.job(job.id).id == job.id
        monkeypatch.setattr("featurespeed.retry.MAX_RETRY_AFTER", 0.0)  # the minute that the service asks for
        with Client(url, api_key=limited) as client:
            assert list(client.jobs()) == []
            with pytest.raises(RateLimited, match="1 times a minute"):
                list(client.jobs())


def test_a_key_that_is_none_is_refused_without_telling_it() -> None:
    with pytest.raises(ValueError, match="api_key") as refusal:
        Client("http://localhost:1", api_key="fsk_a secret\n text")
    assert "secret" not in str(refusal.value)
