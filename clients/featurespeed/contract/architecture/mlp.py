"""The multilayer perceptron."""

from __future__ import annotations

from typing import Literal

from featurespeed.contract.architecture.chain import Activation, BlockChain, Depth, Norm, Signature, norm_parameters
from featurespeed.contract.base import Dim, Model, Width


class Mlp(Model, BlockChain):
    """``f_1 = W_1 x``, ``f_l = norm(W_l φ(f_{l-1}))``, ``f_L = W_L φ(f_{L-1})`` (paper, Sec 5.1)."""

    family: Literal["mlp"]
    input_dim: Dim
    width: Width
    depth: Depth
    output_dim: Dim
    activation: Activation = "relu"
    norm: Norm = "none"
    bias: bool = False

    @property
    def signature(self) -> Signature:
        """Vectors in, vectors out."""
        return Signature((self.input_dim,), self.output_dim)

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly."""
        m, norm = self.width, norm_parameters(self.norm, self.width, bias=self.bias)
        hidden = m * m + m * self.bias + norm
        return (self.input_dim + self.bias) * m + norm + (self.depth - 2) * hidden + (m + self.bias) * self.output_dim

    @property
    def activations(self) -> int:
        """At each cut node, and behind activation and norm."""
        inside = self.width * (1 + (self.norm != "none"))
        return self.input_dim + (self.depth - 1) * (3 * self.width + inside) + 5 * self.output_dim
