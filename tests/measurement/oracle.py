"""A slow, obvious oracle: dense Jacobians built row by row, and update directions from torch's own optimizer steps."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Expected:
    speed: list[Tensor]
    backward: list[Tensor]
    contribution: list[float]


def real_update(model: nn.Module, optimizers: list[torch.optim.Optimizer], loss: Tensor) -> dict[str, Tensor]:
    """Δw of one real step of copies of the optimizers, by parameter name; the model and the optimizers stay."""
    twin = copy.deepcopy({"model": model, "optimizers": optimizers})  # one memo: the optimizers follow the copy
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for p, g in zip(twin["model"].parameters(), gradients, strict=True):
        p.grad = g
    for optimizer in twin["optimizers"]:
        optimizer.step()
    after = dict(twin["model"].named_parameters())
    return {n: (after[n] - p).detach() for n, p in model.named_parameters()}


def expected(chain: nn.Module, names: list[str], inputs: Tensor, targets: Tensor, loss_fn, velocity) -> Expected:
    """ḟ_v = Σ_k J_vk ẇ_k with dense Jacobians, b_v from the tail of the chain alone, C_l = −⟨∇_l, ẇ_l⟩."""
    features, x = [], inputs
    for name in names:
        x = getattr(chain, name)(x)
        features.append(x)
    parameters = dict(chain.named_parameters())
    speeds = []
    for f in features:
        rows = []
        for element in f.flatten():
            grads = torch.autograd.grad(element, list(parameters.values()), retain_graph=True, allow_unused=True)
            pairs = zip(parameters, grads, strict=True)
            rows.append(sum(float((g * velocity[n]).sum()) for n, g in pairs if g is not None))
        speeds.append(torch.tensor(rows, dtype=f.dtype).reshape(f.shape))
    backward = [_tail_gradient(chain, names[i + 1 :], f, targets, loss_fn) for i, f in enumerate(features)]
    gradients = dict(
        zip(parameters, torch.autograd.grad(loss_fn(features[-1], targets), list(parameters.values())), strict=True)
    )
    contributions = [
        -math.fsum(float((g * velocity[n]).sum()) for n, g in gradients.items() if n.startswith(f"{name}."))
        for name in names
    ]
    return Expected(speeds, backward, contributions)


def _tail_gradient(chain: nn.Module, rest: list[str], feature: Tensor, targets: Tensor, loss_fn) -> Tensor:
    leaf = feature.detach().requires_grad_()
    x = leaf
    for name in rest:
        x = getattr(chain, name)(x)
    return torch.autograd.grad(loss_fn(x, targets), leaf)[0]
