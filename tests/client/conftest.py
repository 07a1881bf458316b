from collections.abc import Iterator
from pathlib import Path

import pytest

from featurespeed import Client
from tests.client.live import LiveService, live_service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def client(service: LiveService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client
