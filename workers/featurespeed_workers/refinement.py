"""Refinement of κ by short training probes: which candidates are tried, what a probe's losses say, which one is taken.

Pure functions on numbers; :mod:`featurespeed_workers.probes` does the training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from featurespeed.contract import ProbeResult, Refine, Refinement
from featurespeed.contract.base import Model

LOSS_FLOOR = 1e-4
"""A loss below counts as this: near 0, logarithms exaggerate, and a difference there is none that anybody needs."""

DIVERGED = 100.0
"""A probe whose loss is above so many times its first one (at least the floor) has diverged. What overshoots less, or
has a small first loss by the chance of its batch, is judged by its mean log-loss."""


MARGIN = 3.0
"""The factor that is taken is so many times smaller than one that diverged: a training is longer than a probe."""


class Candidate(Model):
    """What a probe tries: the closed-form answer with κ times ``factor``."""

    factor: float


class Probe(Model):
    """One run of ``steps`` steps under one seed. ``first`` and ``last`` are the losses of one batch, before and after.

    ``late_log_loss`` is the mean log-loss of the last fifth of the steps. ``first`` is ``None`` if it was not finite;
    ``last`` and both log-losses are for a probe that has diverged.
    """

    candidate: Candidate
    seed: int
    steps: int
    first: float | None
    last: float | None
    mean_log_loss: float | None
    late_log_loss: float | None

    @property
    def diverged(self) -> bool:
        """Whether it was stopped early."""
        return self.mean_log_loss is None


@dataclass(frozen=True)
class Choice:
    """The factor on κ for the whole report; ``best`` is the probed candidate with the lowest score."""

    factor: float
    best: Candidate | None = None
    fallback: Literal["closed_form", "smallest_factor"] | None = None
    warning: str | None = None


def candidates(refine: Refine) -> tuple[Candidate, ...]:
    """What is tried first, by rising factor."""
    return tuple(Candidate(factor=factor) for factor in refine.factors)


def further(refine: Refine, probes: Sequence[Probe]) -> tuple[Candidate, Candidate]:
    """What is tried next, from the first round's probes: two factors about the best one, or two beyond an end.

    Below the smallest, too, if all have diverged or no loss falls.
    """
    factors, tried = refine.factors, candidates(refine)
    choice = choose(tried, probes)
    best = factors.index(choice.best.factor if choice.best else factors[0])
    if choice.fallback == "closed_form":
        best = min(range(len(factors)), key=lambda i: abs(math.log(factors[i])))
    if best == 0:
        ratio = factors[0] / factors[1]
    elif best == len(factors) - 1:
        ratio = factors[-1] / factors[-2]
    else:
        below, above = (math.sqrt(factors[best] * other) for other in (factors[best - 1], factors[best + 1]))
        return Candidate(factor=below), Candidate(factor=above)
    return Candidate(factor=factors[best] * ratio), Candidate(factor=factors[best] * ratio**2)


def in_order(tried: Iterable[Candidate]) -> list[Candidate]:
    """By rising factor."""
    return sorted(tried, key=lambda candidate: candidate.factor)


def has_diverged(loss: float, first: float) -> bool:
    """Whether a run with this loss, after a first one, is to be stopped."""
    return not loss <= DIVERGED * max(first, LOSS_FLOOR)  # NaN too


def result(candidate: Candidate, seed: int, losses: Sequence[float], *, diverged: bool) -> Probe:
    """What the losses of a probe say, each before its step. The last step has the first step's batch."""
    logs = [math.log(max(loss, LOSS_FLOOR)) for loss in losses]
    return Probe(
        candidate=candidate,
        seed=seed,
        steps=len(losses),
        first=losses[0] if losses else None,
        last=None if diverged else losses[-1],
        mean_log_loss=None if diverged else statistics.fmean(logs),
        late_log_loss=None if diverged else statistics.fmean(logs[-math.ceil(len(logs) / 5) :]),
    )


def score(probes: Sequence[Probe]) -> float | None:
    """Mean over seeds of a candidate's log-loss over the probe and over its last fifth, half each; to be low.

    ``None`` if any seed diverged. The whole probe alone is for rates that are fast at first, its end alone is noisy
    (docs/quality.md).
    """
    known = [
        (p.mean_log_loss + p.late_log_loss) / 2
        for p in probes
        if p.mean_log_loss is not None and p.late_log_loss is not None
    ]
    return statistics.fmean(known) if len(known) == len(probes) else None


def choose(tried: Sequence[Candidate], probes: Sequence[Probe]) -> Choice:
    """One factor for all seeds: the lowest score, refined by a parabola; a fallback where the probes do not tell.

    ``tried`` is by rising factor.
    """
    if fallback := _fallback(tried, probes):
        return fallback
    scores = {c: s for c in tried if (s := score(_of(c, probes))) is not None}
    best = min(scores, key=lambda c: (scores[c], abs(math.log(c.factor))))
    failed = [c.factor for c in tried if c not in scores]
    highest = min((factor for factor in failed if factor > best.factor), default=math.inf) / MARGIN
    i = tried.index(best)
    around = [c for c in tried[max(0, i - 1) : i + 2] if c in scores]
    if len(around) < 3:
        return Choice(min(best.factor, highest), best)
    points = [(math.log(c.factor), scores[c]) for c in around]
    return Choice(min(math.exp(lowest_point(*points)), highest), best)


def _of(candidate: Candidate, probes: Sequence[Probe]) -> list[Probe]:
    return [probe for probe in probes if probe.candidate == candidate]


def _fallback(tried: Sequence[Candidate], probes: Sequence[Probe]) -> Choice | None:
    """What to take where no choice between the candidates is possible, and why."""
    smallest = min(c.factor for c in tried)
    kept = [p for c in tried if score(_of(c, probes)) is not None for p in _of(c, probes)]
    if all(p.first is not None and p.first <= LOSS_FLOOR for p in probes):
        return _closed_form(f"the loss is at its floor ({LOSS_FLOOR:g}) from the start")
    if not kept:
        return _smallest(smallest / MARGIN, f"every probe diverged, the smallest factor {smallest:g} too")
    if all(p.last == p.first for p in kept):
        return _closed_form("the loss changes in no probe, as with gradients that are zero")
    if all(p.last is not None and p.first is not None and p.last >= p.first for p in kept):
        return _smallest(smallest, "the loss rises in every probe")
    return None


def _closed_form(why: str) -> Choice:
    return Choice(1.0, None, "closed_form", f"refine: {why}; the feature step is the closed form's, not refined")


def _smallest(factor: float, why: str) -> Choice:
    text = f"refine: {why}; {factor:.3g} is taken: try smaller factors, or more steps"
    return Choice(factor, None, "smallest_factor", text)


def lowest_point(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """x of the lowest point of the parabola through three (x, y), by rising x, of which b is lowest; within a and c."""
    left, right = (b[1] - a[1]) / (b[0] - a[0]), (c[1] - b[1]) / (c[0] - b[0])
    curvature = (right - left) / (c[0] - a[0])
    if curvature <= 0:
        return b[0]
    slope_at_b = (left * (c[0] - b[0]) + right * (b[0] - a[0])) / (c[0] - a[0])
    return min(max(b[0] - slope_at_b / (2 * curvature), a[0]), c[0])


def refinement(tried: Sequence[Candidate], probes: Sequence[Probe], choice: Choice, feature_step: float) -> Refinement:
    """The part of the report; ``feature_step`` is the closed form's κ, ``probes`` of one candidate in seeds' order."""
    return Refinement(
        factor=choice.factor,
        asked_feature_step=feature_step,
        fallback=choice.fallback,
        total_steps=sum(probe.steps for probe in probes),
        probes=tuple(
            ProbeResult(
                factor=candidate.factor,
                feature_step=feature_step * candidate.factor,
                score=score(own),
                mean_log_loss=tuple(probe.mean_log_loss for probe in own),
                late_log_loss=tuple(probe.late_log_loss for probe in own),
                steps=tuple(probe.steps for probe in own),
                diverged=tuple(probe.diverged for probe in own),
                chosen=candidate == choice.best,
            )
            for candidate in tried
            for own in [_of(candidate, probes)]
        ),
    )
