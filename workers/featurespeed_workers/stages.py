"""A job as stages of cells: which cells come next, what a finished one gives to the next, and the report of all.

This module is the engine as the service sees it (see :class:`Engine`): cells have a name, and are JSON once finished.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from featurespeed.contract import JobRequest, Report
from featurespeed_workers import cells
from featurespeed_workers.cells import Cell, Listener, ignore

CellKey = str
"""The name of a cell within its job, such as ``seed 0``."""


class Engine(Protocol):
    """What the service asks of a module that computes. Cells are deterministic in (request, key) and their inputs."""

    def next_cells(self, request: JobRequest, done: Collection[CellKey]) -> list[CellKey]:
        """The cells that can be computed now: not finished, all their inputs finished. None: the job is complete."""
        ...

    def inputs_of(self, request: JobRequest, key: CellKey) -> tuple[CellKey, ...]:
        """The finished cells that a cell is given."""
        ...

    def run_cell(
        self,
        request: JobRequest,
        key: CellKey,
        inputs: Mapping[CellKey, str],
        *,
        dataset: Path | None = None,
        listener: Listener = ignore,
        device: str | None = None,
    ) -> str:
        """Compute a cell; JSON. Raises MeasurementError or SpecError for a fault that a user must know of."""
        ...

    def assemble(self, request: JobRequest, done: Mapping[CellKey, str], *, wall_seconds: float) -> Report:
        """The report, from all cells."""
        ...


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a job: its seed, and the cells that must be finished before it."""

    seed: int
    inputs: tuple[CellKey, ...] = ()


def plan(request: JobRequest) -> dict[CellKey, PlannedCell]:
    """All cells of a job, in the order in which they are best computed; as many as ``request.cells_total``."""
    return {_seed_key(seed): PlannedCell(seed) for seed in request.measurement.seeds}


def _seed_key(seed: int) -> CellKey:
    return f"seed {seed}"


def next_cells(request: JobRequest, done: Collection[CellKey]) -> list[CellKey]:
    """The cells that can be computed now: not finished, all their inputs finished. None: the job is complete."""
    planned = plan(request)
    return [key for key, cell in planned.items() if key not in done and all(i in done for i in cell.inputs)]


def inputs_of(request: JobRequest, key: CellKey) -> tuple[CellKey, ...]:
    """The finished cells that a cell is given."""
    return plan(request)[key].inputs


def run_cell(
    request: JobRequest,
    key: CellKey,
    inputs: Mapping[CellKey, str],
    *,
    dataset: Path | None = None,
    listener: Listener = ignore,
    device: str | None = None,
) -> str:
    """Compute a cell; ``inputs`` are those of :func:`inputs_of`. JSON. Raises as :func:`cells.run_cell`."""
    planned = plan(request)[key]
    return cells.run_cell(request, planned.seed, dataset=dataset, listener=listener, device=device).model_dump_json()


def assemble(request: JobRequest, done: Mapping[CellKey, str], *, wall_seconds: float) -> Report:
    """The report from all cells, in the order of the request's seeds whatever the order in which they were done."""
    found = [Cell.model_validate_json(done[_seed_key(seed)]) for seed in request.measurement.seeds]
    return cells.assemble(request, found, wall_seconds=wall_seconds)
