"""The paper's ResNet (Eq. 12).

``f_1 = W_1 x``, ``f_l = sqrt(1-β²) f_{l-1} + β W_l φ(norm(f_{l-1}))``, ``f_L = W_L norm(f_{L-1})``.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from featurespeed.contract import ResNet
from featurespeed_workers.architectures.layers import PreLinear, chain_network, combined
from featurespeed_workers.network import Network, Scalable


class ResidualBlock(nn.Module):
    """``shortcut · f + β · branch(f)``. The branch is a submodule: its output is seen before β scales it.

    Where the branch changes the shape, ``projection`` does so for f.
    """

    def __init__(self, branch: nn.Module, *, shortcut: float, beta: float, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.projection = projection
        self.shortcut = shortcut
        self.beta = beta

    def forward(self, f: Tensor) -> Tensor:
        """(batch, width) → (batch, width); images (batch, channels, height, width) likewise."""
        kept = f if self.projection is None else self.projection(f)
        return combined(self.shortcut, kept, self.beta, self.branch(f))


def resnet_network(architecture: ResNet) -> Network:
    """A ResNet; a cut node is the residual stream after a block."""
    a = architecture
    shortcut = math.sqrt(1 - a.beta**2) if a.shortcut == "variance_preserving" else 1.0
    blocks: dict[str, nn.Module] = {"input": nn.Linear(a.input_dim, a.width, bias=a.bias)}
    for name in a.block_names[1:-1]:
        branch = PreLinear(a.width, a.width, activation=a.activation, norm=a.norm, bias=a.bias)
        blocks[name] = ResidualBlock(branch, shortcut=shortcut, beta=a.beta)
    blocks["output"] = PreLinear(a.width, a.output_dim, activation="identity", norm=a.norm, bias=a.bias)
    return chain_network(blocks, _scalables)


def _scalables(block: str) -> tuple[Scalable, ...]:
    """The block's one matrix: a residual block's branch is brought to rms 1 before it is scaled by β."""
    path = block if block in ("input", "output") else f"{block}.branch"
    return (Scalable(module=path, parameters=(f"{path}.weight",)),)
