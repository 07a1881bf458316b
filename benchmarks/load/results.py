"""One row of what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "RESULTS.md"


@dataclass(frozen=True)
class Row:
    """What, how much, how much is promised, and whether it falls short."""

    what: str
    measured: str
    bound: str
    over: bool

    @property
    def line(self) -> str:
        """The row of the table."""
        return f"| {self.what} | {self.measured} | {self.bound}{' **missed**' if self.over else ''} |"
