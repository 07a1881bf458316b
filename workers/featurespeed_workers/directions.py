"""The optimizer's own update direction at its current state, without touching that state.

A step of rate η is ``w ← w − η · u``; here is u, for every optimizer as torch.optim defines it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from featurespeed.contract import Optimizer, Sgd

State = Mapping[str, Any]
"""What torch.optim keeps of a parameter: momentum_buffer, or step, exp_avg, exp_avg_sq; empty before a first step."""


@dataclass(frozen=True)
class UpdateRule:
    """Which direction an optimizer takes, its learning rate left out. ``gain`` multiplies the whole direction."""

    name: str
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    gain: float = 1.0

    @classmethod
    def from_contract(cls, optimizer: Optimizer) -> Self:
        """The rule of a specification's optimizer."""
        return cls(**optimizer.model_dump())

    @classmethod
    def from_group(cls, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Self:
        """The rule of one parameter group of a torch optimizer; raises ValueError for one that is not known."""
        kinds = ((torch.optim.SGD, "sgd"), (torch.optim.AdamW, "adamw"), (torch.optim.Adam, "adam"))  # AdamW is an Adam
        name = next((name for kind, name in kinds if _steps_as(optimizer, kind)), None)
        if name is None:
            raise ValueError(f"optimizer: {type(optimizer).__name__} is not one of SGD, Adam, AdamW")
        if group.get("decoupled_weight_decay"):
            name = "adamw"
        for option in ("amsgrad", "maximize"):
            if group.get(option):
                raise ValueError(f"optimizer: {option}=True is not supported")
        known = ("momentum", "dampening", "nesterov", "betas", "eps", "weight_decay")
        return cls(name=name, **{key: group[key] for key in known if key in group})

    def sustained(self) -> Self:
        """The rule whose first step is the step that this one settles to under a constant gradient.

        With momentum μ the steady step is 1/(1−μ) times the gradient (with dampening d, (1−d)/(1−μ)), with and without
        Nesterov; Adam's bias correction makes its first step that one already.
        """
        if self.name != "sgd" or self.momentum == 0:
            return self
        # Nesterov adds μ times the steady buffer to the gradient itself
        buffer = (1 - self.dampening) / (1 - self.momentum)
        gain = 1 + self.momentum * buffer if self.nesterov else buffer
        return replace(self, momentum=0.0, dampening=0.0, nesterov=False, gain=self.gain * gain)

    def direction(self, weight: Tensor, gradient: Tensor, state: State) -> Tensor:
        """u for one parameter: the shape of ``weight``; may be ``gradient`` itself, which is never changed."""
        if self.weight_decay and self.name != "adamw":
            gradient = gradient.add(weight, alpha=self.weight_decay)
        update = self._sgd(gradient, state) if self.name == "sgd" else self._adam(gradient, state)
        if self.weight_decay and self.name == "adamw":
            update = update.add_(weight, alpha=self.weight_decay)
        return update if self.gain == 1 else update * self.gain

    def _sgd(self, gradient: Tensor, state: State) -> Tensor:
        if self.momentum == 0:
            return gradient
        buffer = state.get("momentum_buffer")
        # torch starts the buffer undampened
        buffer = gradient if buffer is None else (buffer * self.momentum).add_(gradient, alpha=1 - self.dampening)
        return gradient.add(buffer, alpha=self.momentum) if self.nesterov else buffer

    def _adam(self, gradient: Tensor, state: State) -> Tensor:
        beta1, beta2 = self.betas
        if not state:  # bias correction cancels (1-β) on the first step
            denominator = gradient.abs().add_(self.eps)
            return torch.div(gradient, denominator, out=denominator)
        step = int(state["step"]) + 1
        first = torch.lerp(state["exp_avg"], gradient, 1 - beta1)
        second = (state["exp_avg_sq"] * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = second.div_(1 - beta2**step).sqrt_().add_(self.eps)
        return first.div_(1 - beta1**step).div_(denominator)


def _steps_as(optimizer: torch.optim.Optimizer, kind: type[torch.optim.Optimizer]) -> bool:
    """Whether it is of that kind, and no subclass with a step of its own (torch wraps the methods that it calls)."""
    return isinstance(optimizer, kind) and inspect.unwrap(type(optimizer).step) is inspect.unwrap(kind.step)


def make_optimizer(spec: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The torch optimizer of a specification over parameter groups that carry their own ``lr``."""
    options = spec.model_dump(exclude={"name"})
    if isinstance(spec, Sgd):
        return torch.optim.SGD(groups, lr=0.0, **options)
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=0.0, **options)
