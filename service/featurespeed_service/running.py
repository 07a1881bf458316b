"""A job while it runs: which cells wait, run and are done, and what is still to be written to the store."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from pydantic import BaseModel

from featurespeed.contract import Progress
from featurespeed_service.cluster import CellTask
from featurespeed_service.store import Claim
from featurespeed_workers.ray_tasks import Item


class _Told(BaseModel):
    """What is read of a CellProgress."""

    fraction: float
    message: str


class RunningJob:
    """One claimed job. Cells that earlier attempts have finished are done from the start."""

    def __init__(self, claim: Claim, dataset: Path | None) -> None:
        self.lease = claim.lease
        self.job = claim.job
        self.request = claim.job.request
        self.request_json = self.request.model_dump_json()
        self.dataset = dataset
        self.done = dict(claim.cells)
        self.waiting = deque(seed for seed in self.request.measurement.seeds if seed not in self.done)
        self.tasks: dict[CellTask, int] = {}
        self.new_cells: dict[int, str] = {}
        self.new_measurements: list[str] = []
        self.changed = True
        self._fractions: dict[int, float] = {}
        self._message = "starting"

    @property
    def is_complete(self) -> bool:
        """Whether all cells are done."""
        return len(self.done) == len(self.request.measurement.seeds)

    def start(self, seed: int, task: CellTask) -> None:
        """Note that a cell has started."""
        self.tasks[task] = seed

    def hear(self, task: CellTask, item: Item) -> None:
        """Take what a task tells, a failure excepted."""
        seed = self.tasks[task]
        self.changed = True
        if item.kind == "cell":
            self.done[seed] = self.new_cells[seed] = item.text
            self._fractions.pop(seed, None)
            self._message = f"seed {seed}: done"
        elif item.kind == "measurement":
            self.new_measurements.append(item.text)
        elif item.kind == "progress":
            told = _Told.model_validate_json(item.text, extra="ignore")
            self._fractions[seed] = min(1.0, max(0.0, told.fraction))
            self._message = f"seed {seed}: {told.message}"

    @property
    def progress(self) -> Progress:
        """All cells together; each counts the same."""
        total = len(self.request.measurement.seeds)
        fraction = (len(self.done) + sum(self._fractions.values())) / total
        return Progress(
            cells_done=len(self.done), cells_total=total, fraction=min(1.0, fraction), message=self._message
        )

    def written(self) -> None:
        """Note that the store has everything."""
        self.new_cells, self.new_measurements, self.changed = {}, [], False
