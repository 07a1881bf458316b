"""The pieces that families share. Features are f: (batch, width), or (batch, positions, width) in a transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurespeed.contract.architecture import Activation, Norm
from featurespeed_workers.network import Block, Network, Scalable


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": _identity,
}


def make_norm(norm: Norm, width: int, *, bias: bool) -> nn.Module:
    """A normalisation over the last axis with gains; a layer norm has shifts too if ``bias``."""
    if norm == "layernorm":
        return nn.LayerNorm(width, bias=bias)
    if norm == "rmsnorm":
        return nn.RMSNorm(width)
    return nn.Identity()


def combined(a: float, f: Tensor, b: float, g: Tensor) -> Tensor:
    """``a f + b g`` for two tensors of one shape.

    Written as sums with a factor: for a product with a constant, forward-mode differentiation (torch 2.13) falls back
    to Python, which costs 0.2 ms a call and, once, the import of the compiler (0.8 s).
    """
    scaled = f if a == 1 else torch.sub(f, f, alpha=1 - a)
    return torch.add(scaled, g, alpha=b)


class Chain(nn.Module):
    """Named blocks applied one after the other; each block's output is a cut node."""

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last block."""
        for block in self.children():
            x = block(x)
        return x


def chain_network(blocks: Mapping[str, nn.Module], scalables: Callable[[str], tuple[Scalable, ...]]) -> Network:
    """The network of a chain: every block owns the parameters of its module; ``scalables`` gives those of a block."""
    module = Chain(blocks)
    return Network(
        module,
        tuple(
            Block(name, name, tuple(f"{name}.{p}" for p, _ in block.named_parameters()), scalables(name))
            for name, block in blocks.items()
        ),
        base_stds(module),
    )


POSITION_STD = 0.1
"""Std of learned positions before the joint rescaling, with token embeddings at 1: positions tell tokens apart from the
first step on, yet take 1 % of the mean square, so that the stream starts out saying which token it is (GPT-2 keeps
the same order, 0.01 against 0.02)."""


def base_stds(module: nn.Module) -> dict[str, float]:
    """Std at the start of rule ``fsc``, by parameter name: 1/√fan_in of matrices, 1 of token embeddings."""
    stds = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(part, nn.Linear):
            stds[f"{prefix}weight"] = 1 / math.sqrt(part.in_features)
        elif isinstance(part, nn.Conv2d):
            stds[f"{prefix}weight"] = 1 / math.sqrt(part.weight[0].numel())
        elif isinstance(part, nn.Embedding):
            stds[f"{prefix}weight"] = POSITION_STD if isinstance(part, Position) else 1.0
        if isinstance(getattr(part, "position", None), nn.Parameter):
            stds[f"{prefix}position"] = POSITION_STD
    return stds


class Position(nn.Embedding):
    """``f`` plus a learned vector of each position."""

    def forward(self, f: Tensor) -> Tensor:
        """(batch, positions, width) → the same; fewer positions than there are vectors will do."""
        return f + self.weight[: f.shape[1]]


class PreLinear(nn.Linear):
    """``W φ(norm(f))``. A linear layer itself, so that its matrix is named ``weight``."""

    def __init__(self, inputs: int, outputs: int, *, activation: Activation, norm: Norm, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.norm = make_norm(norm, inputs, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, f: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs)."""
        return super().forward(self.activation(self.norm(f)))


class PostNormLinear(nn.Linear):
    """``norm(W φ(f))``. A linear layer itself, so that its matrix is named ``weight``."""

    def __init__(self, inputs: int, outputs: int, *, activation: Activation, norm: Norm, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.norm = make_norm(norm, outputs, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, f: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs)."""
        out: Tensor = self.norm(super().forward(self.activation(f)))
        return out
