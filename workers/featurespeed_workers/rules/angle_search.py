"""Search for the branch scale β at which a rising curve θ(β) meets a target angle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from featurespeed_workers.errors import MeasurementError

TOLERANCE = 0.02
"""An angle this near to its target, in radians, is accepted if no better one is found."""
GOAL = 0.008
"""The search stops here: rounding, and a mean over other batches, must stay within the tolerance."""
MAX_ROUNDS = 20
LARGEST_STEP = math.log(8.0)
"""Most by which one round may change log β beyond what was tried."""
NARROW = 1.02
"""Two scales of this ratio are the same end of the range."""


@dataclass(frozen=True)
class Trial:
    """A branch scale and the output angle that was measured there, in radians."""

    beta: float
    angle: float

    @property
    def steepness(self) -> float:
        """log tan θ: of slope 1 in log β while β is small."""
        return math.log(math.tan(min(max(self.angle, 1e-6), math.pi / 2 - 1e-6)))


class Unreachable(Exception):
    """The target is outside of the angles between the two ends of the range of β."""

    def __init__(self, low: Trial, high: Trial) -> None:
        super().__init__(low, high)
        self.low = low
        self.high = high


@dataclass
class _Range:
    """What is known of the curve between ``low`` and ``high``: trials by rising β, and where none can be made."""

    target: float
    low: float
    high: float
    trials: list[Trial] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)

    def nearest(self) -> Trial:
        return min(self.trials, key=lambda t: abs(t.angle - self.target))

    def next(self, *, bisect: bool) -> float | None:
        """β to try next; ``None`` where an end is reached on the wrong side of the target."""
        aim = Trial(1.0, self.target).steepness
        a = max((t for t in self.trials if t.angle <= self.target), key=lambda t: t.beta, default=None)
        b = min((t for t in self.trials if t.angle > self.target), key=lambda t: t.beta, default=None)
        if a is not None and b is not None:
            part = 0.5 if bisect else (aim - a.steepness) / (b.steepness - a.steepness)
            return float(a.beta * (b.beta / a.beta) ** min(max(part, 0.02), 0.98))
        only = a or b
        assert only is not None
        step = min(max(abs(aim - only.steepness) * 1.2, 0.05), LARGEST_STEP)  # a little too far: then it is enclosed
        return self._beyond(only.beta, self.high if only is a else self.low, step)

    def _beyond(self, beta: float, end: float, step: float) -> float | None:
        """``beta`` moved towards ``end`` by ``step`` in logarithm, but half way to where nothing can be measured."""
        direction = math.copysign(1.0, end - beta)
        wall = self.wall(beta, direction)
        nearest_end = min(abs(math.log(x / beta)) for x in (end, wall or end))
        if nearest_end < math.log(NARROW):
            return None
        if wall is not None and step >= abs(math.log(wall / beta)):
            return math.sqrt(beta * wall)
        return end if step >= nearest_end else beta * math.exp(direction * step)

    def wall(self, beta: float, direction: float) -> float | None:
        """The nearest scale on that side of ``beta`` that could not be measured."""
        beyond = [x for x in self.walls if (x - beta) * direction > 0]
        return min(beyond, key=lambda x: abs(x - beta), default=None)


def find_beta(angle_at: Callable[[float], float], target: float, *, smallest: float, first: float) -> Trial:
    """β in [``smallest``, 1], of four digits, where the rising curve ``angle_at`` is ``target`` to ± 0.02 rad.

    Begins at ``first``; extrapolates in log tan θ against log β until two trials enclose the target, then interpolates
    and bisects. Scales that cannot be measured bound the range. Raises Unreachable if the whole range is on one side of
    the target, MeasurementError if no scale can be measured.
    """
    known, beta = _Range(target, smallest, 1.0), min(max(first, smallest), 1.0)
    for round_ in range(MAX_ROUNDS):
        beta = _rounded(beta)
        try:
            known.trials = sorted([*known.trials, Trial(beta, angle_at(beta))], key=lambda t: t.beta)
        except MeasurementError:
            known.walls.append(beta)
            if not known.trials:
                if beta <= smallest:
                    raise
                beta = max(beta / 4, smallest)  # features of a net whose shortcut is 1 grow with β
                continue
        if abs(known.nearest().angle - target) <= GOAL:
            return known.nearest()
        proposed = known.next(bisect=round_ > 3 and round_ % 2 == 0)
        if proposed is None or any(t.beta == _rounded(proposed) for t in known.trials):
            break
        beta = proposed
    if abs(known.nearest().angle - target) <= TOLERANCE:
        return known.nearest()
    raise Unreachable(*_ends(known, angle_at))


def _ends(known: _Range, angle_at: Callable[[float], float]) -> tuple[Trial, Trial]:
    """The trials at both ends of the range, measured where they are not known."""
    ends = []
    for end, trial, direction in ((known.low, known.trials[0], -1.0), (known.high, known.trials[-1], 1.0)):
        reached = abs(math.log(end / trial.beta)) < math.log(NARROW) or known.wall(trial.beta, direction) is not None
        try:
            ends.append(trial if reached else Trial(end, angle_at(end)))
        except MeasurementError:
            ends.append(trial)
    return ends[0], ends[1]


def _rounded(beta: float) -> float:
    """Four digits: a number that a person can copy, and that small differences in rounding do not change."""
    return float(f"{beta:.4g}")
