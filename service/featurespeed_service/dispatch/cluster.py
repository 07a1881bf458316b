"""Ray, as the dispatcher sees it: cells go in, items come out. Ray keeps no state that matters and retries nothing."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray

from featurespeed_service.dispatch.shares import Capacity, Node, Share
from featurespeed_service.settings import Settings
from featurespeed_service.store.datasets import FileKind, StoredDataset
from featurespeed_workers.ray_tasks import (
    CellCall,
    Item,
    SentDataset,
    cell_task,
    send_dataset,
    single_cell_task,
    warm_up_task,
)
from featurespeed_workers.stages import CellKey

log = logging.getLogger(__name__)

ITEMS_PER_POLL = 50
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
    """A running Ray; made by ``connecting.py``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tasks: dict[Any, CellTask] = {}
        self._shares: Counter[Share] = Counter()
        self._stopping: dict[CellTask, float] = {}  # tasks that were asked to stop, and when their grace ends
        self._gpu_bytes = settings.gpu_memory_bytes
        self._warm: list[Any] = []
        self._gpu_nodes_asked = 0
        self.capacity = Capacity(())

    def refresh(self) -> None:
        """Look at the nodes again, and at the memory of their GPUs as far as warm workers have told it.

        Raises ClusterLost if our own is not among them: it died while nothing of ours ran.
        """
        self._learn()
        self.capacity = self._look()
        self._ask_new_gpus()

    def _look(self) -> Capacity:
        living = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        if ray.get_runtime_context().get_node_id() not in living:
            raise ClusterLost("the local raylet has died")
        nodes = tuple(Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in living.values())
        return Capacity(nodes, self._gpu_bytes, self._settings.gpus_per_cell, self._gpus_may_come)

    @property
    def _gpus_may_come(self) -> bool:
        """Whether an autoscaler may start nodes with GPUs; it does so only for cells that ask for them."""
        named = self._settings.gpu_memory_bytes is not None or bool(self._settings.gpus_per_cell)
        return self._settings.autoscaling and named

    @property
    def slots(self) -> int:
        """How many cells may be with the cluster at once, as it is now."""
        return self.capacity.most + self._surplus

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
        """Look at the nodes and start a worker for every slot, one a GPU; the references are ready when they are."""
        self.capacity = self._look()
        self._gpu_nodes_asked = self.capacity.gpu_nodes
        share = self.capacity.share(0)
        if share.gpus and self._settings.gpus_per_cell is None:
            share = Share(share.cpus, 1.0)
        self._warm = [self._warm_up(share) for _ in range(self.capacity.slots(share))]
        return self._warm

    def _warm_up(self, share: Share) -> Any:
        return warm_up_task.options(num_cpus=share.cpus, num_gpus=share.gpus).remote(self._settings.engine)

    def _ask_new_gpus(self) -> None:
        """Have a worker on a GPU that has come since tell its memory, if nobody knows it yet."""
        new = self.capacity.gpu_nodes > self._gpu_nodes_asked
        if self._gpu_bytes is None and new and self._settings.gpus_per_cell is None and not self._warm:
            self._warm = [self._warm_up(Share(self.capacity.share(0).cpus, 1.0))]
            self._gpu_nodes_asked = self.capacity.gpu_nodes

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
        """Give a file to the cluster; it stays there as long as the answer does."""
        return send_dataset(dataset.sha256, dataset.size, pieces, self._settings.dataset_cache_bytes)

    def submit(
        self,
        share: Share,
        request: str,
        key: CellKey,
        inputs: Mapping[CellKey, str],
        files: Mapping[FileKind, SentDataset],
    ) -> CellTask:
        """Start a cell; request and inputs, the finished cells that it is given, as JSON."""
        call = CellCall(
            engine=self._settings.engine,
            request=request,
            key=key,
            inputs=inputs,
            files={str(kind): sent for kind, sent in files.items()},
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

    def stop(self, task: CellTask) -> None:
        """Ask a task to stop, and end its process after a grace; nothing but its end is heard of it from now on."""
        if task.items in self._tasks and not task.is_cancelled:
            task.is_cancelled = True
            self._stopping[task] = time.monotonic() + self._settings.cancel_grace_seconds
            ray.cancel(task.items)

    def _end_stubborn(self) -> None:
        for task in [task for task, end in self._stopping.items() if time.monotonic() >= end]:
            del self._stopping[task]
            ray.cancel(task.items, force=True)

    def poll(self, seconds: float) -> Iterator[tuple[CellTask, Item | Ended]]:
        """What the tasks tell; waits up to this long for the first of it. Ended is the last that a task tells.

        Talkative tasks do not hold the caller up: each is heard a bounded number of times.
        """
        self._end_stubborn()
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
                    self._stopping.pop(task, None)
            ready = self._ready(0)

    def _ready(self, seconds: float) -> list[tuple[CellTask, bool]]:
        """The tasks of which something can be heard without waiting; and whether that is their end, being cancelled."""
        # the stream of a cancelled task ends at once, but to read on blocks until the task does
        awaited = {task.items.completed() if task.is_cancelled else task.items: task for task in self._tasks.values()}
        if not awaited:
            return []
        ready, _ = ray.wait(list(awaited), num_returns=1 if seconds else len(awaited), timeout=seconds)
        return [(task := awaited[one], task.is_cancelled) for one in ready]


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
