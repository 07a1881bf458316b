"""The residual convolutional network."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from featurespeed.contract.architecture.chain import Activation, BlockChain, Image, Signature
from featurespeed.contract.architecture.resnet import DepthPower
from featurespeed.contract.base import Dim, Model, Width

ImageNorm = Literal["none", "batchnorm", "groupnorm"]


class ConvNet(Model, BlockChain):
    """A pre-activation residual CNN (He et al. 2016, arXiv 1603.05027), its branches scaled as the paper's ResNet's.

    ``f_1 = conv(x)``, ``f_l = sqrt(1-β²) shortcut(f_{l-1}) + β conv(φ(norm(conv(φ(norm(f_{l-1}))))))``, ``f_L`` is W
    times the mean over pixels of ``φ(norm(f_{L-1}))``. The residual blocks are divided evenly over ``stages``. The
    first block of each later stage halves the resolution and doubles the channels, with a 1 × 1 convolution of stride
    2 as its shortcut; all other shortcuts are the identity. ``shortcut: identity`` drops the factor ``sqrt(1-β²)``.
    ``bias`` is the convolutions' and the head's; norms have gains and shifts in any case.
    """

    family: Literal["convnet"]
    image: Image
    width: Width
    layers: Annotated[int, Field(ge=1, le=4096)]
    output_dim: Dim
    stages: Annotated[int, Field(ge=1, le=13)] = 1
    kernel: Annotated[int, Field(ge=1, le=63)] = 3
    activation: Activation = "relu"
    norm: ImageNorm = "none"
    groups: Annotated[int, Field(ge=1, le=65_536)] | None = None
    branch_scale: Annotated[float, Field(ge=0, le=1)] | DepthPower = DepthPower()
    shortcut: Literal["variance_preserving", "identity"] = "variance_preserving"
    bias: bool = False

    @property
    def depth(self) -> int:  # type: ignore[override]
        """L: first convolution, residual blocks, head."""
        return self.layers + 2

    @property
    def beta(self) -> float:
        """The branch scale β as a number in [0, 1]."""
        scale = self.branch_scale
        return scale.at(self.depth) if isinstance(scale, DepthPower) else scale

    @property
    def maps(self) -> list[tuple[int, int, int]]:
        """Shape (channels, height, width) of the features of each stage."""
        height, width = self.image.height, self.image.width
        shapes = []
        for stage in range(self.stages):
            shapes.append((self.width * 2**stage, height, width))
            height, width = (height + 1) // 2, (width + 1) // 2
        return shapes

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.layers % self.stages:
            raise ValueError(
                f"layers: {self.layers} residual blocks cannot be divided evenly over stages {self.stages}"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: must be odd, so that a convolution keeps the resolution, not {self.kernel}")
        least = 2 ** (self.stages - 1)
        for side in ("height", "width"):
            if (pixels := getattr(self.image, side)) < least:
                raise ValueError(f"image.{side}: {self.stages} stages need at least {least} pixels, not {pixels}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"branch_scale: {self.beta:.6g} at depth {self.depth} is outside [0, 1]")
        return self

    @model_validator(mode="after")
    def _groups_agree(self) -> Self:
        if self.groups is None:
            if self.norm == "groupnorm":
                raise ValueError("groups: required with norm 'groupnorm'")
            return self
        if self.norm != "groupnorm":
            raise ValueError(f"groups: only norm 'groupnorm' has groups, not {self.norm!r}")
        if self.width % self.groups:
            raise ValueError(f"groups: {self.groups} does not divide width {self.width}")
        for channels, height, width in self.maps:
            if channels // self.groups * height * width == 1:
                raise ValueError(
                    f"groups: {self.groups} groups of one channel at 1 × 1 pixels: the norm of a single number is 0"
                )
        return self

    @property
    def signature(self) -> Signature:
        """An image in, logits of the whole."""
        return Signature(self.image.shape, self.output_dim, inputs_field="image")

    @property
    def couples_examples(self) -> bool:
        """Under batch norm, which is in training mode."""
        return self.norm == "batchnorm"

    @property
    def matrix_blocks(self) -> list[str]:
        """None: hidden blocks have convolutions."""
        return []

    def _norm_parameters(self, channels: int) -> int:
        return 0 if self.norm == "none" else 2 * channels

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly."""
        area, bias, maps = self.kernel**2, self.bias, self.maps
        count = (self.image.channels * area + bias) * self.width
        for stage, (m, _, _) in enumerate(maps):
            block = 2 * (self._norm_parameters(m) + (m * area + bias) * m)
            count += self.layers // self.stages * block
            if stage:  # the first block's norm, convolution and shortcut take half the channels
                half = m // 2
                count += self._norm_parameters(half) - self._norm_parameters(m) - half * area * m + (half + bias) * m
        m = maps[-1][0]
        return count + self._norm_parameters(m) + (m + bias) * self.output_dim

    @property
    def activations(self) -> int:
        """At each cut node; of each block both convolutions, activations and norms, and what the branch gives."""
        inside = 4 + 2 * (self.norm != "none")
        pixels = [m * height * width for m, height, width in self.maps]
        stream = sum(self.layers // self.stages * n * (3 + inside) for n in pixels)
        shortcuts = sum(n + 2 * n for n in pixels[1:])  # and what is normed there has twice the numbers
        image = self.image.channels * self.image.height * self.image.width
        return image + 3 * pixels[0] + stream + shortcuts + 2 * pixels[-1] + 5 * self.output_dim
