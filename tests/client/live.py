"""The real service on a free port, with its real store; the test plays the dispatcher's part."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from featurespeed.contract import JobError, MeasurementEvent, Progress
from featurespeed_service.api.app import create_app
from featurespeed_service.settings import Settings
from featurespeed_service.store.records import Claim
from featurespeed_service.store.sql import SqlStore, open_store
from tests.client.reports import report


class LiveService:
    """A running service; ``work`` answers its next job."""

    def __init__(self, url: str, store: SqlStore, settings: Settings) -> None:
        self.url = url
        self.store = store
        self.settings = settings

    def claim(self, seconds: float = 10.0) -> Claim:
        """The next job, as soon as there is one."""
        end = time.monotonic() + seconds
        while (claim := self.store.claim("test")) is None:
            assert time.monotonic() < end, "no job came"
            time.sleep(0.02)
        return claim

    def succeed(self, *, watched: bool = False) -> None:
        """Run the next job to its report, with progress and a measurement on the way.

        ``watched``: not before its events are watched; progress that the end has overtaken is not told any more.
        """
        claim = self.claim()
        half = Progress(cells_done=0, cells_total=1, fraction=0.5, message="measuring")
        measurement = MeasurementEvent(seed=0, step=0, loss=2.0, angles=(0.5, None))
        self.store.record(claim.lease, progress=half, measurements=[measurement.model_dump_json()])
        if watched:
            self._await_stream()
        self.store.succeed(claim.lease, report().model_dump_json())

    def _await_stream(self, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while "featurespeed_event_streams 1.0" not in httpx.get(f"{self.url}/metrics").text:
            assert time.monotonic() < end, "nobody watches"
            time.sleep(0.02)
        time.sleep(0.3)  # it is counted before it has looked

    def fail(self) -> None:
        """Fail the next job."""
        error = JobError(type="urn:test", detail="features of block hidden_2 are not finite")
        self.store.fail(self.claim().lease, error)

    def confirm_cancel(self) -> None:
        """Take the next job, and end it when it was asked to stop."""
        claim = self.claim()
        begun = Progress(cells_done=0, cells_total=1, fraction=0.1, message="building")
        self.store.record(claim.lease, progress=begun)
        end = time.monotonic() + 10
        while self.store.stop_requests([claim.lease]).get(claim.lease) != "cancel":
            assert time.monotonic() < end, "nobody cancelled"
            time.sleep(0.02)
        self.store.confirm_cancelled(claim.lease)


@contextmanager
def live_service(folder: Path) -> Iterator[LiveService]:
    settings = Settings(data_dir=folder, max_dataset_bytes=1_000_000)
    store = open_store(settings)
    app = create_app(settings, store)
    config = uvicorn.Config(
        app, port=0, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield LiveService(f"http://127.0.0.1:{port}", store, settings)
    finally:
        app.state.context.stopping.set()
        server.should_exit = True
        thread.join(10)
        store.close()


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Run ``work`` in a thread; its failure is the test's."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        if failures:
            raise failures[0]
