"""What every layer of family ``graph`` says of itself: which shapes it takes and gives, and what it costs.

Shapes are those of one example: (width), (positions, width) or (channels, height, width). A token is a one-hot vector
here, (length, vocab_size), which an embedding alone takes. Errors are ValueErrors that begin with the field to blame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from featurespeed.contract.base import Model

INPUT = "input"
"""What the input of the graph is called."""
Shape = tuple[int, ...]
Name = Annotated[str, Field(max_length=64)]
Kernel = Annotated[int, Field(ge=1, le=4096)]
Groups = Annotated[int, Field(ge=1, le=65_536)]
_AXES = {1: "(width)", 2: "(positions, width)", 3: "(channels, height, width)"}


class Layer(Model):
    """A layer by its name; a submodule of that name holds its parameters."""

    maps: ClassVar[bool] = False
    """Whether it is a linear map or a look-up: what makes a block."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]

    def operands(self, before: str) -> dict[str, str]:
        """The layers that it takes, by the field that names each; ``before``: the layer before it in the list."""
        raise NotImplementedError

    def shape(self, *inputs: Shape) -> Shape:
        """What it gives."""
        raise NotImplementedError

    def parameter_count(self, *inputs: Shape) -> int:
        """Number of parameters."""
        return 0

    def activations(self, *inputs: Shape) -> int:
        """Numbers that a measurement keeps of it."""
        return math.prod(self.shape(*inputs))


class OneInput(Layer):
    """A layer of one other; unless named, of the one before it in the list (of the first, the graph's input)."""

    input: Name | None = None

    def operands(self, before: str) -> dict[str, str]:
        """One."""
        return {"input": before if self.input is None else self.input}

    def _check(self, shape: Shape, *axes: int) -> None:
        if len(shape) not in axes:
            wanted = " or ".join(_AXES[n] for n in axes)
            raise ValueError(f"input: {getattr(self, 'layer', '')} takes {wanted}, not {shape}")


@dataclass(frozen=True)
class Node:
    """A layer with what it takes and gives."""

    layer: Layer
    operands: tuple[str, ...]
    inputs: tuple[Shape, ...]
    shape: Shape
    index: int
    """Its place in the list."""

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return self.layer.parameter_count(*self.inputs)
