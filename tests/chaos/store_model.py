"""What the model of the store keeps of a job."""

from dataclasses import dataclass, field

from featurespeed.contract import JobError
from featurespeed_service.store.records import TRANSITIONS
from tests.service.specs import request

REQUESTS = [request(seed) for seed in range(2)]
CRASH = JobError(type="worker-crashed", detail="it died")
MAX_ATTEMPTS = 3
CELLS = ("seed 0", "seed 1", "seed 2")


@dataclass
class Known:
    """A job as the model has it."""

    id: str
    tenant: str
    asked: int
    created: int
    status: str = "queued"
    attempt: int = 0
    fruitless: int = 0  # starts in a row without a finished cell, but for those that were given back
    lease_until: int = 0
    cancel: bool = False
    ended: int = 0
    cells: dict = field(default_factory=dict)
    history: list = field(default_factory=lambda: ["queued"])
    retried_as: str | None = None

    def move(self, status):
        assert status in TRANSITIONS[self.status]
        self.status = status
        self.history.append(status)

    def end(self, status, now):
        self.move(status)
        self.ended = now

    @property
    def is_exhausted(self):
        return self.fruitless >= MAX_ATTEMPTS
