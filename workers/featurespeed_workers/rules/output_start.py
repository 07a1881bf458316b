"""How the output block starts: drawn, with a scale that FL sets, or at zero (paper, App. B).

At zero the rate of the first step takes the place of the scale. b_L is that of f_L = 0 there, and no gradient reaches
the blocks before: the first step moves the output block alone, to W_L = −η u_L. What FL sets by the scale of W_L it
sets by η: the state after that step is the one in which τ must meet its target, and Eq. 8 gives the rates of all later
steps there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from featurespeed_workers.capture import capture
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.losses import first_of
from featurespeed_workers.measurement import Setting
from featurespeed_workers.network import Block, Network
from featurespeed_workers.passes import Batch, Parameters, call, cut_nodes, norm, same_randomness
from featurespeed_workers.rules.forward import IMMATERIAL, multiply

State = tuple[Parameters, Batch]
"""Where FL measures τ: parameters, and the batch to measure on."""


def drawn_like(parameter: Tensor) -> Tensor:
    """A matrix of the same shape from N(0, 1/fan_in), always the same: a start for one that is zero."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel())
    return noise.to(parameter).requires_grad_(parameter.requires_grad)


class Head(Protocol):
    """A start of the output block with one free number, the scale of the output."""

    def states(self, scale: float) -> list[State]:
        """The states whose mean τ must be on target."""
        ...

    def start(self, scale: float) -> dict[str, Tensor]:
        """The parameters to begin with."""
        ...

    def first_rates(self, scale: float) -> dict[str, float]:
        """Learning rates of the first step by block name, where they are not those of the others."""
        ...

    def notes(self, scale: float) -> dict[str, str]:
        """What a reader must know, by block name."""
        ...


@dataclass(frozen=True)
class DrawnOutput:
    """An output block with matrices that are drawn: ``scale`` multiplies them."""

    parameters: Parameters
    output: Block
    batches: Sequence[Batch]

    def states(self, scale: float) -> list[State]:
        """The start itself, on each batch."""
        scaled = self.start(scale)
        return [(scaled, batch) for batch in self.batches]

    def start(self, scale: float) -> dict[str, Tensor]:
        """The parameters with the output's matrices scaled."""
        scaled = dict(self.parameters)
        for scalable in self.output.scalables:
            multiply(scaled, scalable, scale)
        return scaled

    @torch.no_grad()
    def immaterial(self, network: Network) -> bool:
        """Whether the scale hardly shows in how the output differs between examples, as before a norm layer.

        FL must not look for one then: only the norm's ε would answer.
        """
        inputs, _ = self.batches[0]
        seen: list[torch.Tensor] = []
        with same_randomness(next(iter(self.parameters.values())).device) as rewind:
            for scale in (1.0, 1 / 8):
                rewind()
                with cut_nodes(network, lambda _, feature: seen.append(feature)):
                    call(network, self.start(scale), inputs)
        whole, small = (f - f.mean(dim=0) for f in (seen[len(network.blocks) - 1], seen[-1]))
        return norm(small - whole) < IMMATERIAL * norm(whole)

    def first_rates(self, scale: float) -> dict[str, float]:
        """None."""
        return {}

    def notes(self, scale: float) -> dict[str, str]:
        """None."""
        return {}


@dataclass(frozen=True)
class ZeroOutput:
    """A network whose output matrices are 0, and the optimizer's first direction on each batch."""

    parameters: dict[str, Tensor]
    setting: Setting
    batches: Sequence[Batch]
    directions: Sequence[Mapping[str, Tensor]]
    """u of the output block's parameters, a fresh optimizer's, for each batch."""
    unit: float
    """The rate at which the first step gives the output an rms of 1."""

    @classmethod
    def of(cls, setting: Setting, parameters: Parameters, batches: Sequence[Batch]) -> Self:
        """``parameters`` with output matrices 0; ``setting`` has the optimizer's rule as it is, not the sustained one.

        Raises MeasurementError if the loss does not depend on the output block there.
        """
        output = setting.network.blocks[-1]
        zero = dict(parameters)
        for name in [name for scalable in output.scalables for name in scalable.parameters]:
            zero[name] = torch.zeros_like(zero[name]).requires_grad_(zero[name].requires_grad)
        directions, sizes = [], []
        for batch in batches:
            gradients = capture(setting.network, zero, batch, setting.loss_function).gradients
            own = {n: gradients[n] for n in output.parameters if n in gradients}
            directions.append({n: setting.rule(n).direction(zero[n].detach(), g, {}) for n, g in own.items()})
            sizes.append(_output_change(setting, zero, directions[-1], batch))
        if not all(sizes):
            raise MeasurementError("zero-gradient", f"the gradient of block {output.name!r} is zero: it cannot learn")
        return cls(zero, setting, batches, directions, 1 / math.exp(sum(map(math.log, sizes)) / len(sizes)))

    def rate(self, scale: float) -> float:
        """The learning rate of the first step that gives the output an rms of ``scale``, on the batches' mean."""
        return scale * self.unit

    def start(self, scale: float) -> dict[str, Tensor]:
        """The parameters with the output's matrices at 0, whatever the scale after the first step."""
        return self.parameters

    def first_rates(self, scale: float) -> dict[str, float]:
        """The output block's learning rate in the first step."""
        return {self.setting.network.blocks[-1].name: self.rate(scale)}

    def states(self, scale: float) -> list[State]:
        """After a first step on each batch, the state and the batch that comes next."""
        following = [*self.batches[1:], self.batches[0]]
        return [
            (_stepped(self.parameters, u, self.rate(scale)), batch)
            for u, batch in zip(self.directions, following, strict=True)
        ]

    def notes(self, scale: float) -> dict[str, str]:
        """What the first step does to the loss of the batch that comes next: FL, not the loss, sets its size."""
        after = statistics.fmean(self._loss(state, batch) for state, batch in self.states(scale))
        before = statistics.fmean(self._loss(self.parameters, batch) for batch in self.batches)
        step = f"first step at {self.rate(scale):.4g}: next batch's loss {before:.3g} → {after:.3g}"
        return {self.setting.network.blocks[-1].name: f"starts at zero; {step}"}

    @torch.no_grad()
    def _loss(self, parameters: Parameters, batch: Batch) -> float:
        inputs, targets = batch
        return self.setting.loss_function(call(self.setting.network, parameters, inputs), targets).item()


def _stepped(parameters: Mapping[str, Tensor], directions: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    moved = {n: parameters[n].detach() - rate * u for n, u in directions.items()}
    return {**parameters, **{n: p.requires_grad_(parameters[n].requires_grad) for n, p in moved.items()}}


@torch.no_grad()
def _output_change(
    setting: Setting, parameters: Mapping[str, Tensor], directions: Mapping[str, Tensor], batch: Batch
) -> float:
    """Rms by which a step of rate 1 changes the output, which is linear in the output block's matrices and bias."""
    with same_randomness(next(iter(parameters.values())).device) as rewind:
        before = first_of(call(setting.network, parameters, batch[0]))
        rewind()
        after = first_of(call(setting.network, _stepped(parameters, directions, 1.0), batch[0]))
    return norm(after - before) / math.sqrt(after.numel())
