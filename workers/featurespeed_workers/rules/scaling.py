"""The outcome of a rule: parameters at their new scale, block learning rates, and what a reader must know."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class BlockScaling:
    """A scaling of every block for one seed.

    ``rates`` are the block learning rates η_l by block name, the master learning rate δt left out;
    ``relative_sensitivity`` is the τ that was reached, ``contributions`` are the weights by group that were asked for
    (``None`` for a rule that knows neither).
    """

    parameters: dict[str, Tensor]
    rates: dict[str, float]
    master_lr: float
    relative_sensitivity: float | None
    contributions: dict[str, float] | None = None
    notes: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    stds: dict[str, float] = field(default_factory=dict)
    """Std of the matrices by block name where a closed form gives it; else it is that of the parameters."""
