"""ConvNeXt: stages of residual blocks, each a depthwise convolution and a feed-forward map of every pixel."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from featurespeed.contract.architecture.huggingface.base import (
    Channels,
    Epsilon,
    HiddenAct,
    Images,
    Labelled,
    Pixels,
    Probability,
    Stages,
    Std,
    Widths,
)

KERNEL = 7
"""Of the depthwise convolution: 7 × 7."""


class ConvNextConfig(Labelled):
    """Fields of ``transformers.ConvNextConfig``, with its defaults; images and patches are squares.

    ``layer_scale_init_value`` 0: blocks without layer scale, whose last matrix is then what is scaled.
    """

    num_channels: Channels = 3
    patch_size: Pixels = 4
    num_stages: Annotated[int, Field(ge=1, le=8)] = 4
    hidden_sizes: Widths = (96, 192, 384, 768)
    depths: Stages = (3, 3, 9, 3)
    hidden_act: HiddenAct = "gelu"
    initializer_range: Std = 0.02
    layer_norm_eps: Epsilon = 1e-12
    layer_scale_init_value: Annotated[float, Field(ge=0, le=1000)] = 1e-6
    drop_path_rate: Probability = 0.0
    image_size: Pixels = 224

    @property
    def sides(self) -> list[int]:
        """Side of the image in every stage, in pixels."""
        return [self.image_size // self.patch_size // 2**stage for stage in range(self.num_stages)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for field, stages in (("hidden_sizes", self.hidden_sizes), ("depths", self.depths)):
            if len(stages) != self.num_stages:
                raise ValueError(f"{field}: has {len(stages)} entries, and num_stages is {self.num_stages}")
        if not self.sides[-1]:
            least = self.patch_size * 2 ** (self.num_stages - 1)
            raise ValueError(
                f"image_size: {self.image_size} is less than {least}, a pixel of the last stage "
                f"(patch_size {self.patch_size}, num_stages {self.num_stages})"
            )
        return self


class ConvNext(Images):
    """``transformers.ConvNextForImageClassification``.

    Blocks: the stem, every residual block, every convolution between two stages, and norm and head.
    """

    model_type: Literal["convnext"]
    config: ConvNextConfig = ConvNextConfig()
    task: Literal["image_classification"] = "image_classification"

    @property
    def depth(self) -> int:  # type: ignore[override]
        """L: stem, residual blocks, convolutions between stages, head."""
        return sum(self.config.depths) + self.config.num_stages + 1

    @property
    def hidden_branches(self) -> int:
        """One of every residual block."""
        return sum(self.config.depths)

    @property
    def matrix_blocks(self) -> list[str]:
        """The residual blocks: not the convolutions between stages."""
        kinds: list[str] = []
        for stage, depth in enumerate(self.config.depths):
            kinds += ["between"] * (stage > 0) + ["residual"] * depth
        return [name for name, kind in zip(self.block_names[1:-1], kinds, strict=True) if kind == "residual"]

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly."""
        c = self.config
        stem = (c.num_channels * c.patch_size**2 + 1 + 2) * c.hidden_sizes[0]
        blocks = sum(
            depth * ((KERNEL**2 + 1) * m + 2 * m + 8 * m * m + 5 * m + m * (c.layer_scale_init_value > 0))
            for m, depth in zip(c.hidden_sizes, c.depths, strict=True)
        )
        between = sum(2 * a + (4 * a + 1) * b for a, b in pairwise(c.hidden_sizes))
        last = c.hidden_sizes[-1]
        return stem + blocks + between + 2 * last + (last + 1) * c.num_labels

    @property
    def activations(self) -> int:
        """Of each block: depthwise, norm, inside four times as wide before and after its activation, last, scaled."""
        c = self.config
        stages = zip(c.sides, c.hidden_sizes, c.depths, strict=True)
        stream = sum(side**2 * m * (5 + depth * (3 + 12)) for side, m, depth in stages)
        return c.num_channels * c.image_size**2 + stream + 5 * c.num_labels
