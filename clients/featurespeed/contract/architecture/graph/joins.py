"""Layers that take several others."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from featurespeed.contract.architecture.graph.layer import Layer, Name, Shape


class Residual(Layer):
    """``shortcut · input + scale · branch``; the shortcut is 1, or ``sqrt(1-scale²)``.

    Unless named, ``branch`` is the layer before it in the list.
    """

    layer: Literal["residual"]
    input: Name
    branch: Name | None = None
    scale: Annotated[float, Field(ge=0, le=1000)] = 1.0
    shortcut: Literal["identity", "variance_preserving"] = "identity"

    @property
    def factor(self) -> float:
        """Of the input."""
        return 1.0 if self.shortcut == "identity" else math.sqrt(1 - self.scale**2)

    def operands(self, before: str) -> dict[str, str]:
        """The stream and the branch."""
        return {"input": self.input, "branch": before if self.branch is None else self.branch}

    def shape(self, *inputs: Shape) -> Shape:
        """The same, of both."""
        if self.shortcut == "variance_preserving" and self.scale > 1:
            raise ValueError(f"scale: {self.scale:.6g} is above 1, where shortcut 'variance_preserving' has no root")
        if inputs[0] != inputs[1]:
            raise ValueError(f"branch: its shape {inputs[1]} must be the input's, {inputs[0]}")
        return inputs[0]


class Concat(Layer):
    """Several layers side by side: their channels or widths (``features``), or one's positions after the other's."""

    layer: Literal["concat"]
    inputs: Annotated[tuple[Name, ...], Field(min_length=2, max_length=256)]
    axis: Literal["features", "positions"] = "features"

    def operands(self, before: str) -> dict[str, str]:
        """All of them."""
        return {f"inputs.{i}": name for i, name in enumerate(self.inputs)}

    def along(self, axes: int) -> int:
        """The axis of a shape with so many."""
        if self.axis == "positions":
            return 0
        return 1 if axes == 2 else 0

    def shape(self, *inputs: Shape) -> Shape:
        """Equal in all axes but one, in which they add up."""
        first = inputs[0]
        if self.axis == "positions" and len(first) != 2:
            raise ValueError(f"axis: only (positions, width) has positions, not {first}")
        axis = self.along(len(first))
        for i, other in enumerate(inputs):
            if len(other) != len(first) or other[:axis] + other[axis + 1 :] != first[:axis] + first[axis + 1 :]:
                raise ValueError(f"inputs.{i}: its shape {other} and {first} may differ in axis {axis} only")
        return (*first[:axis], sum(shape[axis] for shape in inputs), *first[axis + 1 :])
