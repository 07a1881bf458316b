"""What a figure is made of: curves over seeds, with the theory beside them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Curve:
    """One quantity along x. ``values`` are (points × seeds); ``theory`` is the limit of infinite width at every x."""

    label: str
    x: list[float]
    values: list[list[float]]
    theory: list[float] = field(default_factory=list)

    @property
    def mean(self) -> list[float]:
        """Mean over seeds."""
        return [statistics.fmean(v) for v in self.values]

    @property
    def sd(self) -> list[float]:
        """Standard deviation over seeds."""
        return [statistics.stdev(v) if len(v) > 1 else 0.0 for v in self.values]

    @property
    def median(self) -> list[float]:
        """Median over seeds."""
        return [statistics.median(v) for v in self.values]

    @property
    def quartiles(self) -> list[tuple[float, float]]:
        """First and third quartile over seeds."""
        cuts = [statistics.quantiles(v, n=4, method="inclusive") for v in self.values]
        return [(c[0], c[2]) for c in cuts]

    def exponent(self) -> float:
        """Slope of log median against log x."""
        return slope(self.x, self.median)

    def at(self, x: float) -> int:
        """Index of a point."""
        return self.x.index(x)


@dataclass(frozen=True)
class Figure:
    """One figure: what is on its axes, and its curves."""

    name: str
    title: str
    x: str
    y: str
    curves: list[Curve]


def slope(x: list[float], y: list[float]) -> float:
    """Least-squares slope of log y against log x."""
    fit = statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y])
    return fit.slope
