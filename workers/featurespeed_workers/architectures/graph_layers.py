"""The modules of family ``graph``, one a kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featurespeed.contract.architecture import graph as kinds
from featurespeed.contract.architecture.chain import Activation as Function
from featurespeed.contract.architecture.graph.layer import Node, Shape
from featurespeed_workers.architectures.convnet import make_image_norm
from featurespeed_workers.architectures.layers import ACTIVATIONS, Position, combined, make_norm
from featurespeed_workers.architectures.transformer import Attention


class Activation(nn.Module):
    """A nonlinearity by name."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = ACTIVATIONS[function]

    def forward(self, f: Tensor) -> Tensor:
        """Any shape → the same."""
        return self.function(f)


class Everywhere(nn.Module):
    """Average or maximum over all positions, or all pixels."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.reduce: Callable[..., Tensor] = torch.mean if function == "average" else torch.amax

    def forward(self, f: Tensor) -> Tensor:
        """(batch, positions, width) → (batch, width); (batch, channels, height, width) → (batch, channels)."""
        return self.reduce(f, dim=1 if f.ndim == 3 else (2, 3))


class Pixels(nn.Module):
    """The pixels of an image as positions."""

    def forward(self, f: Tensor) -> Tensor:
        """(batch, channels, height, width) → (batch, pixels, channels)."""
        return f.flatten(2).transpose(1, 2)


class Residual(nn.Module):
    """``shortcut · f + scale · branch``."""

    def __init__(self, shortcut: float, scale: float) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.scale = scale

    def forward(self, f: Tensor, branch: Tensor) -> Tensor:
        """Two of one shape → the same."""
        return combined(self.shortcut, f, self.scale, branch)


class Concat(nn.Module):
    """Several features as one."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *features: Tensor) -> Tensor:
        """Shapes that differ in one axis → that of all, one after the other."""
        return torch.cat(features, dim=self.axis)


def _conv(layer: kinds.Conv, shape: Shape) -> nn.Module:
    sizes = (shape[0], layer.channels, layer.kernel, layer.stride, layer.border)
    return nn.Conv2d(*sizes, groups=layer.groups, bias=layer.bias)


def _norm(layer: kinds.Norm, shape: Shape) -> nn.Module:
    if layer.norm == "layernorm" or layer.norm == "rmsnorm":
        return make_norm(layer.norm, shape[-1], bias=bool(layer.bias))
    if len(shape) == 1:
        return nn.BatchNorm1d(shape[0])
    return make_image_norm(layer.norm, shape[0], layer.groups)


def _attention(layer: kinds.Attention, shape: Shape) -> nn.Module:
    return Attention(shape[1], layer.heads, causal=layer.causal, norm="none", bias=layer.bias)


def _pool(layer: kinds.Pool, shape: Shape) -> nn.Module:
    if layer.kernel is None:
        return Everywhere(layer.function)
    pool = nn.AvgPool2d if layer.function == "average" else nn.MaxPool2d
    return pool(layer.kernel, layer.stride)


_MODULES: Mapping[type, Callable[[Any, Shape], nn.Module]] = {
    kinds.Linear: lambda layer, shape: nn.Linear(shape[-1], layer.width, bias=layer.bias),
    kinds.Conv: _conv,
    kinds.Norm: _norm,
    kinds.Activation: lambda layer, shape: Activation(layer.function),
    kinds.Attention: _attention,
    kinds.Embedding: lambda layer, shape: nn.Embedding(shape[1], layer.width),
    kinds.Position: lambda layer, shape: Position(shape[0], shape[1]),
    kinds.Pool: _pool,
    kinds.Upsample: lambda layer, shape: nn.Upsample(scale_factor=layer.factor),
    kinds.Flatten: lambda layer, shape: nn.Flatten() if layer.to == "vector" else Pixels(),
    kinds.Residual: lambda layer, shape: Residual(layer.factor, layer.scale),
    kinds.Concat: lambda layer, shape: Concat(1 + layer.along(len(shape))),
}


def module_of(node: Node) -> nn.Module:
    """The module of a layer, for the shapes that it takes."""
    return _MODULES[type(node.layer)](node.layer, node.inputs[0])
