"""Any other network, as an explicit list of layers."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from featurespeed.contract.architecture.chain import BlockChain, Signature
from featurespeed.contract.architecture.graph.images import Conv, Flatten, Pool, Upsample
from featurespeed.contract.architecture.graph.joins import Concat, Residual
from featurespeed.contract.architecture.graph.layer import Name, Node, Shape
from featurespeed.contract.architecture.graph.plan import Plan, make_plan
from featurespeed.contract.architecture.graph.vectors import Activation, Attention, Embedding, Linear, Norm, Position
from featurespeed.contract.base import Dim, Model

__all__ = [
    "Activation",
    "AnyLayer",
    "Attention",
    "Concat",
    "Conv",
    "Embedding",
    "Flatten",
    "Graph",
    "GraphInput",
    "Linear",
    "Norm",
    "Pool",
    "Position",
    "Residual",
    "Upsample",
]


AnyLayer = Annotated[
    Linear
    | Conv
    | Norm
    | Activation
    | Attention
    | Embedding
    | Position
    | Pool
    | Upsample
    | Flatten
    | Residual
    | Concat,
    Field(discriminator="layer"),
]


class GraphInput(Model):
    """Real numbers of a ``shape``, (width), (positions, width) or (channels, height, width); or ``length`` tokens."""

    shape: Annotated[tuple[Dim, ...], Field(min_length=1, max_length=3)] | None = None
    vocab_size: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    length: Annotated[int, Field(ge=1, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.shape is None and (self.vocab_size is None or self.length is None):
            raise ValueError("shape: a shape, or vocab_size and length (tokens), are required")
        if self.shape is not None and (self.vocab_size is not None or self.length is not None):
            raise ValueError("shape: excludes vocab_size and length")
        return self

    @property
    def axes(self) -> Shape:
        """The shape of one example, tokens as one-hot vectors."""
        return self.shape if self.shape is not None else (self.length or 0, self.vocab_size or 0)


class Graph(Model, BlockChain):
    """Layers that take one another by name, in any order, without a cycle; the one that no other takes is the output.

    The output is (width), or of tokens also (length, width): one prediction a position. Blocks are found from the list
    (``cuts.py``), or end with the layers that ``cut_nodes`` names.
    """

    family: Literal["graph"]
    input: GraphInput
    layers: Annotated[tuple[AnyLayer, ...], Field(min_length=1, max_length=4096)]
    cut_nodes: Annotated[tuple[Name, ...], Field(min_length=2, max_length=4096)] | None = None

    @cached_property
    def plan(self) -> Plan:
        """The layers in an order in which they can be computed, with their shapes and the cut nodes."""
        tokens = self.input.vocab_size is not None
        return make_plan(self.input.axes, tokens=tokens, layers=self.layers, cut_nodes=self.cut_nodes)

    @model_validator(mode="after")
    def _checked(self) -> Self:
        output, shape = self._output, self._output.shape
        if len(shape) > 1 and (self.input.length is None or shape[:-1] != (self.input.length,)):
            wanted = "(width)" if self.input.length is None else f"(width) or ({self.input.length}, width)"
            raise ValueError(f"layers.{output.index}: the output must be {wanted}, not {shape}; flatten or pool it")
        return self

    @property
    def _output(self) -> Node:
        return self.plan.nodes[-1]

    @property
    def depth(self) -> int:  # type: ignore[override]
        """L: the number of cut nodes."""
        return len(self.plan.cuts)

    @property
    def matrix_blocks(self) -> list[str]:
        """Those with a linear layer or attention."""
        blocks = zip(self.block_names[1:-1], self.plan.blocks[1:-1], strict=True)
        return [name for name, nodes in blocks if any(isinstance(n.layer, Linear | Attention) for n in nodes)]

    @property
    def couples_examples(self) -> bool:
        """Under batch norm, which is in training mode."""
        return any(isinstance(layer, Norm) and layer.norm == "batchnorm" for layer in self.layers)

    @property
    def signature(self) -> Signature:
        """What the input is, and the output's width."""
        inputs = self.input.shape or (self.input.length or 0,)
        return Signature(
            inputs,
            self._output.shape[-1],
            self.input.vocab_size,
            per_position=len(self._output.shape) > 1,
            inputs_field="input.shape",
            outputs_field=f"layers.{self._output.index}",
            fixed_length=any(isinstance(layer, Flatten | Concat) for layer in self.layers),
        )

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly."""
        return sum(node.parameter_count for node in self.plan.nodes)

    @property
    def activations(self) -> int:
        """What each layer gives, and at the cut nodes backward pass and velocity."""
        nodes, size = self.plan.nodes, math.prod
        first = 0 if self.input.shape is None else size(self.input.shape)
        kept = sum(node.layer.activations(*node.inputs) for node in nodes)
        cuts = sum(2 * size(nodes[cut].shape) for cut in self.plan.cuts)
        return first + kept + cuts + 2 * size(self._output.shape)

    @property
    def attention(self) -> tuple[int, int]:
        """The number of attention layers, and the most scores that one has."""
        scores = [n.layer.scores(*n.inputs) for n in self.plan.nodes if isinstance(n.layer, Attention)]
        return len(scores), max(scores, default=0)
