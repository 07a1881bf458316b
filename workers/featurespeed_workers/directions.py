"""The optimizer's own update direction at its current state, without touching that state.

A step of rate η is ``w ← w − η · u``; here is u, for every optimizer as torch.optim defines it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim._muon import muon  # its step as a function; torch exports the class alone

from featurespeed.contract import Muon, Optimizer, OptimizerName
from featurespeed_workers.network import Network
from featurespeed_workers.optimizers import SignSgd
from featurespeed_workers.passes import as_real, chunks
from featurespeed_workers.sharded import is_sharded

State = Mapping[str, Any]
"""What torch.optim keeps of a parameter: momentum_buffer, or step, exp_avg, exp_avg_sq; empty before a first step."""

_KINDS: tuple[tuple[type[torch.optim.Optimizer], OptimizerName], ...] = (
    (torch.optim.SGD, "sgd"),
    (torch.optim.AdamW, "adamw"),
    (torch.optim.Adam, "adam"),  # AdamW is an Adam too
    (torch.optim.Muon, "muon"),
    (SignSgd, "signsgd"),
)
_DECOUPLED = ("adamw", "signsgd", "muon")
"""Optimizers whose weight decay is no part of the gradient that they see."""


@dataclass(frozen=True)
class UpdateRule:
    """Which direction an optimizer takes, its learning rate left out. ``gain`` multiplies the whole direction."""

    name: OptimizerName
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    ns_coefficients: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ns_steps: int = 0
    adjust_lr_fn: str | None = None
    gain: float = 1.0

    @classmethod
    def from_contract(cls, optimizer: Optimizer) -> Self:
        """The rule of a specification's optimizer; of ``muon`` the one for hidden matrices (see :func:`rules_of`)."""
        return cls(**optimizer.model_dump(exclude={"adamw"}))

    @classmethod
    def from_group(cls, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Self:
        """The rule of one parameter group of a torch optimizer; raises ValueError for one that is not known."""
        name = next((name for kind, name in _KINDS if _steps_as(optimizer, kind)), None)
        if name is None:
            known = ", ".join(kind.__name__ for kind, _ in _KINDS)
            raise ValueError(f"optimizer: {type(optimizer).__name__} is not one of {known}")
        if group.get("decoupled_weight_decay"):
            name = "adamw"
        for option in ("amsgrad", "maximize"):
            if group.get(option):
                raise ValueError(f"optimizer: {option}=True is not supported")
        options = {field.name for field in fields(cls)} - {"name", "gain"}
        return cls(name=name, **{key: group[key] for key in options if key in group})

    @property
    def keeps(self) -> tuple[str, ...]:
        """What torch.optim keeps of a parameter under this rule, from its first step on."""
        if self.name in ("adam", "adamw"):
            return ("step", "exp_avg", "exp_avg_sq")
        return ("momentum_buffer",) if self.momentum or self.name == "muon" else ()

    def sustained(self) -> Self:
        """The rule whose first step is the step that this one settles to under a constant gradient.

        With momentum μ the steady step is 1/(1−μ) times the gradient (with dampening d, (1−d)/(1−μ)), with and without
        Nesterov; Adam's bias correction makes its first step that one already. The sign of a momentum buffer, and its
        orthogonalisation by Muon, are at every step those of the gradient itself: no momentum changes their size.
        """
        if self.momentum == 0:
            return self
        if self.name != "sgd":
            return replace(self, momentum=0.0)
        # Nesterov adds μ times the steady buffer to the gradient itself
        buffer = (1 - self.dampening) / (1 - self.momentum)
        gain = 1 + self.momentum * buffer if self.nesterov else buffer
        return replace(self, momentum=0.0, dampening=0.0, nesterov=False, gain=self.gain * gain)

    def direction(self, weight: Tensor, gradient: Tensor, state: State) -> Tensor:
        """u for one parameter: the shape of ``weight``; may be ``gradient`` itself, which is never changed."""
        if gradient.is_complex() and self.name != "muon":  # torch.optim steps pairs of real numbers
            parts = {key: as_real(value) if isinstance(value, Tensor) else value for key, value in state.items()}
            return torch.view_as_complex(self.direction(as_real(weight), as_real(gradient), parts))
        if self.weight_decay and self.name not in _DECOUPLED:
            gradient = gradient.add(weight, alpha=self.weight_decay)
        update = self._undecayed(gradient, state)
        if self.weight_decay and self.name in _DECOUPLED:
            update = update.add_(weight, alpha=self.weight_decay)
        return update if self.gain == 1 else update * self.gain

    def starts_in_place(self, gradient: Tensor, state: State) -> bool:
        """Whether :meth:`start_in_place` gives this rule's direction at this state."""
        plain = not (self.weight_decay or state) and self.gain == 1 and gradient.dtype in (torch.float32, torch.float64)
        return self.name in ("adam", "adamw") and plain and not is_sharded(gradient) and gradient.is_contiguous()

    def start_in_place(self, gradient: Tensor) -> tuple[float, float]:
        """Turn a gradient g into Adam's first direction u = g/(|g| + ε) in its own memory; (⟨g, u⟩, ‖u‖_2).

        Piece by piece, so that each comes from memory once.
        """
        products, squares = [], []
        for g in chunks(gradient):
            u = g / g.abs().add_(self.eps)
            products.append(float(torch.dot(g, u)))
            squares.append(float(torch.dot(u, u)))
            g.copy_(u)
        return math.fsum(products), math.sqrt(math.fsum(squares))

    def _undecayed(self, gradient: Tensor, state: State) -> Tensor:
        if self.name == "sgd":
            return self._sgd(gradient, state)
        if self.name == "signsgd":
            return self._sgd(gradient, state).sign()
        return self._muon(gradient, state) if self.name == "muon" else self._adam(gradient, state)

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

    def _muon(self, gradient: Tensor, state: State) -> Tensor:
        """By torch's own function: what a step of rate 1 makes of zero weights, its sign turned."""
        buffer, moved = state.get("momentum_buffer"), torch.zeros_like(gradient)
        muon(
            [moved],
            [gradient],
            [torch.zeros_like(gradient) if buffer is None else buffer.clone()],  # is written to
            lr=1.0,
            weight_decay=0.0,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_coefficients=self.ns_coefficients,
            ns_steps=self.ns_steps,
            eps=self.eps,
            adjust_lr_fn=self.adjust_lr_fn,
            has_complex=False,
        )
        return moved.neg_()


def rules_of_groups(optimizers: Sequence[torch.optim.Optimizer], module: nn.Module) -> dict[str, UpdateRule]:
    """The rule of each parameter that torch optimizers step, by name; their learning rates are left out.

    Raises ValueError for a parameter in two groups, and for one that trains and is in none.
    """
    names = {p: name for name, p in module.named_parameters()}
    rules: dict[str, UpdateRule] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rule = UpdateRule.from_group(optimizer, group)
            own = [names[p] for p in group["params"] if p in names]
            if twice := [name for name in own if name in rules]:
                raise ValueError(f"optimizer: parameter {twice[0]!r} is in two groups")
            rules.update(dict.fromkeys(own, rule))
    missing = [name for p, name in names.items() if p.requires_grad and name not in rules]
    if missing:
        raise ValueError(f"optimizer: parameter {missing[0]!r} is in none of its groups; freeze it or add it")
    return rules


def rules_of(optimizer: Optimizer, network: Network) -> Callable[[str], UpdateRule]:
    """The rule of each parameter of a network, by name, under a specification's optimizer.

    It is one for all but under ``muon``: there, parameters that are no matrices of hidden blocks go by AdamW.
    """
    rule = UpdateRule.from_contract(optimizer)
    if not isinstance(optimizer, Muon):
        return lambda name: rule
    rest = UpdateRule(name="adamw", **optimizer.adamw.model_dump())
    matrices = hidden_matrices(network)
    return lambda name: rule if name in matrices else rest


def hidden_matrices(network: Network) -> frozenset[str]:
    """Names of the 2-D parameters of all blocks but the first and the last, embeddings left out: what Muon is for."""
    modules = network.module.named_modules()
    embeddings = {id(m.weight) for _, m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    parameters = dict(network.module.named_parameters())
    hidden = [name for block in network.blocks[1:-1] for name in block.parameters]
    return frozenset(n for n in hidden if parameters[n].ndim == 2 and id(parameters[n]) not in embeddings)


def _steps_as(optimizer: torch.optim.Optimizer, kind: type[torch.optim.Optimizer]) -> bool:
    """Whether it is of that kind, and no subclass with a step of its own (torch wraps the methods that it calls)."""
    return isinstance(optimizer, kind) and inspect.unwrap(type(optimizer).step) is inspect.unwrap(kind.step)
