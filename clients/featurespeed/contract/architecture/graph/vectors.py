"""Layers of vectors, and of sequences of them: linear maps, attention, embeddings, norms and nonlinearities."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from featurespeed.contract.architecture.chain import Activation as Function
from featurespeed.contract.architecture.graph.layer import Groups, OneInput, Shape
from featurespeed.contract.base import Dim, Width


class Linear(OneInput):
    """``W x``, at each position."""

    maps: ClassVar[bool] = True
    layer: Literal["linear"]
    width: Dim
    bias: bool = False

    def shape(self, *inputs: Shape) -> Shape:
        """The last axis changes."""
        self._check(inputs[0], 1, 2)
        return (*inputs[0][:-1], self.width)

    def parameter_count(self, *inputs: Shape) -> int:
        """Matrix and bias."""
        return (inputs[0][-1] + self.bias) * self.width


class Norm(OneInput):
    """A normalisation with gains: layer and RMS norm over the last axis of vectors, batch and group norm by channel.

    Batch and group norm have shifts, a layer norm if ``bias``.
    """

    layer: Literal["norm"]
    norm: Literal["layernorm", "rmsnorm", "batchnorm", "groupnorm"]
    groups: Groups | None = None
    bias: bool | None = None

    def shape(self, *inputs: Shape) -> Shape:
        """The same."""
        shape = inputs[0]
        if self.bias is not None and self.norm != "layernorm":
            raise ValueError(f"bias: only norm 'layernorm' has a choice, not {self.norm!r}")
        if (self.groups is None) == (self.norm == "groupnorm"):
            raise ValueError("groups: norm 'groupnorm' needs them, no other norm takes them")
        axes = {"batchnorm": (1, 3), "groupnorm": (3,)}.get(self.norm, (1, 2))
        self._check(shape, *axes)
        if self.groups is not None and shape[0] % self.groups:
            raise ValueError(f"groups: {self.groups} does not divide {shape[0]} channels")
        if self.groups is not None and math.prod(shape) == self.groups:
            raise ValueError(f"groups: {self.groups} groups of a single number, of which a norm makes 0")
        return shape

    def parameter_count(self, *inputs: Shape) -> int:
        """Gains and shifts."""
        if self.norm in ("batchnorm", "groupnorm"):
            return 2 * inputs[0][0]
        return inputs[0][-1] * (1 + bool(self.bias))


class Activation(OneInput):
    """A nonlinearity, number by number."""

    layer: Literal["activation"]
    function: Function

    def shape(self, *inputs: Shape) -> Shape:
        """The same."""
        return inputs[0]


class Attention(OneInput):
    """Multi-head self-attention: projections to queries, keys and values, and of what they mix."""

    maps: ClassVar[bool] = True
    layer: Literal["attention"]
    heads: Annotated[int, Field(ge=1, le=4096)]
    causal: bool = False
    bias: bool = False

    def shape(self, *inputs: Shape) -> Shape:
        """The same."""
        self._check(inputs[0], 2)
        if inputs[0][1] % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {inputs[0][1]}")
        return inputs[0]

    def parameter_count(self, *inputs: Shape) -> int:
        """Of four square matrices."""
        m = inputs[0][1]
        return 4 * m * (m + self.bias)

    def activations(self, *inputs: Shape) -> int:
        """Queries, keys, values, their mix and its projection; scores are counted apart."""
        return 5 * math.prod(inputs[0])

    def scores(self, *inputs: Shape) -> int:
        """heads · positions²."""
        return self.heads * inputs[0][0] ** 2


class Embedding(OneInput):
    """A vector for each token."""

    maps: ClassVar[bool] = True
    layer: Literal["embedding"]
    width: Width

    def shape(self, *inputs: Shape) -> Shape:
        """(positions, width)."""
        return inputs[0][0], self.width

    def parameter_count(self, *inputs: Shape) -> int:
        """One vector an entry of the vocabulary."""
        return inputs[0][1] * self.width


class Position(OneInput):
    """Adds a learned vector of each position."""

    layer: Literal["position"]

    def shape(self, *inputs: Shape) -> Shape:
        """The same."""
        self._check(inputs[0], 2)
        return inputs[0]

    def parameter_count(self, *inputs: Shape) -> int:
        """One vector a position."""
        return math.prod(inputs[0])
