"""Losses along short runs as curves of bounded length."""

from __future__ import annotations

import math
from collections.abc import Sequence

from featurespeed.contract import LossCurves
from featurespeed.contract.base import Model
from featurespeed.contract.evidence import Curve
from featurespeed_workers.listening import CellProgress, Listener, ignore

MOST_POINTS = 500
"""Entries of a curve: longer runs are averaged over windows of equally many steps."""


class SeedLosses(Model):
    """One seed's curves: an entry is the mean over ``every`` successive steps, ``None`` where a loss is not finite."""

    every: int
    steps: int
    recommended: Curve
    pytorch_default: Curve


class LossRecord:
    """Means of the losses of a run of ``steps`` steps over windows; tells how far the run is, a hundred times."""

    def __init__(self, steps: int, message: str, listener: Listener = ignore) -> None:
        self.steps = steps
        self.every = max(1, math.ceil(steps / MOST_POINTS))
        self._message, self._listener = message, listener
        self._means: list[float] = []
        self._seen = 0

    def __call__(self, step: int, loss: float) -> None:
        """Take the loss of the next step; ``step`` counts from 0 without gaps."""
        if step % self.every == 0:
            self._means.append(0.0)
        self._means[-1] += loss / self._size(step - step % self.every)  # a sum of losses could overflow
        self._seen = step + 1
        if step % max(1, self.steps // 100) == 0:
            self._listener(CellProgress(fraction=step / self.steps, message=f"{self._message}, step {step}"))

    def beside(self, pytorch_default: Curve) -> SeedLosses:
        """This run's curve, that of the recommendation, with the one to compare with."""
        return SeedLosses(every=self.every, steps=self.steps, recommended=self.curve(), pytorch_default=pytorch_default)

    def curve(self) -> Curve:
        """The mean of every window; ``None`` for those that the run did not complete."""
        begins = range(0, self.steps, self.every)
        complete = sum(self._seen >= begin + self._size(begin) for begin in begins)
        return (*self._means[:complete], *[None] * (len(begins) - complete))

    def _size(self, begin: int) -> int:
        """Steps of the window from ``begin`` on; the last one may be shorter."""
        return min(self.every, self.steps - begin)


def over_seeds(losses: Sequence[SeedLosses]) -> LossCurves:
    """The curves of all seeds, and their means."""
    recommended, default = [s.recommended for s in losses], [s.pytorch_default for s in losses]
    return LossCurves(
        every=losses[0].every,
        steps=tuple(range(0, losses[0].steps, losses[0].every)),
        recommended=_mean(recommended),
        pytorch_default=_mean(default),
        recommended_by_seed=tuple(recommended),
        pytorch_default_by_seed=tuple(default),
    )


def _mean(curves: Sequence[Curve]) -> Curve:
    """Means over seeds; ``None`` where a seed has none: a mean over those that are left would look better."""
    n = len(curves)
    columns = [[loss / n for loss in column if loss is not None] for column in zip(*curves, strict=True)]
    return tuple(math.fsum(column) if len(column) == n else None for column in columns)
