"""Ray, as the dispatcher sees it: cells go in, items come out. Ray keeps no state that matters and retries nothing."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurespeed_service.dispatch.reaching import standard_error_without, wait_for, why_not
from featurespeed_service.dispatch.shares import Capacity, Node, Share
from featurespeed_service.settings import Settings
from featurespeed_service.store.datasets import StoredDataset

# Before ray is imported: it reads these once. The local cluster listens on every interface, hence the token.
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "AUTOSCALER_METRIC_PORT": "-1",  # Ray's autoscaler asks no token for its metrics; it goes on where it cannot listen
}
for _name, _value in LOCAL_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from featurespeed_workers.ray_tasks import (  # noqa: E402
    CellCall,
    Item,
    SentDataset,
    cell_task,
    send_dataset,
    single_cell_task,
    warm_up_task,
)
from featurespeed_workers.stages import CellKey  # noqa: E402

log = logging.getLogger(__name__)

LOCAL_SYSTEM = {"gcs_rpc_server_reconnect_timeout_s": 5}
"""A local GCS that died does not come back: its driver ends after this, a new one starts. Ray's default is 60."""

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

    def __init__(self, items: Any, share: Share) -> None:
        self.items = items
        self.share = share
        self.is_cancelled = False


class Cluster:
    """A running Ray; made by :func:`connect`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tasks: dict[Any, CellTask] = {}
        self._shares: Counter[Share] = Counter()
        self._gpu_bytes = settings.gpu_memory_bytes
        self._warm: list[Any] = []
        self.capacity = self._look()

    def refresh(self) -> None:
        """Look at the nodes again, and at the memory of their GPUs as far as warm workers have told it."""
        self._learn()
        self.capacity = self._look()

    def _look(self) -> Capacity:
        nodes = tuple(Node(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in _nodes())
        return Capacity(nodes, self._gpu_bytes, self._settings.gpus_per_cell)

    @property
    def slots(self) -> int:
        """How many cells may be with the cluster at once, as it is now; at least one."""
        return max(1, self.capacity.most + self._surplus)

    @property
    def _surplus(self) -> int:
        return self._settings.max_pending_cells if self._settings.autoscaling else 0

    def has_room(self, share: Share) -> bool:
        """Whether a cell may be submitted now."""
        return self.capacity.has_room(self._shares, share, self._surplus)

    @property
    def running(self) -> int:
        """How many tasks have not ended."""
        return len(self._tasks)

    def warm_up(self) -> list[Any]:
        """Start a worker for every slot, one a GPU; the references are ready when the workers are."""
        share = self.capacity.share(0)
        if share.gpus and self._settings.gpus_per_cell is None:
            share = Share(share.cpus, 1.0)
        task = warm_up_task.options(num_cpus=share.cpus, num_gpus=share.gpus)
        self._warm = [task.remote(self._settings.engine) for _ in range(self.capacity.slots(share))]
        return self._warm

    def _learn(self) -> None:
        """Take the memory of the GPUs, the smallest, from what the warm-up told so far."""
        if self._gpu_bytes is None and self._warm:
            ready, self._warm = ray.wait(self._warm, num_returns=len(self._warm), timeout=0)
            self._gpu_bytes = min((told for told in map(_told, ready) if told is not None), default=None)

    def wait(self, references: list[Any], seconds: float) -> bool:
        """Wait for all of the references, but no longer than this; whether they are ready."""
        if not references:
            return True
        ready, _ = ray.wait(references, num_returns=len(references), timeout=seconds)
        return len(ready) == len(references)

    def send(self, dataset: StoredDataset, pieces: Iterable[bytes]) -> SentDataset:
        """Give a dataset to the cluster; it stays there as long as the answer does."""
        return send_dataset(dataset.sha256, dataset.size, pieces, self._settings.dataset_cache_bytes)

    def submit(
        self, share: Share, request: str, key: CellKey, inputs: Mapping[CellKey, str], dataset: SentDataset | None
    ) -> CellTask:
        """Start a cell; request and inputs, the finished cells that it is given, as JSON."""
        call = CellCall(
            engine=self._settings.engine,
            request=request,
            key=key,
            inputs=inputs,
            dataset=dataset,
            device="cuda" if share.gpus else "cpu",
            threads=self._settings.threads,
        )
        # CUDA keeps to the GPU that a process saw first: where a node has several, a process computes one cell alone
        many = share.gpus and any(node.gpus > 1 for node in self.capacity.nodes)
        remote = (single_cell_task if many else cell_task).options(num_cpus=share.cpus, num_gpus=share.gpus)
        task = CellTask(remote.remote(call), share)
        self._tasks[task.items] = task
        self._shares[share] += 1
        return task

    def cancel(self, task: CellTask, *, force: bool) -> None:
        """Ask a task to stop, or end its process; nothing but its end is heard of it from now on."""
        if task.items in self._tasks:
            task.is_cancelled = True
            ray.cancel(task.items, force=force)

    def poll(self, seconds: float) -> Iterator[tuple[CellTask, Item | Ended]]:
        """What the tasks tell; waits up to this long for the first of it. Ended is the last that a task tells.

        Talkative tasks do not hold the caller up: each is heard a bounded number of times.
        """
        ready = self._ready(seconds)
        for _ in range(ITEMS_PER_POLL):
            if not ready:
                return
            for task, awaited_end in ready:
                if task.is_cancelled != awaited_end:  # cancelled since, by what was heard of another
                    continue
                heard = _hear(task)
                yield task, heard
                if isinstance(heard, Ended):
                    self._shares[self._tasks.pop(task.items).share] -= 1
            ready = self._ready(0)

    def _ready(self, seconds: float) -> list[tuple[CellTask, bool]]:
        """The tasks of which something can be heard without waiting; and whether that is their end, being cancelled."""
        # the stream of a cancelled task ends at once, but to read on blocks until the task does
        awaited = {task.items.completed() if task.is_cancelled else task.items: task for task in self._tasks.values()}
        if not awaited:
            return []
        ready, _ = ray.wait(list(awaited), num_returns=1 if seconds else len(awaited), timeout=seconds)
        return [(task := awaited[one], task.is_cancelled) for one in ready]


def _nodes() -> list[dict[str, float]]:
    """The resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _told(reference: Any) -> int | None:
    try:
        told: int | None = ray.get(reference)
        return told
    except ray.exceptions.RayError as error:
        log.warning("a worker did not get warm: %s", error)
        return None


def _hear(task: CellTask) -> Item | Ended:
    try:
        if task.is_cancelled:
            ray.get(task.items.completed())
            return Ended("cancelled")
        item: Item = ray.get(next(task.items))
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
        with standard_error_without("InvalidAuthToken") as refusals:  # which Ray prints twenty times
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        has_token = not isinstance(error, ray.exceptions.AuthenticationError)
        raise why_not(address, str(error), has_token=has_token, is_refused=bool(refusals)) from error


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
                _system_config=LOCAL_SYSTEM,
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
