"""The pieces that families share. Features are f: (batch, width), or (batch, positions, width) in a transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurespeed.contract.architecture import Activation, Norm


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
