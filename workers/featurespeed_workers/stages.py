"""A job as stages of cells: which cells come next, what a finished one gives to the next, and the report of all.

This module is the engine as the service sees it (see :class:`Engine`): cells have a name, and are JSON once finished.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from featurespeed.contract import JobRequest, Report
from featurespeed_workers import cells
from featurespeed_workers.cells import Cell, Listener, ignore
from featurespeed_workers.probes import run_probe_cell
from featurespeed_workers.refinement import Candidate, Probe, candidates, further, in_order
from featurespeed_workers.refining import refined

CellKey = str
"""The name of a cell within its job: ``seed 0``, or ``probe 2 seed 0`` for the second candidate tried."""


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
        checkpoint: Path | None = None,
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
    """A cell of a job: one seed's answer, or probe ``number`` (from 1); and the cells that must be finished before."""

    seed: int
    number: int | None = None
    inputs: tuple[CellKey, ...] = ()


def plan(request: JobRequest) -> dict[CellKey, PlannedCell]:
    """All cells of a job, in the order in which they are best computed; as many as ``request.cells_total``."""
    planned = {_seed_key(seed): PlannedCell(seed) for seed in request.measurement.seeds}
    if (refine := request.scaling.refine) is None:
        return planned
    seeds = request.measurement.seeds[: refine.seeds]
    first = _probe_keys(range(1, len(refine.factors) + 1), seeds)
    for number in range(1, refine.total_factors + 1):
        for seed in seeds:
            inputs = (_seed_key(seed), *(first if number > len(refine.factors) else ()))
            planned[_probe_key(number, seed)] = PlannedCell(seed, number, inputs)
    return planned


def _seed_key(seed: int) -> CellKey:
    return f"seed {seed}"


def _probe_key(number: int, seed: int) -> CellKey:
    return f"probe {number} seed {seed}"


def _probe_keys(numbers: Iterable[int], seeds: Sequence[int]) -> list[CellKey]:
    return [_probe_key(number, seed) for number in numbers for seed in seeds]


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
    checkpoint: Path | None = None,
    listener: Listener = ignore,
    device: str | None = None,
) -> str:
    """Compute a cell; ``inputs`` are those of :func:`inputs_of`. JSON. Raises as :func:`cells.run_cell`."""
    planned = plan(request)[key]
    if planned.number is None:
        found = cells.run_cell(
            request, planned.seed, dataset=dataset, checkpoint=checkpoint, listener=listener, device=device
        )
        return found.model_dump_json()
    candidate = _candidates(request, inputs)[planned.number - 1]
    closed_form = Cell.model_validate_json(inputs[_seed_key(planned.seed)])
    probe = run_probe_cell(request, candidate, closed_form, dataset=dataset, listener=listener, device=device)
    return probe.model_dump_json()


def _candidates(request: JobRequest, done: Mapping[CellKey, str]) -> list[Candidate]:
    """What is tried, in the order of the probes' numbers; the second round only where the first one is done."""
    refine = request.scaling.refine
    assert refine is not None
    first = candidates(refine)
    keys = _probe_keys(range(1, len(first) + 1), request.measurement.seeds[: refine.seeds])
    if not all(key in done for key in keys):
        return list(first)
    return [*first, *further(refine, [Probe.model_validate_json(done[key]) for key in keys])]


def assemble(request: JobRequest, done: Mapping[CellKey, str], *, wall_seconds: float) -> Report:
    """The report from all cells, in the order of the request's seeds whatever the order in which they were done."""
    found = [Cell.model_validate_json(done[_seed_key(seed)]) for seed in request.measurement.seeds]
    refine = request.scaling.refine
    if refine is None:
        return cells.assemble(request, found, wall_seconds=wall_seconds)
    keys = _probe_keys(range(1, refine.total_factors + 1), request.measurement.seeds[: refine.seeds])
    return refined(
        found,
        in_order(_candidates(request, done)),
        [Probe.model_validate_json(done[key]) for key in keys],
        assemble=lambda scaled: cells.assemble(request, scaled, wall_seconds=wall_seconds),
    )
