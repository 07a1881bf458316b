"""A job while it runs: which cells wait, run and are done, and what is still to be written to the store."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from pydantic import BaseModel

from featurespeed.budget import memory_bytes
from featurespeed.contract import JobError, Progress
from featurespeed_service.dispatch.cluster import CellTask
from featurespeed_service.store.datasets import FileKind
from featurespeed_service.store.records import Claim, News
from featurespeed_workers.ray_tasks import Item, SentDataset
from featurespeed_workers.stages import CellKey, Engine


class _Told(BaseModel):
    """What is read of a CellProgress."""

    fraction: float
    message: str


class RunningJob:
    """One claimed job. Cells that earlier attempts finished are done from the start; the engine says what is next."""

    def __init__(self, claim: Claim, engine: Engine) -> None:
        self.lease = claim.lease
        self.job = claim.job
        self.request = claim.job.request
        self.request_json = self.request.model_dump_json()
        self.tenant = claim.tenant
        self.memory_bytes = memory_bytes(self.request)
        self.unfit_since: float | None = None
        """Since when no node could hold its cells."""
        self.files: Mapping[FileKind, SentDataset] | None = None
        """Sent to the cluster with the first cell that is submitted."""
        self.done = dict(claim.cells)
        self.tasks: dict[CellTask, CellKey] = {}
        self.new_cells: dict[CellKey, str] = {}
        self.new_measurements: list[str] = []
        self.cells_total = self.request.cells_total
        self.changed = True
        self.written_at = float("-inf")
        """When its news last went to the store."""
        self.in_doubt = False
        """Whether the store may have some of the news already."""
        self.is_complete = False
        self.outcome: str | JobError | None = None
        """The report or the error in which the job ends, until the store has it."""
        self._waiting: deque[CellKey] = deque()
        self._crashes: Counter[CellKey] = Counter()
        self._engine = engine
        self._queued: set[CellKey] = set()  # waiting, running or done in this attempt
        self._fractions: dict[CellKey, float] = {}
        self._message = "starting"
        self._advance()

    def _advance(self) -> None:
        """Queue what has become possible."""
        ready = self._engine.next_cells(self.request, self.done)
        self._waiting.extend(key for key in ready if key not in self._queued)
        self._queued.update(ready)
        self.is_complete = not ready

    def inputs_of(self, key: CellKey) -> dict[CellKey, str]:
        """The finished cells that a cell is given."""
        return {name: self.done[name] for name in self._engine.inputs_of(self.request, key)}

    @property
    def cells_running(self) -> int:
        """Cells that are with the cluster."""
        return len(self.tasks)

    @property
    def has_waiting(self) -> bool:
        """Whether a cell can be submitted."""
        return bool(self._waiting)

    def next_cell(self) -> CellKey:
        """The cell that is submitted next; it waits no longer."""
        return self._waiting.popleft()

    def start(self, key: CellKey, task: CellTask) -> None:
        """Note that a cell has started."""
        self.tasks[task] = key

    def unfinished_tasks(self) -> list[CellTask]:
        """The tasks that have not told their cell; the others end by themselves.

        To cancel a task just when it ends may kill this process: Ray 2.60 asserts that it is still pending.
        """
        return [task for task, key in self.tasks.items() if key not in self.done]

    def hear(self, task: CellTask, item: Item) -> None:
        """Take what a task tells, a failure excepted."""
        key = self.tasks[task]
        self.changed = True
        if item.kind == "cell":
            self.done[key] = self.new_cells[key] = item.text
            self._fractions.pop(key, None)
            self._message = f"{key}: done"
            self._advance()
        elif item.kind == "measurement":
            self.new_measurements.append(item.text)
        elif item.kind == "progress":
            told = _Told.model_validate_json(item.text, extra="ignore")
            self._fractions[key] = min(1.0, max(0.0, told.fraction))
            self._message = f"{key}: {told.message}"

    def say(self, message: str) -> None:
        """Tell whoever watches the job why nothing is computed."""
        if message != self._message:
            self._message, self.changed = message, True

    def crashed(self, key: CellKey) -> int:
        """Queue a cell again whose worker has died; how often that happened to it."""
        self._fractions.pop(key, None)
        self._waiting.appendleft(key)
        self._crashes[key] += 1
        self._message = f"{key}: its worker died; again"
        self.changed = True
        return self._crashes[key]

    def fail(self, error: JobError) -> None:
        """Let the job end with an error: nothing more of it is started."""
        self.outcome = self.outcome or error
        self._waiting.clear()

    @property
    def progress(self) -> Progress:
        """All cells together; each counts the same."""
        done, total = len(self.done), self.cells_total
        fraction = min(1.0, (done + sum(self._fractions.values())) / total)
        return Progress(cells_done=done, cells_total=total, fraction=fraction, message=self._message)

    @property
    def is_ending(self) -> bool:
        """Whether nothing more of it will be computed."""
        return self.is_complete or self.outcome is not None

    @property
    def news(self) -> News:
        """What the store does not have yet."""
        return News(self.progress, self.new_cells, self.new_measurements, self.in_doubt)

    def written(self, now: float) -> None:
        """Note that the store has everything."""
        self.new_cells, self.new_measurements, self.in_doubt = {}, [], False
        self.changed, self.written_at = False, now
