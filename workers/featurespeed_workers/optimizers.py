"""The optimizers of a specification as torch optimizers, and the one that torch lacks: SignSgd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featurespeed.contract import Muon, Optimizer


class SignSgd(torch.optim.Optimizer):
    """SignSGD: ``w ← w − lr · (sign(∇) + weight_decay · w)``; with ``momentum`` μ it is Signum.

    Signum takes the sign of ``B ← μ B + ∇``. The buffer B starts as the first gradient, as that of torch.optim.SGD;
    the sign of 0 is 0. Weight decay is decoupled from the gradient. Raises ValueError for a negative argument and for
    μ ≥ 1.

    Source: Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems (ICML 2018), Algorithms 1 and 2;
    weight decay as in Bernstein et al., signSGD with Majority Vote (ICLR 2019), Algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: must be at least 0 and less than 1, got {momentum}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}: must be 0 or positive, got {value}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure``, if given, is called first to compute the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        assert parameter.grad is not None
        update = parameter.grad
        if group["momentum"]:
            state = self.state[parameter]
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(group["momentum"]).add_(update)
            else:
                state["momentum_buffer"] = update.clone()
            update = state["momentum_buffer"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(torch.sign(update), alpha=-group["lr"])


_KINDS: Mapping[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "signsgd": SignSgd,
    "muon": torch.optim.Muon,
}


def make_optimizers(spec: Optimizer, groups: Sequence[Mapping[str, Any]]) -> list[torch.optim.Optimizer]:
    """The torch optimizers of a specification, one for each name that the groups' ``optimizer`` has.

    A group also carries ``params``, and may carry ``lr`` (0 unless given) and more. ``optimizer`` is the contract's
    name of the one that steps the group: that of ``spec``, and with muon ``adamw`` besides.
    """
    names = dict.fromkeys(group["optimizer"] for group in groups)
    return [
        _KINDS[name]([dict(group) for group in groups if group["optimizer"] == name], lr=0.0, **_options(spec, name))  # type: ignore[call-arg]
        for name in names
    ]


def _options(spec: Optimizer, name: str) -> dict[str, Any]:
    settings = spec.adamw if isinstance(spec, Muon) and name == "adamw" else spec
    return settings.model_dump(exclude={"name", "adamw"})


def state_of(optimizers: Sequence[torch.optim.Optimizer], parameter: Tensor) -> Mapping[str, Any]:
    """What the one that steps ``parameter`` keeps of it; empty before its first step."""
    return next((o.state[parameter] for o in optimizers if parameter in o.state), {})


def learning_rates_of(optimizers: Sequence[torch.optim.Optimizer], module: nn.Module) -> dict[str, float]:
    """The learning rate that each parameter's group has now, by the parameter's name."""
    names = {p: name for name, p in module.named_parameters()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {names[p]: float(group["lr"]) for group in groups for p in group["params"] if p in names}
