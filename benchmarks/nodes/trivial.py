"""An engine whose cells are done at once: what remains is the service."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from featurespeed.contract import JobRequest, Measurement, Provenance, Report, Statistic, parse_request
from featurespeed_workers.cells import Listener, ignore
from featurespeed_workers.stages import CellKey, inputs_of, next_cells

__all__ = ["CELL", "Counting", "assemble", "inputs_of", "next_cells", "run_cell", "spec"]

CELL = '"' + 6000 * "x" + '"'
"""As long as the cell of a network of twelve layers."""


def spec(number: int, cells: int, steps: int = 0) -> JobRequest:
    """A request of so many cells; ``number`` makes it differ from others."""
    return parse_request(
        {
            "kind": "measure",
            "architecture": {"family": "mlp", "input_dim": 8, "width": 16, "depth": 12, "output_dim": 4},
            "data": {"kind": "gaussian", "batch_size": 16, "seed": number},
            "loss": "cross_entropy",
            "measurement": {"seeds": list(range(cells)), "steps": steps},
        }
    )


def run_cell(
    request: JobRequest,
    key: CellKey,
    inputs: Mapping[CellKey, str],
    *,
    dataset: Path | None = None,
    listener: Listener = ignore,
    device: str | None = None,
) -> str:
    """Nothing."""
    return CELL


def assemble(request: JobRequest, done: Mapping[CellKey, str], *, wall_seconds: float) -> Report:
    """A report without layers."""
    measurement = Measurement(
        step=0,
        loss=1.0,
        loss_decay=1.0,
        formula_residual=0.0,
        method="exact",
        loss_over_seeds=Statistic.of([1.0 for _ in done]),
        layers=(),
    )
    provenance = Provenance(
        featurespeed="0", torch="none", python="3", device="cpu", dtype="float32", threads=1,
        seeds=request.measurement.seeds, spec_sha256=request.sha256, wall_seconds=wall_seconds,
    )  # fmt: skip
    return Report(kind=request.kind, measurements=(measurement,), provenance=provenance)


class Counting:
    """The engine as a dispatcher has it; sets ``stop`` when the reports of so many jobs have been assembled."""

    next_cells = staticmethod(next_cells)
    inputs_of = staticmethod(inputs_of)
    run_cell = staticmethod(run_cell)

    def __init__(self, jobs: int, stop: threading.Event) -> None:
        self._left = jobs
        self._stop = stop

    def assemble(self, request: JobRequest, done: Mapping[CellKey, str], *, wall_seconds: float) -> Report:
        """A report without layers."""
        self._left -= 1
        if self._left == 0:
            self._stop.set()
        return assemble(request, done, wall_seconds=wall_seconds)
