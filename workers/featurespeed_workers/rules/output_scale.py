"""FL, step 2 of FSC (paper, Sec 4.2): the output scale at which the relative sensitivity τ meets its target (Eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from featurespeed.defaults import SENSITIVITY_TOLERANCE
from featurespeed_workers.balance import Slopes
from featurespeed_workers.errors import MeasurementError

MAX_ROUNDS = 24
LARGEST_STEP = math.log(64.0)
"""Most by which one round may change the logarithm of the output scale."""
FIRST_SCALE = 1 / 64
"""The search starts with an output near 0, where b_L does not depend on the scale and τ is inverse to it.

Under mse a scale at which f_L meets its targets has the smallest b_L, hence the largest τ: from beyond that scale the
search would find a second, useless solution."""


@dataclass(frozen=True)
class Trial:
    """One output scale and what was measured there: τ, what balanced rates are made of, and the loss."""

    scale: float
    relative_sensitivity: float
    slopes: Slopes
    loss: float


@dataclass(frozen=True)
class Found:
    """The trial nearest to the target, and why that is not within the tolerance (``None`` if it is)."""

    trial: Trial
    shortfall: str | None


def find_output_scale(
    try_scale: Callable[[float], Trial], target: float, tell: Callable[[int], None], *, first: float = FIRST_SCALE
) -> Found:
    """Search from below for the smallest scale with τ = ``target``; ``tell`` is given the number of each round.

    In log-log coordinates τ falls about linearly, so that extrapolation gets there in a few rounds; once two
    neighbouring trials enclose the target, interpolation and bisection take turns. Scales that cannot be measured
    bound the search. ``first`` is the scale to begin with, where one is known that is near the solution.
    Raises MeasurementError if none can be measured.
    """
    trials: list[Trial] = []
    scale, floor, ceiling, failure = first, 0.0, math.inf, None
    for round_ in range(1, MAX_ROUNDS + 1):
        tell(round_)
        try:
            trials = sorted([*trials, try_scale(scale)], key=lambda t: t.scale)
        except MeasurementError as error:
            if not trials and error.type != "no-balance":
                raise
            failure = error
            if not trials:  # weight decay outweighs the gradients of an output near 0
                scale *= 4
                continue
            if scale < trials[0].scale:
                floor = scale
            else:
                ceiling = scale
        else:
            if abs(_excess(nearest(trials, target), target)) <= math.log1p(SENSITIVITY_TOLERANCE):
                return Found(nearest(trials, target), None)
            if shortfall := _end(trials, target):
                return Found(nearest(trials, target), shortfall)
        scale = math.exp(_next(trials, target, bisect=round_ % 3 == 0))
        if scale >= ceiling:
            scale = math.sqrt(trials[-1].scale * ceiling)
        if scale <= floor:
            scale = math.sqrt(trials[0].scale * floor)
    if not trials:
        assert failure is not None
        raise failure
    reason = f"beyond, {failure.detail}" if failure else f"{len(trials)} scales were tried"
    return Found(nearest(trials, target), reason)


def rough_scale(try_scale: Callable[[float], Trial], target: float, tell: Callable[[int], None]) -> float:
    """Where to begin a search whose trials are dear, from one whose trials are cheap and nearly the same."""
    try:
        found = find_output_scale(try_scale, target, tell)
    except MeasurementError:
        return FIRST_SCALE
    return found.trial.scale if found.shortfall is None else FIRST_SCALE


def nearest(trials: Sequence[Trial], target: float) -> Trial:
    """The trial whose τ is nearest to the target, relatively."""
    return min(trials, key=lambda t: abs(_excess(t, target)))


def _excess(trial: Trial, target: float) -> float:
    return math.log(trial.relative_sensitivity / target)


def _slope(a: Trial, b: Trial) -> float:
    """d log τ / d log scale between two trials."""
    return math.log(b.relative_sensitivity / a.relative_sensitivity) / math.log(b.scale / a.scale)


def _end(trials: Sequence[Trial], target: float) -> str | None:
    """Why no further trial would help, if so."""
    best = trials.index(nearest(trials, target))
    if best > 0 and best == len(trials) - 1 and abs(_slope(*trials[-2:])) < 0.02:
        return "τ does not respond to larger ones, as with a norm after the output"
    minimum = 0 < best < len(trials) - 1 and all(_excess(t, target) > 0 for t in trials)
    if minimum and trials[best + 1].scale / trials[best - 1].scale < 1.2:
        return "τ is smallest there"
    return None


def _next(trials: Sequence[Trial], target: float, *, bisect: bool) -> float:
    """The logarithm of the scale to try next; ``trials`` by rising scale."""
    for a, b in pairwise(trials):
        if _excess(a, target) > 0 > _excess(b, target):
            return _between(a, b, target, bisect)
    if _excess(trials[0], target) < 0:
        return _beyond(trials[0], _slope(*trials[:2]) if len(trials) > 1 else -1.0, target)
    best = trials.index(nearest(trials, target))
    if best == len(trials) - 1:
        return _beyond(trials[-1], _slope(*trials[-2:]) if len(trials) > 1 else -1.0, target)
    # τ rises again beyond the best trial: its minimum is on one side or the other
    neighbours = [trials[i] for i in (best - 1, best + 1) if i >= 0]
    farthest = max(neighbours, key=lambda t: abs(math.log(t.scale / trials[best].scale)))
    return math.log(farthest.scale * trials[best].scale) / 2


def _between(a: Trial, b: Trial, target: float, bisect: bool) -> float:
    """Interpolated between two trials that enclose the target, or their geometric middle."""
    part = 0.5 if bisect else _excess(a, target) / (_excess(a, target) - _excess(b, target))
    return math.log(a.scale) + part * math.log(b.scale / a.scale)


def _beyond(trial: Trial, slope: float, target: float) -> float:
    """Extrapolated from the outermost trial, with a slope that is at least plausible."""
    step = -_excess(trial, target) / max(-4.0, min(-0.25, slope))
    return math.log(trial.scale) + max(-LARGEST_STEP, min(LARGEST_STEP, step))
