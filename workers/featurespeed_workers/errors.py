"""What can go wrong in a measurement, in words for the user."""

from __future__ import annotations


class MeasurementError(Exception):
    """A network that cannot be measured; ``type`` is stable, ``detail`` a sentence naming the first layer concerned."""

    def __init__(self, type: str, detail: str) -> None:
        super().__init__(type, detail)  # both as args, so that the error survives pickling
        self.type = type
        self.detail = detail

    def __str__(self) -> str:
        return self.detail
