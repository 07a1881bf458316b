"""Layers of images: convolutions, pools, and what makes vectors of pixels."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from featurespeed.contract.architecture.graph.layer import Groups, Kernel, OneInput, Shape
from featurespeed.contract.base import Width


class Conv(OneInput):
    """A convolution; unless given, ``padding`` is half the kernel: at stride 1 an odd one keeps the resolution."""

    maps: ClassVar[bool] = True
    layer: Literal["conv"]
    channels: Width
    kernel: Kernel
    stride: Kernel = 1
    padding: Annotated[int, Field(ge=0, le=4096)] | None = None
    groups: Groups = 1
    bias: bool = False

    @property
    def border(self) -> int:
        """Zeros on each side."""
        return (self.kernel - 1) // 2 if self.padding is None else self.padding

    def shape(self, *inputs: Shape) -> Shape:
        """(channels, height, width), by the stride smaller."""
        self._check(inputs[0], 3)
        channels, *sides = inputs[0]
        for n in (channels, self.channels):
            if n % self.groups:
                raise ValueError(f"groups: {self.groups} does not divide {n} channels")
        padded = [side + 2 * self.border for side in sides]
        if self.kernel > min(padded):
            raise ValueError(f"kernel: {self.kernel} is more than the {min(padded)} pixels of {inputs[0]} with padding")
        return (self.channels, *((side - self.kernel) // self.stride + 1 for side in padded))

    def parameter_count(self, *inputs: Shape) -> int:
        """Kernels and biases."""
        return (inputs[0][0] // self.groups * self.kernel**2 + self.bias) * self.channels


class Pool(OneInput):
    """Average or maximum of all positions or pixels; with ``kernel``, of squares of pixels, ``stride`` apart."""

    layer: Literal["pool"]
    function: Literal["average", "max"] = "average"
    kernel: Kernel | None = None
    stride: Kernel | None = None

    def shape(self, *inputs: Shape) -> Shape:
        """(width) or (channels), or with a kernel a smaller image."""
        shape = inputs[0]
        if self.kernel is None:
            if self.stride is not None:
                raise ValueError("stride: needs a kernel")
            self._check(shape, 2, 3)
            return (shape[-1] if len(shape) == 2 else shape[0],)
        self._check(shape, 3)
        if self.kernel > min(shape[1:]):
            raise ValueError(f"kernel: {self.kernel} is more than the {min(shape[1:])} pixels of {shape}")
        return (shape[0], *((side - self.kernel) // (self.stride or self.kernel) + 1 for side in shape[1:]))


class Upsample(OneInput):
    """Each pixel becomes a square of them."""

    layer: Literal["upsample"]
    factor: Annotated[int, Field(ge=2, le=64)] = 2

    def shape(self, *inputs: Shape) -> Shape:
        """``factor`` times as high and wide."""
        self._check(inputs[0], 3)
        return (inputs[0][0], *(side * self.factor for side in inputs[0][1:]))


class Flatten(OneInput):
    """All numbers as one vector; ``to: positions``: the pixels of an image, row by row, as positions."""

    layer: Literal["flatten"]
    to: Literal["vector", "positions"] = "vector"

    def shape(self, *inputs: Shape) -> Shape:
        """(width), or (pixels, channels)."""
        shape = inputs[0]
        if self.to == "vector":
            return (math.prod(shape),)
        self._check(shape, 3)
        return shape[1] * shape[2], shape[0]
