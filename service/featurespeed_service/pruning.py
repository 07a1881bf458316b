"""``featurespeed jobs prune``: ended jobs are deleted by hand, on the database itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path

from featurespeed.contract import Status
from featurespeed_service.opening import opened, settings_of


def prune(
    seconds: float,
    statuses: Collection[Status],
    *,
    dry_run: bool = False,
    database: str | None = None,
    data_dir: Path | None = None,
) -> Mapping[Status, int]:
    """Delete jobs that ended at least so long ago, batch by batch; how many, by status.

    ``None`` leaves a choice to the environment (``FEATURESPEED_*``). Raises CannotStart.
    """
    with closing(opened(settings_of(database=database, data_dir=data_dir))) as store:
        found: dict[Status, int] = dict.fromkeys(sorted(statuses), 0)
        for status in found:
            if dry_run:
                found[status] = store.prunable(seconds=seconds, statuses=[status]).get(status, 0)
                continue
            while batch := store.prune(seconds=seconds, statuses=[status]):
                found[status] += batch
        if not dry_run:
            store.forget_keys()
        return found
