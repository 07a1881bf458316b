"""A cell: one request under one seed, the unit of work of a Ray task; and the report made of all cells.

Cells are deterministic in (request, seed): computing one again gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from featurespeed.contract import JobRequest, MeasurementEvent, Report
from featurespeed.contract.base import Model


class CellProgress(Model):
    """How far a cell is, and what it is doing."""

    fraction: float
    message: str


Listener = Callable[[CellProgress | MeasurementEvent], None]


class Cell(Model):
    """Everything found for one seed; serialises to JSON without loss."""

    seed: int


def ignore(event: CellProgress | MeasurementEvent) -> None:
    """A listener that does nothing."""


def run_cell(
    request: JobRequest,
    seed: int,
    *,
    dataset: Path | None = None,
    listener: Listener = ignore,
    device: str | None = None,
) -> Cell:
    """Answer ``request`` for one seed. ``dataset`` is the local file of data kind ``dataset``; ``device`` as torch names it.

    Raises MeasurementError if the network cannot be measured, SpecError if the dataset does not fit the request.
    """
    raise NotImplementedError


def assemble(request: JobRequest, cells: Sequence[Cell], *, wall_seconds: float) -> Report:
    """The report over all seeds; ``cells`` in the order of ``request.measurement.seeds``."""
    raise NotImplementedError
