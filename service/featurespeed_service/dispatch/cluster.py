"""Ray, as the dispatcher sees it: cells go in, items come out. Ray keeps no state that matters and retries nothing."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurespeed_service.dispatch.reaching import NoCluster, wait_for
from featurespeed_service.settings import Settings
from featurespeed_service.store.datasets import StoredDataset

# Before ray is imported: it reads these once. The local cluster listens on every interface, hence the token.
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
for _name, _value in LOCAL_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from featurespeed_workers.ray_tasks import CellCall, Item, SentDataset, cell_task, send_dataset, warm_up_task  # noqa: E402
from featurespeed_workers.stages import CellKey  # noqa: E402

log = logging.getLogger(__name__)

DIRECTORY_PREFIX = "featurespeed-ray-"
ITEMS_PER_POLL = 50
WARM_UP_SECONDS = 60.0
CRASHES = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)
"""A worker or its machine has died: the same cell may succeed elsewhere or later."""


class ClusterLost(Exception):
    """This process's own Ray node is gone: no task can run any more, and a new process must start over."""


@dataclass(frozen=True)
class Ended:
    """The last that is heard of a task. ``text`` is for the log."""

    how: Literal["finished", "cancelled", "crashed", "error"]
    text: str = ""


class CellTask:
    """A cell on its way; compared by identity."""

    def __init__(self, items: Any) -> None:
        self.items = items


class Cluster:
    """A running Ray; made by :func:`connect`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tasks: dict[Any, CellTask] = {}

    @property
    def slots(self) -> int:
        """How many cells fit on the cluster at once, as it is now."""
        resources = _resources()
        slots = int(resources.get("CPU", 0))
        if self._on_gpu(resources):
            slots = min(slots, int(resources["GPU"] / self._settings.gpus_per_cell))
        return max(1, slots)

    @property
    def running(self) -> int:
        """How many tasks have not ended."""
        return len(self._tasks)

    def _on_gpu(self, resources: dict[str, float]) -> bool:
        return resources.get("GPU", 0) > 0 and self._settings.gpus_per_cell > 0

    def _options(self) -> dict[str, float]:
        gpus = self._settings.gpus_per_cell if self._on_gpu(_resources()) else 0
        return {"num_cpus": 1, "num_gpus": gpus}

    def warm_up(self) -> list[Any]:
        """Start a worker for every slot; the references are ready when the workers are."""
        task = warm_up_task.options(**self._options())
        return [task.remote(self._settings.engine) for _ in range(self.slots)]

    def wait(self, references: list[Any], seconds: float) -> bool:
        """Wait for all of the references, but no longer than this; whether they are ready."""
        ready, _ = ray.wait(references, num_returns=len(references), timeout=seconds)
        return len(ready) == len(references)

    def send(self, dataset: StoredDataset, pieces: Iterable[bytes]) -> SentDataset:
        """Give a dataset to the cluster; it stays there as long as the answer does."""
        return send_dataset(dataset.sha256, dataset.size, pieces, self._settings.dataset_cache_bytes)

    def submit(
        self, request: str, key: CellKey, inputs: Mapping[CellKey, str], dataset: SentDataset | None
    ) -> CellTask:
        """Start a cell; request and inputs, the finished cells that it is given, as JSON."""
        options = self._options()
        call = CellCall(
            engine=self._settings.engine,
            request=request,
            key=key,
            inputs=inputs,
            dataset=dataset,
            device="cuda" if options["num_gpus"] else "cpu",
            threads=self._settings.threads,
        )
        task = CellTask(cell_task.options(**options).remote(call))
        self._tasks[task.items] = task
        return task

    def cancel(self, task: CellTask, *, force: bool) -> None:
        """Ask a task to stop, or end its process."""
        if task.items in self._tasks:
            ray.cancel(task.items, force=force)

    def poll(self, seconds: float) -> Iterator[tuple[CellTask, Item | Ended]]:
        """What the tasks tell; waits up to this long for the first of it. Ended is the last that a task tells.

        Talkative tasks do not hold the caller up: each is heard a bounded number of times.
        """
        ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        for _ in range(ITEMS_PER_POLL):
            if not ready:
                return
            for items in ready:
                heard = _hear(items)
                yield self._tasks[items], heard
                if isinstance(heard, Ended):
                    del self._tasks[items]
            waiting = list(self._tasks)
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0) if waiting else ([], [])


def _resources() -> dict[str, float]:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def _hear(items: Any) -> Item | Ended:
    try:
        item: Item = ray.get(next(items))
        return item
    except StopIteration:
        return Ended("finished")
    except ray.exceptions.TaskCancelledError:
        return Ended("cancelled")
    except ray.exceptions.LocalRayletDiedError as error:
        raise ClusterLost("the local raylet has died") from error
    except CRASHES as error:
        return Ended("crashed", str(error))
    except ray.exceptions.RayError as error:
        return Ended("error", str(error))


def join(address: str) -> None:
    """Make this process a driver of the Ray at ``address``; raises NoCluster."""
    wait_for(address)  # ray.init itself would wait for two minutes, and then end the process
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise NoCluster(f"no Ray at {address}, or its token is another: {str(error).splitlines()[0]}") from error


@contextmanager
def connect(settings: Settings) -> Iterator[Cluster]:
    """A cluster: the one at ``settings.ray_address``, else a local one that ends with the context."""
    if settings.ray_address is not None:
        join(settings.ray_address)
        try:
            yield Cluster(settings)
        finally:
            ray.shutdown()
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with _temporary_directory() as directory:
        try:
            ray.init(
                address="local",
                num_cpus=settings.cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=settings.object_store_bytes,
                _temp_dir=str(directory),
            )
            yield Cluster(settings)
        finally:
            ray.shutdown()


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    """A directory for Ray's logs and sockets, removed in the end; those of dispatchers that were killed go too.

    Not below the data directory: the path of a Unix socket has at most 107 characters.
    """
    for left in Path("/tmp").glob(f"{DIRECTORY_PREFIX}*"):
        with suppress(OSError), _locked(left):  # whoever lives holds the lock
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir="/tmp"))
    with _locked(directory):
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; raises OSError if another process does."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
