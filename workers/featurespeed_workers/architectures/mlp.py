"""The multilayer perceptron: ``f_1 = norm(W_1 x)``, ``f_l = norm(W_l φ(f_{l-1}))``, ``f_L = W_L φ(f_{L-1})``."""

from __future__ import annotations

from torch import nn

from featurespeed.contract import Mlp
from featurespeed_workers.architectures.layers import PostNormLinear, chain_network
from featurespeed_workers.network import Network, Scalable


def mlp_network(architecture: Mlp) -> Network:
    """An MLP (paper, Sec 5.1); a cut node is the pre-activation."""
    a = architecture
    width, phi, norm, bias = a.width, a.activation, a.norm, a.bias
    blocks: dict[str, nn.Module] = {
        "input": PostNormLinear(a.input_dim, width, activation="identity", norm=norm, bias=bias)
    }
    for name in a.block_names[1:-1]:
        blocks[name] = PostNormLinear(width, width, activation=phi, norm=norm, bias=bias)
    blocks["output"] = PostNormLinear(width, a.output_dim, activation=phi, norm="none", bias=bias)
    return chain_network(blocks, lambda block: (Scalable(module=block, parameters=(f"{block}.weight",)),))
