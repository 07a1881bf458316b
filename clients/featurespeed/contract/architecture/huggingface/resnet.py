"""The convolutional ResNet: stages of residual blocks with batch norm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from featurespeed.contract.architecture.huggingface.base import (
    Channels,
    HiddenAct,
    Images,
    Labelled,
    Pixels,
    Stages,
    Widths,
)
from featurespeed.contract.base import Width

REDUCTION = 4
"""A bottleneck has a quarter of its block's channels inside."""


class ResidualNetConfig(Labelled):
    """Fields of ``transformers.ResNetConfig``, with its defaults."""

    num_channels: Channels = 3
    embedding_size: Width = 64
    hidden_sizes: Widths = (256, 512, 1024, 2048)
    depths: Stages = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: HiddenAct = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Of every residual block: channels in, channels out, stride."""
        before = self.embedding_size
        for stage, (channels, depth) in enumerate(zip(self.hidden_sizes, self.depths, strict=True)):
            for layer in range(depth):
                yield before, channels, 2 if layer == 0 and (stage or self.downsample_in_first_stage) else 1
                before = channels

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(f"depths: has {len(self.depths)} entries, and hidden_sizes {len(self.hidden_sizes)}")
        if self.embedding_size < 2:
            raise ValueError(f"embedding_size: must be at least 2, not {self.embedding_size}")
        if self.layer_type == "bottleneck" and min(self.hidden_sizes) < REDUCTION:
            raise ValueError(f"hidden_sizes: a bottleneck needs at least {REDUCTION} channels")
        return self


class ResidualNet(Images):
    """``transformers.ResNetForImageClassification``, of images of ``image_size`` × ``image_size`` pixels.

    Blocks: the stem, every residual block (the convolution of its shortcut included), and the head.
    """

    model_type: Literal["resnet"]
    config: ResidualNetConfig = ResidualNetConfig()
    task: Literal["image_classification"] = "image_classification"
    image_size: Pixels = 224
    size_field: ClassVar[str] = "image_size"

    @property
    def depth(self) -> int:  # type: ignore[override]
        """L: stem, residual blocks, head."""
        return sum(self.config.depths) + 2

    @property
    def hidden_branches(self) -> int:
        """One of every residual block."""
        return sum(self.config.depths)

    @property
    def matrix_blocks(self) -> list[str]:
        """None: hidden blocks have convolutions."""
        return []

    @property
    def couples_examples(self) -> bool:
        """By batch norm, which is in training mode."""
        return True

    @property
    def size(self) -> int:
        """Its configuration has none."""
        return self.image_size

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly; each convolution has a gain and a shift of every channel, and no bias."""
        c = self.config
        count = (c.num_channels * 7**2 + 2) * c.embedding_size
        for a, b, stride in c.blocks():
            count += (a + 2) * b if a != b or stride != 1 else 0
            inner = b // REDUCTION
            if c.layer_type == "basic":
                count += (9 * a + 2) * b + (9 * b + 2) * b
            else:
                count += (a + 2) * inner + (9 * inner + 2) * inner + (inner + 2) * b
        return count + (c.hidden_sizes[-1] + 1) * c.num_labels

    @property
    def sides(self) -> list[int]:
        """Side in pixels behind the stem's convolution, behind its pooling, and behind every residual block."""
        found = [-(-self.image_size // 2), -(-self.image_size // 4)]
        for _, _, stride in self.config.blocks():
            found.append(-(-found[-1] // stride))
        return found

    @property
    def activations(self) -> int:
        """Of each convolution: it, its norm and its activation; three at each cut node."""
        c, (stem, *sides) = self.config, self.sides
        numbers = c.num_channels * self.image_size**2 + 3 * stem**2 * c.embedding_size
        numbers += 3 * sides[0] ** 2 * c.embedding_size
        for (before, side), (a, b, stride) in zip(pairwise(sides), c.blocks(), strict=True):
            inner = b if c.layer_type == "basic" else b // REDUCTION
            widest = before if c.layer_type == "bottleneck" and not c.downsample_in_bottleneck else side
            numbers += side**2 * b * (3 + 3 + (2 if a != b or stride != 1 else 0))
            numbers += 3 * inner * (widest**2 + (side**2 if c.layer_type == "bottleneck" else 0))
        return numbers + 5 * c.num_labels
