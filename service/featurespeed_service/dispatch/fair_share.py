"""Whose turn it is: among tenants, and among the jobs of one tenant. Pure: knows neither Ray nor the store."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

LARGE_JOB_CELLS = 32
"""Of jobs with more cells a tenant claims no more than keep the cluster busy, and at most half of its claims, so that
a small one gets in behind many of them."""
JOBS_PER_SLOT = 2
"""Jobs of one tenant claimed at once, for each cell that the cluster holds: enough that none of its slots is idle."""
CROWD = 4
"""How many tenants may fill their claims; of more, each gets less."""


@dataclass(frozen=True)
class Held:
    """How many jobs of a tenant are claimed, and how many of these are large."""

    jobs: int = 0
    large: int = 0


def claim_order(waiting: Iterable[str], held: Mapping[str, Held], slots: int) -> list[tuple[str, int | None]]:
    """The tenants that may claim, the one with the fewest claims first; each with the most cells that its job may have.

    ``None`` is any number of cells. Tenants that hold all that they may are not in it.
    """
    tenants = sorted(set(waiting), key=lambda tenant: (held.get(tenant, Held()).jobs, tenant))
    crowd = len(set(tenants) | set(held))
    most = max(2, min(JOBS_PER_SLOT * slots, CROWD * JOBS_PER_SLOT * slots // max(1, crowd)))
    most_large = min(most // 2, 2 + JOBS_PER_SLOT * slots // LARGE_JOB_CELLS)
    order: list[tuple[str, int | None]] = []
    for tenant in tenants:
        has = held.get(tenant, Held())
        if has.jobs < most:
            order.append((tenant, LARGE_JOB_CELLS if has.large >= most_large else None))
    return order


class Running(Protocol):
    """What is asked of a job."""

    @property
    def tenant(self) -> str:
        """Whose job it is."""

    @property
    def cells_running(self) -> int:
        """Cells that are with the cluster."""

    @property
    def cells_total(self) -> int:
        """All cells of the job."""

    @property
    def has_waiting(self) -> bool:
        """Whether a cell can be submitted."""


JobT = TypeVar("JobT", bound=Running)


def held_by_tenant(jobs: Iterable[Running]) -> dict[str, Held]:
    """How many claimed jobs each tenant has."""
    counted: dict[str, Held] = {}
    for job in jobs:
        has = counted.get(job.tenant, Held())
        counted[job.tenant] = Held(has.jobs + 1, has.large + (job.cells_total > LARGE_JOB_CELLS))
    return counted


def in_turn(jobs: Iterable[JobT]) -> Iterator[JobT]:
    """The job whose next cell is started, again and again, as long as any has a cell waiting.

    It is of the tenant with the fewest running cells; of its jobs the one with the fewest; among equals the smallest,
    then the one that comes first. The caller starts a cell of what it is given before it asks again.
    """
    cells: dict[str, int] = defaultdict(int)
    queues: dict[str, list[tuple[int, int, int, JobT]]] = defaultdict(list)
    for number, job in enumerate(jobs):
        cells[job.tenant] += job.cells_running
        if job.has_waiting:
            queues[job.tenant].append((job.cells_running, job.cells_total, number, job))
    for queue in queues.values():
        heapq.heapify(queue)
    tenants = [(cells[tenant], tenant) for tenant in queues]
    heapq.heapify(tenants)
    while tenants:
        running, tenant = heapq.heappop(tenants)
        queue = queues[tenant]
        _, total, number, job = heapq.heappop(queue)
        yield job
        if job.has_waiting:
            heapq.heappush(queue, (job.cells_running, total, number, job))
        if queue:
            heapq.heappush(tenants, (running + 1, tenant))
