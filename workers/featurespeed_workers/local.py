"""The engine in-process: a request in, a report out; no server and no Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from featurespeed.contract import JobRequest, MeasurementEvent, Progress, Report
from featurespeed_workers.cells import CellProgress
from featurespeed_workers.stages import CellKey, assemble, inputs_of, next_cells, run_cell

Listener = Callable[[Progress | MeasurementEvent], None]


def answer(
    request: JobRequest,
    *,
    dataset: Path | None = None,
    checkpoint: Path | None = None,
    listener: Listener = lambda event: None,
    device: str | None = None,
    threads: int | None = None,
) -> Report:
    """Run the cells one after another and assemble the report; ``dataset`` and ``checkpoint`` are its files.

    ``threads`` of torch on the CPU: as FEATURESPEED_THREADS says, else 1 as in the service, since their number is part
    of what makes results repeat to the last bit. Raises MeasurementError if the network cannot be measured, SpecError
    if a file does not fit.
    """
    with _threads(threads):
        return _answer(request, dataset, checkpoint, listener, device)


def _answer(
    request: JobRequest, dataset: Path | None, checkpoint: Path | None, listener: Listener, device: str | None
) -> Report:
    began, total = time.perf_counter(), request.cells_total
    done: dict[CellKey, str] = {}
    while ready := next_cells(request, done):
        for key in ready:
            inputs = {name: done[name] for name in inputs_of(request, key)}
            forward = _forwarder(listener, key, len(done), total)
            done[key] = run_cell(
                request, key, inputs, dataset=dataset, checkpoint=checkpoint, listener=forward, device=device
            )
    listener(Progress(cells_done=total, cells_total=total, fraction=1.0, message="done"))
    return assemble(request, done, wall_seconds=time.perf_counter() - began)


def _forwarder(
    listener: Listener, key: CellKey, done: int, total: int
) -> Callable[[CellProgress | MeasurementEvent], None]:
    """What a cell tells, as the progress of the whole job."""

    def forward(event: CellProgress | MeasurementEvent) -> None:
        if isinstance(event, CellProgress):
            fraction, message = (done + 0.99 * event.fraction) / total, f"{key}: {event.message}"
            listener(Progress(cells_done=done, cells_total=total, fraction=fraction, message=message))
        else:
            listener(event)

    return forward


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or int(os.environ.get("FEATURESPEED_THREADS", "1")))
    try:
        yield
    finally:
        torch.set_num_threads(before)
