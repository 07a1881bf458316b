"""Quantities over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Self

from featurespeed.contract.base import Model


class Statistic(Model):
    """One quantity over seeds: mean, sample standard deviation (n-1), and the value of every seed in the seeds' order.

    A value is ``None`` where the quantity is undefined (the angle of a feature that does not move); mean and sd are
    taken over the defined ones, and ``None`` if there is none (sd 0 for a single value).
    """

    mean: float | None
    sd: float | None
    values: tuple[float | None, ...]

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Self:
        """The statistic of the given values."""
        known = [v for v in values if v is not None]
        mean = statistics.fmean(known) if known else None
        sd = (statistics.stdev(known) if len(known) > 1 else 0.0) if known else None
        return cls(mean=mean, sd=sd, values=tuple(values))


class GeometricStatistic(Model):
    """A positive quantity over seeds: geometric mean, geometric sd (a factor ≥ 1), and every seed's value."""

    mean: float
    factor_sd: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The statistic of the given values; all zero (a frozen block's learning rate) gives mean 0 and factor 1."""
        if not all(values):
            return cls(mean=0.0, factor_sd=1.0, values=tuple(values))
        logs = [math.log(v) for v in values]
        spread = statistics.stdev(logs) if len(logs) > 1 else 0.0
        return cls(mean=math.exp(statistics.fmean(logs)), factor_sd=math.exp(spread), values=tuple(values))
