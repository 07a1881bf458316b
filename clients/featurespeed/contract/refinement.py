"""Refinement of a recommendation by short training probes: what is asked, and what was found."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from featurespeed.contract.base import Model
from featurespeed.defaults import REFINE_FACTORS, REFINE_STEPS

Factor = Annotated[float, Field(ge=1 / 8, le=8)]
SECOND_ROUND = 2
"""Factors of the second round."""
SMALLEST_RATIO = 1.01
"""Of a factor to the one before: nearer ones train alike, and leave no room for the second round's between them."""


class Refine(Model):
    """Train ``steps`` steps from the closed-form answer with κ times each of ``factors`` (rising).

    Then with two more: beyond the best one if that is the smallest or largest, else on both sides of it. ``seeds``: how
    many of the request's seeds do so, from the first; all if there are fewer.
    """

    steps: Annotated[int, Field(ge=5, le=10_000)] = REFINE_STEPS
    factors: Annotated[tuple[Factor, ...], Field(min_length=2, max_length=7, fail_fast=True)] = REFINE_FACTORS
    seeds: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def total_factors(self) -> int:
        """How many factors are tried in both rounds."""
        return len(self.factors) + SECOND_ROUND

    @model_validator(mode="after")
    def _factors_rise(self) -> Self:
        if any(b < SMALLEST_RATIO * a for a, b in pairwise(self.factors)):
            raise ValueError(f"factors: must rise, each by at least 1 % over the one before, not {list(self.factors)}")
        return self


class ProbeResult(Model):
    """What one factor gave. ``mean_log_loss``, ``late_log_loss`` (over the last fifth of the steps), ``steps`` (done)
    and ``diverged`` have one entry a seed.

    ``score`` is the mean over seeds of the two log-losses, half each; ``None`` if a seed diverged, as are its own.
    ``chosen``: the lowest score.
    """

    factor: float
    feature_step: float
    score: float | None
    mean_log_loss: tuple[float | None, ...]
    late_log_loss: tuple[float | None, ...]
    steps: tuple[int, ...]
    diverged: tuple[bool, ...]
    chosen: bool


class Refinement(Model):
    """How κ was refined: ``factor`` times ``asked_feature_step``, between the probed ones by interpolation.

    ``asked_feature_step`` is the closed form's κ: the one that was asked, unless the rule took less (mean over seeds).

    ``fallback`` says what was taken where the probes do not tell: the closed form (factor 1), the smallest factor,
    or a third of it where all diverged; a warning says why. ``total_steps`` is the cost: training steps of all probes.
    """

    factor: float
    asked_feature_step: float
    fallback: Literal["closed_form", "smallest_factor"] | None
    total_steps: int
    probes: tuple[ProbeResult, ...]
