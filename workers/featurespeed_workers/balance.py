"""Balanced learning rates: each block's part of the loss decay, and the rates that give it (Eq. 8, Thm 6.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from featurespeed_workers import formula
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.network import Network


@dataclass(frozen=True)
class Balance:
    """The blocks' weights in the loss decay, in the chain's order: C_l = c_l / Σ_k c_k over the blocks that train."""

    names: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def even(cls, network: Network) -> Self:
        """Eq. 8: all contributions equal."""
        return cls(tuple(b.name for b in network.blocks), (1.0,) * len(network.blocks))

    @classmethod
    def of(cls, network: Network, contributions: Mapping[str, float]) -> Self:
        """Weights by group: the first block is ``input``, the last ``output``, those between are ``hidden``."""
        last = len(network.blocks) - 1
        groups = ["input" if i == 0 else "output" if i == last else "hidden" for i in range(last + 1)]
        return cls(tuple(b.name for b in network.blocks), tuple(contributions[group] for group in groups))

    def shares(self, trains: Sequence[bool]) -> list[float]:
        """C_l of every block; 0 where ``trains`` is false. Raises ValueError if no weight is left."""
        weights = [weight if on else 0.0 for weight, on in zip(self.weights, trains, strict=True)]
        if not (total := math.fsum(weights)):
            raise ValueError("contributions: every block that trains has weight 0; one must be positive")
        return [weight / total for weight in weights]

    def rates(self, trains: Sequence[bool], units: Sequence[float]) -> list[float]:
        """η_l of every block from ``units``, its ⟨∇_l L, u_l⟩; 0 for a block that has no share.

        Raises MeasurementError for the first block that has a share and no rate that would give it.
        """
        shares = self.shares(trains)
        for name, share, unit in zip(self.names, shares, units, strict=True):
            if share:
                _check(name, unit)
        return [formula.balanced_rate(c, unit) if c else 0.0 for c, unit in zip(shares, units, strict=True)]


def _check(block: str, unit: float) -> None:
    if not math.isfinite(unit):
        raise MeasurementError("not-finite", f"the gradient of block {block!r} is not finite")
    if unit == 0:
        raise MeasurementError("zero-gradient", f"the gradient of block {block!r} is zero: it cannot learn")
    if unit < 0:
        reason = "its update increases the loss (momentum or weight decay against the gradient)"
        raise MeasurementError("no-balance", f"block {block!r} has no balanced learning rate: {reason}")
