"""What dispatchers count, kept in the database: one truth for all of them, which outlives each of them.

A dispatcher counts in memory and adds to the table with its heartbeat; one that is killed loses two seconds of
counts, and one that does not hear that they were added adds them again.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from featurespeed_service.store.schema import counters

Counted = Mapping[tuple[str, str, str], float]
"""(name, label, upper bound of a bucket) → how much; label and bound are empty where there is none."""

CELL_SECONDS = "cell_seconds"
CELL_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, float("inf"))


class Tally:
    """Counts that have not been written yet."""

    def __init__(self) -> None:
        self.counted: dict[tuple[str, str, str], float] = {}

    def count(self, name: str, label: str = "", bound: str = "", by: float = 1.0) -> None:
        """Count something."""
        key = (name, label, bound)
        self.counted[key] = self.counted.get(key, 0.0) + by

    def observe_cell(self, kind: str, seconds: float) -> None:
        """Count a cell of a job of this kind, by its time."""
        bound = next(bound for bound in CELL_BUCKETS if seconds <= bound)
        self.count(CELL_SECONDS, kind, repr(bound))
        self.count(f"{CELL_SECONDS}_sum", kind, by=seconds)


def add(connection: Connection, counted: Counted) -> None:
    """Add to what is there."""
    # sorted: two dispatchers lock the rows in one order
    rows = [
        {"name": name, "label": label, "bound": bound, "value": value}
        for (name, label, bound), value in sorted(counted.items())
    ]
    if not rows:
        return
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = make(counters)
    keys = [counters.c.name, counters.c.label, counters.c.bound]
    added = new.on_conflict_do_update(index_elements=keys, set_={"value": counters.c.value + new.excluded.value})
    connection.execute(added, rows)


def read(connection: Connection) -> Counted:
    """Everything that was counted."""
    return {(row.name, row.label, row.bound): row.value for row in connection.execute(select(counters))}
