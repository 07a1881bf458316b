"""The outcome of a rule: parameters at their new scale, block learning rates, and what a reader must know."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from featurespeed.contract import Granularity


@dataclass(frozen=True)
class BlockScaling:
    """A scaling of every block for one seed.

    ``rates`` are the learning rates η_l by block name, the master learning rate δt left out; under ``granularity``
    ``tensor`` also by parameter name, and a parameter's own wins.
    ``relative_sensitivity`` is the τ that was reached, ``feature_step`` the κ behind ``master_lr``,
    ``contributions`` are the weights by group that were asked for (``None`` for a rule that knows none of them).
    """

    parameters: dict[str, Tensor]
    rates: dict[str, float]
    master_lr: float
    relative_sensitivity: float | None
    feature_step: float | None = None
    contributions: dict[str, float] | None = None
    granularity: Granularity | None = None
    notes: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    stds: dict[str, float] = field(default_factory=dict)
    """Std of the matrices, by block or parameter name, where it is known; else it is that of the parameters."""
    first_rates: dict[str, float] = field(default_factory=dict)
    """Learning rates of the first step by block name where they are not δt η_l times the schedule: of an output that
    starts at zero. They are what the optimizer is given, without δt or warm-up."""
    kept: bool = False
    """Whether the parameters are those of a checkpoint, whose scales stay."""
