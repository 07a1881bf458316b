"""Cells as Ray tasks: one task computes one cell, and tells how it goes while it does."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import ray

from featurespeed.contract import JobError, JobRequest, MeasurementEvent, SpecError
from featurespeed_workers.dataset_cache import cached_dataset, default_directory
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.stages import CellKey, Engine

PROGRESS_SECONDS = 0.1
"""Progress that follows sooner upon the last is not told."""

POLL_SECONDS = 0.1
"""How soon a waiting task notices that it is cancelled."""

INVALID_SPEC = "invalid-spec"

TINY = {
    "kind": "recommend",
    "architecture": {"family": "mlp", "input_dim": 4, "width": 4, "depth": 3, "output_dim": 2},
    "data": {"kind": "gaussian", "batch_size": 4},
    "loss": "mse",
    "measurement": {"seeds": [0]},
}
"""What a worker computes to get warm."""


@dataclass(frozen=True, eq=False)
class SentDataset:
    """A dataset or checkpoint on its way to the nodes; ``pieces`` refers to a list of references to its bytes.

    A node that has it already fetches nothing.
    """

    sha256: str
    size: int
    pieces: Any
    cache_bytes: int


@dataclass(frozen=True)
class CellCall:
    """What a task needs to know: the name of an Engine's module; request and finished ``inputs`` as JSON.

    ``files`` are those that the request names: ``dataset``, ``checkpoint``, as :meth:`Engine.run_cell` has them.
    """

    engine: str
    request: str
    key: CellKey
    inputs: Mapping[CellKey, str]
    files: Mapping[str, SentDataset]
    device: str | None
    threads: int


@dataclass(frozen=True)
class Item:
    """What a task yields, as JSON: CellProgress and MeasurementEvent as they come, in the end a cell or a JobError."""

    kind: Literal["progress", "measurement", "cell", "failed"]
    text: str


class _Cancelled(BaseException):
    """Raised in the computation by its listener; no Exception, so that nothing on the way takes it for an error."""


def load_engine(name: str) -> Engine:
    """The module that computes."""
    return cast(Engine, import_module(name))


def job_error(error: MeasurementError | SpecError) -> JobError:
    """What a user is told of a cell that cannot be computed."""
    if isinstance(error, MeasurementError):
        return JobError(type=error.type, detail=error.detail)
    return JobError(type=INVALID_SPEC, detail=str(error))


def stream_cell(call: CellCall) -> Iterator[Item]:
    """Compute a cell in a thread, and yield what it tells; an unexpected exception is raised.

    A soft cancel interrupts this generator; the computation then ends at the next thing that it tells.
    """
    items: queue.SimpleQueue[Item | BaseException | None] = queue.SimpleQueue()
    cancelled = threading.Event()
    thread = threading.Thread(target=_compute, args=(call, items, cancelled), daemon=True)
    thread.start()
    try:
        while (item := _next(items)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        cancelled.set()
        thread.join()


def _next(items: queue.SimpleQueue[Item | BaseException | None]) -> Item | BaseException | None:
    while True:
        try:
            return items.get(timeout=POLL_SECONDS)  # without a timeout no interrupt would get through
        except queue.Empty:
            continue


def _compute(call: CellCall, items: queue.SimpleQueue[Item | BaseException | None], cancelled: threading.Event) -> None:
    try:
        items.put(_run(call, _Listener(items, cancelled)))
        items.put(None)
    except _Cancelled:
        items.put(None)
    except BaseException as error:
        items.put(error)


def _run(call: CellCall, listener: Callable[[Any], None]) -> Item:
    import torch

    torch.set_num_threads(call.threads)  # holds for this thread alone
    request = JobRequest.model_validate_json(call.request)
    engine = load_engine(call.engine)
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context(_local_file(sent)) for name, sent in call.files.items()}
            cell = engine.run_cell(request, call.key, call.inputs, **files, listener=listener, device=call.device)
    except (MeasurementError, SpecError) as error:
        return Item("failed", job_error(error).model_dump_json())
    finally:
        if call.device == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()  # what this process keeps, others on the same GPU lack
    return Item("cell", cell)


@contextmanager
def _local_file(dataset: SentDataset) -> Iterator[Path]:
    """The dataset or checkpoint as a file of this node."""

    def fetch() -> Iterator[bytes]:
        for piece in ray.get(dataset.pieces):
            yield ray.get(piece).data  # the array's own memory, in the object store

    with cached_dataset(default_directory(), dataset.sha256, dataset.size, fetch, dataset.cache_bytes) as path:
        yield path


def send_dataset(sha256: str, size: int, pieces: Iterable[bytes], cache_bytes: int) -> SentDataset:
    """Give a file to the cluster piece by piece; it stays there as long as this, or a task that is given it."""
    sent = [ray.put(np.frombuffer(piece, dtype=np.uint8)) for piece in pieces]
    return SentDataset(sha256, size, ray.put(sent), cache_bytes)


class _Listener:
    """Puts what a computation tells into a queue, with progress thinned out."""

    def __init__(self, items: queue.SimpleQueue[Item | BaseException | None], cancelled: threading.Event) -> None:
        self._items = items
        self._cancelled = cancelled
        self._last = float("-inf")

    def __call__(self, event: Any) -> None:
        if self._cancelled.is_set():
            raise _Cancelled
        if isinstance(event, MeasurementEvent):
            self._items.put(Item("measurement", event.model_dump_json()))
        elif (now := time.monotonic()) - self._last >= PROGRESS_SECONDS:
            self._last = now
            self._items.put(Item("progress", event.model_dump_json()))


def warm_up(engine: str) -> int | None:
    """Compute a tiny cell: most of a worker's first cell is the time that torch takes to load its parts.

    Tells the bytes of memory of the worker's GPU; ``None`` without one.
    """
    request = json.dumps(TINY)
    [key] = load_engine(engine).next_cells(JobRequest.model_validate_json(request), ())
    call = CellCall(engine, request, key, inputs={}, files={}, device="cpu", threads=1)
    _run(call, lambda event: None)
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


cell_task = ray.remote(max_retries=0, num_returns="streaming")(stream_cell)
single_cell_task = ray.remote(max_retries=0, max_calls=1, num_returns="streaming")(stream_cell)
warm_up_task = ray.remote(max_retries=0)(warm_up)
