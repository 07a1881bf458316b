"""The residual CNN. f: (batch, channels, height, width) at every cut node but the last, the logits."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from featurespeed.contract import ConvNet
from featurespeed.contract.architecture import Activation, ImageNorm
from featurespeed_workers.architectures.layers import ACTIVATIONS, chain_network
from featurespeed_workers.architectures.resnet import ResidualBlock
from featurespeed_workers.network import Network, Scalable


def make_image_norm(norm: ImageNorm, channels: int, groups: int | None) -> nn.Module:
    """A normalisation with a gain and a shift for each channel.

    Batch norm is in training mode: it norms by the batch that it sees, and its running statistics stay out of it.
    """
    if norm == "batchnorm":
        return nn.BatchNorm2d(channels)
    if norm == "groupnorm":
        assert groups is not None  # the contract requires it
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


class ConvBranch(nn.Module):
    """``conv(φ(norm(conv(φ(norm(f))))))``: the first convolution has the stride, the second is rescaled."""

    def __init__(self, a: ConvNet, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm_1 = make_image_norm(a.norm, inputs, a.groups)
        self.conv_1 = nn.Conv2d(inputs, outputs, a.kernel, stride, a.kernel // 2, bias=a.bias)
        self.norm_2 = make_image_norm(a.norm, outputs, a.groups)
        self.conv_2 = nn.Conv2d(outputs, outputs, a.kernel, padding=a.kernel // 2, bias=a.bias)
        self.activation = ACTIVATIONS[a.activation]

    def forward(self, f: Tensor) -> Tensor:
        """(batch, inputs, height, width) → (batch, outputs, height / stride, width / stride), rounded up."""
        hidden = self.conv_1(self.activation(self.norm_1(f)))
        out: Tensor = self.conv_2(self.activation(self.norm_2(hidden)))
        return out


class PooledLinear(nn.Linear):
    """``W`` times the mean over pixels of ``φ(norm(f))``. A linear layer itself, so that its matrix is ``weight``."""

    def __init__(self, inputs: int, outputs: int, *, activation: Activation, norm: nn.Module, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.norm = norm
        self.activation = ACTIVATIONS[activation]

    def forward(self, f: Tensor) -> Tensor:
        """(batch, inputs, height, width) → (batch, outputs)."""
        return F.linear(self.activation(self.norm(f)).mean(dim=(2, 3)), self.weight, self.bias)


def convnet(architecture: ConvNet) -> Network:
    """A residual CNN; a cut node is the residual stream after a block."""
    a = architecture
    blocks: dict[str, nn.Module] = {
        "input": nn.Conv2d(a.image.channels, a.width, a.kernel, padding=a.kernel // 2, bias=a.bias)
    }
    for i, name in enumerate(a.block_names[1:-1]):
        stage, place = divmod(i, a.layers // a.stages)
        blocks[name] = _block(a, a.maps[stage][0], begins_stage=stage > 0 and place == 0)
    last = a.maps[-1][0]
    norm = make_image_norm(a.norm, last, a.groups)
    blocks["output"] = PooledLinear(last, a.output_dim, activation=a.activation, norm=norm, bias=a.bias)
    return chain_network(blocks, lambda block: _scalables(block, blocks[block]))


def _block(a: ConvNet, channels: int, *, begins_stage: bool) -> ResidualBlock:
    inputs, stride = (channels // 2, 2) if begins_stage else (channels, 1)
    return ResidualBlock(
        ConvBranch(a, inputs, channels, stride),
        shortcut=math.sqrt(1 - a.beta**2) if a.shortcut == "variance_preserving" else 1.0,
        beta=a.beta,
        projection=nn.Conv2d(inputs, channels, 1, stride, bias=a.bias) if begins_stage else None,
    )


def _scalables(block: str, module: nn.Module) -> tuple[Scalable, ...]:
    """Of a residual block the branch, by its last convolution, and the shortcut's: each to rms 1, unscaled."""
    if not isinstance(module, ResidualBlock):
        return (Scalable(module=block, parameters=(f"{block}.weight",)),)
    branch = Scalable(module=f"{block}.branch", parameters=(f"{block}.branch.conv_2.weight",))
    if module.projection is None:
        return (branch,)
    return Scalable(module=f"{block}.projection", parameters=(f"{block}.projection.weight",)), branch
