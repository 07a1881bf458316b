"""Progress for people, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from featurespeed.contract.job import MeasurementEvent, Progress
from featurespeed.events import Event, StatusEvent

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

OnEvent = Callable[[Event], None]


@contextmanager
def progress_on_terminal(on_event: OnEvent | None) -> Iterator[OnEvent | None]:
    """The given listener; without one, a progress bar if standard error is a terminal and rich is installed."""
    if on_event is not None or sys.stderr is None or not sys.stderr.isatty():
        yield on_event
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _BarListener(bar, bar.add_task("waiting", total=1.0))


class _BarListener:
    """Events as the movement of a bar."""

    def __init__(self, bar: Bar, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._bar.update(self._task, completed=event.fraction, description=described(event))
        elif isinstance(event, StatusEvent):
            self._bar.update(self._task, description=event.status)
        else:
            self._bar.update(self._task, description=measured(event))


class LineListener:
    """Events as lines on standard error, few enough for a log: one for every tenth done."""

    def __init__(self) -> None:
        self._tenths = -1

    def __call__(self, event: Event) -> None:
        """Print a line, if a tenth is full; the first once something is done, so that refusals stand alone."""
        if isinstance(event, Progress) and event.fraction > 0 and int(event.fraction * 10) > self._tenths:
            self._tenths = int(event.fraction * 10)
            print(f"{event.fraction:4.0%} {described(event)}", file=sys.stderr, flush=True)


def described(progress: Progress) -> str:
    """What is being done, and how many cells are done."""
    done = f"{progress.cells_done}/{progress.cells_total} done"
    return f"{done}, {progress.message}" if progress.message else done


def measured(event: MeasurementEvent) -> str:
    """One measurement in a few words."""
    return f"seed {event.seed}, step {event.step}: loss {event.loss:.4g}"
