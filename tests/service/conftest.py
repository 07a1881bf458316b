"""What the tests of the service share: a store under a clock of our own, an API over real HTTP, one whole service."""

import threading
from pathlib import Path

import httpx
import pytest
import uvicorn

from featurespeed_service.api.app import create_app
from featurespeed_service.settings import Settings
from featurespeed_service.store.database import Database
from featurespeed_service.store.sql import SqlStore
from tests.service.service_process import ServiceProcess

LEASE_SECONDS = 10.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.now = 1_700_000_000_000_000

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += round(seconds * 1e6)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(database_url, clock):
    store = SqlStore(Database(database_url, clock), LEASE_SECONDS, max_attempts=3)
    yield store
    store.close()


class Api:
    """The application on a free port, in a thread; no dispatcher, so that a test plays that part on ``store``."""

    def __init__(self, directory: Path, **settings):
        limits = {"max_spec_bytes": 20_000, "max_dataset_bytes": 100_000, "max_parameters": 10**6}
        self.settings = Settings(data_dir=directory, **limits | settings)
        self.settings.datasets_dir.mkdir(parents=True, exist_ok=True)
        self.store = SqlStore(Database(self.settings.database_url))
        self.app = create_app(self.settings, self.store)
        self._server = uvicorn.Server(
            uvicorn.Config(self.app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)
        return self

    def __exit__(self, *_):
        self.http.close()
        self._server.should_exit = True
        self._thread.join()
        self.store.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with Api(tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """A whole service with the stand-in engine, shared by all tests that do not kill it."""
    with ServiceProcess(tmp_path_factory.mktemp("service")) as service:
        service.wait_ready()
        yield service
