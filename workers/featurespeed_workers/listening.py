"""What a computation tells while it runs."""

from __future__ import annotations

from collections.abc import Callable

from featurespeed.contract import MeasurementEvent
from featurespeed.contract.base import Model


class CellProgress(Model):
    """How far a cell is (0 to 1), and what it is doing."""

    fraction: float
    message: str


Listener = Callable[[CellProgress | MeasurementEvent], None]


def ignore(event: CellProgress | MeasurementEvent) -> None:
    """A listener that does nothing."""


def portion(listener: Listener, begin: float, end: float) -> Listener:
    """A listener for a part of the work: its progress from 0 to 1 is the whole's from ``begin`` to ``end``."""

    def tell(event: CellProgress | MeasurementEvent) -> None:
        if isinstance(event, CellProgress):
            event = CellProgress(fraction=begin + (end - begin) * event.fraction, message=event.message)
        listener(event)

    return tell
