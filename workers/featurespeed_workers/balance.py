"""Balanced learning rates: each block's part of the loss decay, and the rates that give it (Eq. 8, Thm 6.3).

A *unit* is what has one rate: a block, each of its tensors, or all blocks of a group (``granularity``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from featurespeed.contract import Granularity, JobRequest
from featurespeed_workers import formula
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.network import Block, Network

NOISE = 30.0
"""A gradient below so many ε of its dtype, beside that of the block's other tensors, is zero up to rounding."""
LARGEST_NOISE = 0.01
"""The same for low precision, where sums are more exact than ε says."""


@dataclass(frozen=True)
class Slope:
    """How the loss depends on one tensor: ⟨∇, u⟩ for the direction u at rate 1, and the rms of ∇ with its dtype's ε."""

    contribution: float
    gradient_rms: float
    epsilon: float

    @classmethod
    def mean(cls, slopes: Sequence[Slope]) -> Self:
        """The mean over batches."""
        return cls(
            statistics.fmean(s.contribution for s in slopes),
            statistics.fmean(s.gradient_rms for s in slopes),
            slopes[0].epsilon,
        )


Slopes = Mapping[str, Slope]
"""Of every parameter that trains, by name."""


@dataclass(frozen=True)
class Balance:
    """The weights of the blocks in the loss decay, in the chain's order, and which parameters share a rate.

    Block l has the part C_l = c_l / Σ_k c_k of the decay, over the blocks that train; within a block its tensors have
    equal parts under granularity ``tensor``; under ``group`` the blocks of a group have their parts together.
    """

    network: Network
    weights: tuple[float, ...]
    granularity: Granularity = "block"

    @classmethod
    def even(cls, network: Network, granularity: Granularity = "block") -> Self:
        """Eq. 8: all contributions equal."""
        return cls(network, (1.0,) * len(network.blocks), granularity)

    @classmethod
    def of(cls, network: Network, contributions: Mapping[str, float], granularity: Granularity = "block") -> Self:
        """Weights by group."""
        return cls(network, tuple(contributions[group] for group in groups(network)), granularity)

    @classmethod
    def requested(cls, request: JobRequest, network: Network) -> Self:
        """That of a request; kind ``measure`` has equal weights unless it names others."""
        weighted = request.scaling.contributions is not None or (request.kind, request.rule) == ("recommend", "fsc")
        granularity = request.scaling.granularity
        return cls.of(network, request.contributions, granularity) if weighted else cls.even(network, granularity)

    def rates(self, slopes: Slopes) -> dict[str, float]:
        """η by block name and, under granularity ``tensor``, by parameter name besides; 0 for a block without a share.

        There a block's own entry is the harmonic mean of its tensors' rates: the one rate that would give it the same
        contribution. A tensor whose gradient is zero up to rounding has that rate.
        Raises MeasurementError for the first unit that has a share and no rate that would give it, ValueError if every
        block that trains has weight 0.
        """
        shares = self._shares(slopes)
        if self.granularity == "group":
            return self._by_group(slopes, shares)
        found = {}
        for block, share in zip(self.network.blocks, shares, strict=True):
            names = self._speaking(block, slopes) if self.granularity == "tensor" else _trained(block, slopes)
            found[block.name] = _rate(f"block {block.name!r}", share, [slopes[name] for name in names])
            if self.granularity == "tensor" and share:
                found.update(dict.fromkeys(_trained(block, slopes), found[block.name]))
                for name in names:
                    found[name] = _rate(f"parameter {name!r}", share / len(names), [slopes[name]])
        return found

    def notes(self, slopes: Slopes) -> dict[str, list[str]]:
        """What a reader must know of the rates, by block: which are not the block's own doing."""
        weights = zip(self.network.blocks, self.weights, strict=True)
        notes = {block.name: ["its contribution weight is 0"] for block, weight in weights if weight == 0}
        if self.granularity == "tensor":
            for block, name in self._silent(slopes):
                notes.setdefault(block, []).append(f"{name}: its gradient is zero, it has the block's rate")
        return notes

    def _silent(self, slopes: Slopes) -> list[tuple[str, str]]:
        """Block and name of every tensor whose gradient is zero up to rounding while its block learns."""
        return [
            (block.name, name)
            for block in self.network.blocks
            for speaking in [self._speaking(block, slopes)]
            for name in _trained(block, slopes)
            if name not in speaking
        ]

    def _shares(self, slopes: Slopes) -> list[float]:
        weights = [
            weight if _trained(block, slopes) else 0.0
            for block, weight in zip(self.network.blocks, self.weights, strict=True)
        ]
        if not (total := math.fsum(weights)):
            raise ValueError("contributions: every block that trains has weight 0; one must be positive")
        return [weight / total for weight in weights]

    def _by_group(self, slopes: Slopes, shares: Sequence[float]) -> dict[str, float]:
        of_group: dict[str, list[int]] = {}
        for i, group in enumerate(groups(self.network)):
            if shares[i]:
                of_group.setdefault(group, []).append(i)
        found = {block.name: 0.0 for block in self.network.blocks}
        for group, members in of_group.items():
            blocks = [self.network.blocks[i] for i in members]
            what = f"block {blocks[0].name!r}" if len(blocks) == 1 else f"the {group} blocks"
            own = [slopes[name] for block in blocks for name in _trained(block, slopes)]
            rate = _rate(what, math.fsum(shares[i] for i in members), own)
            found.update({block.name: rate for block in blocks})
        return found

    def _speaking(self, block: Block, slopes: Slopes) -> list[str]:
        """The tensors of the block whose gradient is more than rounding."""
        names = _trained(block, slopes)
        largest = max((slopes[name].gradient_rms for name in names), default=0.0)
        return [n for n in names if slopes[n].gradient_rms > min(NOISE * slopes[n].epsilon, LARGEST_NOISE) * largest]


def groups(network: Network) -> list[str]:
    """The group of every block: the first is ``input``, the last ``output``, those between are ``hidden``."""
    return ["input", *["hidden"] * (len(network.blocks) - 2), "output"]


def rate_of(rates: Mapping[str, float], block: str, parameter: str) -> float:
    """A parameter's own rate if it has one, else its block's."""
    return rates[parameter] if parameter in rates else rates[block]


def _trained(block: Block, slopes: Slopes) -> list[str]:
    return [name for name in block.parameters if name in slopes]


def _rate(what: str, share: float, slopes: Sequence[Slope]) -> float:
    """The rate at which these tensors together contribute ``share``."""
    if share == 0:
        return 0.0
    unit = math.fsum(slope.contribution for slope in slopes)
    if not math.isfinite(unit):
        raise MeasurementError("not-finite", f"the gradient of {what} is not finite")
    if unit == 0:
        raise MeasurementError("zero-gradient", f"the gradient of {what} is zero: it cannot learn")
    if unit < 0:
        reason = "its update increases the loss (momentum or weight decay against the gradient)"
        raise MeasurementError("no-balance", f"{what} has no balanced learning rate: {reason}")
    return formula.balanced_rate(share, unit)
