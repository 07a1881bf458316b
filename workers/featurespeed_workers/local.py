"""The engine in-process: a request in, a report out; no server and no Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from featurespeed.contract import JobRequest, MeasurementEvent, Progress, Report
from featurespeed_workers.cells import CellProgress, assemble, run_cell

Listener = Callable[[Progress | MeasurementEvent], None]


def answer(
    request: JobRequest,
    *,
    dataset: Path | None = None,
    listener: Listener = lambda event: None,
    device: str | None = None,
    threads: int | None = None,
) -> Report:
    """Run the seeds one after another and assemble the report; ``dataset`` is the file of data kind ``dataset``.

    ``threads`` of torch on the CPU: as FEATURESPEED_THREADS says, else 1 as in the service, since their number is part
    of what makes results repeat to the last bit. Raises MeasurementError if the network cannot be measured, SpecError
    if the dataset does not fit.
    """
    with _threads(threads):
        return _answer(request, dataset, listener, device)


def _answer(request: JobRequest, dataset: Path | None, listener: Listener, device: str | None) -> Report:
    began, total, cells = time.perf_counter(), len(request.measurement.seeds), []
    for done, seed in enumerate(request.measurement.seeds):

        def forward(event: CellProgress | MeasurementEvent, done: int = done, seed: int = seed) -> None:
            if isinstance(event, CellProgress):
                fraction, message = (done + 0.99 * event.fraction) / total, f"seed {seed}: {event.message}"
                event_out = Progress(cells_done=done, cells_total=total, fraction=fraction, message=message)
                listener(event_out)
            else:
                listener(event)

        cells.append(run_cell(request, seed, dataset=dataset, listener=forward, device=device))
    listener(Progress(cells_done=total, cells_total=total, fraction=1.0, message="done"))
    return assemble(request, cells, wall_seconds=time.perf_counter() - began)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or int(os.environ.get("FEATURESPEED_THREADS", "1")))
    try:
        yield
    finally:
        torch.set_num_threads(before)
