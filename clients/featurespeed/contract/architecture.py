"""Architectures: which network is asked about.

Every family is a chain of ``depth`` blocks (weight layers, as the paper counts; a residual block is one block) whose
outputs are the cut nodes f_1 … f_L. Blocks are named ``input``, ``hidden_2`` … ``hidden_{L-1}``, ``output``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from featurespeed.contract.base import Dim, Model, Width

Activation = Literal["relu", "gelu", "silu", "tanh", "identity"]
Norm = Literal["none", "layernorm", "rmsnorm"]
Depth = Annotated[int, Field(ge=2, le=4096)]


class BlockChain:
    """Names of the blocks of a chain of ``depth`` blocks."""

    if TYPE_CHECKING:  # a mixin: were it seen at run time, a depth that is computed would become a field
        depth: int

    @property
    def block_names(self) -> list[str]:
        """The block names in forward order: ``input``, ``hidden_2``, …, ``output``."""
        return ["input", *(f"hidden_{i}" for i in range(2, self.depth)), "output"]


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


class DepthPower(Model):
    """``coefficient · L^depth_exponent``, L the number of blocks."""

    coefficient: Annotated[float, Field(ge=0, le=1000)] = 1.0
    depth_exponent: Annotated[float, Field(ge=-4, le=4)] = -0.5


class TargetAngle(Model):
    """The β at which the output angle θ_{L-1} is ``target_angle``, in radians (Fig. 1c): found by measurement."""

    target_angle: Annotated[float, Field(gt=0, lt=math.pi / 2)]


def _meant(scale: Any) -> str:
    """Which of the two objects a branch scale is meant to be, so that errors speak of that one."""
    keys = scale if isinstance(scale, dict) else ()
    return "TargetAngle" if isinstance(scale, TargetAngle) or "target_angle" in keys else "DepthPower"


Formula = Annotated[
    Annotated[DepthPower, Tag("DepthPower")] | Annotated[TargetAngle, Tag("TargetAngle")], Discriminator(_meant)
]


class ResNet(Model, BlockChain):
    """The paper's ResNet (Eq. 12): ``f_l = sqrt(1-β²) f_{l-1} + β W_l φ(norm(f_{l-1}))``.

    ``f_1 = W_1 x`` and ``f_L = W_L norm(f_{L-1})``; shortcut ``identity`` drops the factor ``sqrt(1-β²)``.
    ``branch_scale`` is β, a power of the depth, or a target for the output angle.
    """

    family: Literal["resnet"]
    input_dim: Dim
    width: Width
    depth: Depth
    output_dim: Dim
    activation: Activation = "relu"
    branch_scale: Annotated[float, Field(ge=0, le=1)] | Formula = DepthPower()
    shortcut: Literal["variance_preserving", "identity"] = "variance_preserving"
    norm: Norm = "none"
    bias: bool = False

    @property
    def beta(self) -> float:
        """The branch scale β as a number in [0, 1]; ValueError for a target angle, whose β must be measured."""
        scale = self.branch_scale
        if isinstance(scale, TargetAngle):
            raise ValueError(
                f"branch_scale: β for the angle {scale.target_angle:.4g} is found by measuring; "
                "it is branch_scale.beta of the report, and with_beta(β) puts it in"
            )
        return scale.coefficient * float(self.depth) ** scale.depth_exponent if isinstance(scale, DepthPower) else scale

    def with_beta(self, beta: float) -> Self:
        """The same network with ``branch_scale`` the number ``beta``, 0 to 1; raises ValidationError outside."""
        return self.model_validate({**self.model_dump(), "branch_scale": float(beta)})

    @model_validator(mode="after")
    def _beta_in_range(self) -> Self:
        if isinstance(self.branch_scale, TargetAngle):
            if self.depth < 3:
                raise ValueError(f"branch_scale: target_angle needs a residual block, depth ≥ 3, not {self.depth}")
        elif not 0 <= self.beta <= 1:
            raise ValueError(f"branch_scale: {self.beta:.6g} at depth {self.depth} is outside [0, 1]")
        return self


class Image(Model):
    """An image cut into square patches, each a token."""

    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    channels: Annotated[int, Field(ge=1, le=64)] = 1
    patch: Annotated[int, Field(ge=1, le=4096)]

    @property
    def patches(self) -> int:
        """Number of patches: the sequence length."""
        return (self.height // self.patch) * (self.width // self.patch)

    @model_validator(mode="after")
    def _patch_divides(self) -> Self:
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide height {self.height} and width {self.width}")
        return self


class Transformer(Model, BlockChain):
    """A pre-norm transformer: embedding with learned positions, ``layers`` residual blocks, norm and linear head.

    Token input (``vocab_size``, ``context_length``) or patch input (``image``). Without ``output_dim`` the head is a
    language model's (one logit per vocabulary entry and position); with it, a classifier on the mean over positions.
    """

    family: Literal["transformer"]
    layers: Annotated[int, Field(ge=1, le=4096)]
    width: Width
    heads: Annotated[int, Field(ge=1, le=4096)]
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    causal: bool | None = None
    vocab_size: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    context_length: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    image: Image | None = None
    output_dim: Dim | None = None
    activation: Activation = "gelu"
    norm: Norm = "layernorm"
    bias: bool = False

    @property
    def depth(self) -> int:  # type: ignore[override]
        """L: embedding, residual blocks, head."""
        return self.layers + 2

    @property
    def is_causal(self) -> bool:
        """Whether position i sees positions ≤ i only; unless stated, true for tokens and false for images."""
        return self.causal if self.causal is not None else self.image is None

    @property
    def sequence_length(self) -> int:
        """Number of positions."""
        return self.image.patches if self.image is not None else self.context_length or 0

    @property
    def mlp_width(self) -> int:
        """Width of the hidden layer of each feed-forward branch."""
        return max(1, round(self.width * self.mlp_ratio))

    @property
    def head_dim(self) -> int:
        """Number of logits: ``output_dim``, or the vocabulary of a language model."""
        return self.output_dim or self.vocab_size or 0

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int, info: object) -> int:
        width = getattr(info, "data", {}).get("width")
        if width is not None and width % heads:
            raise ValueError(f"{heads} does not divide width {width}")
        return heads

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if self.image is None and (self.vocab_size is None or self.context_length is None):
            raise ValueError("vocab_size: vocab_size and context_length (tokens), or image (patches), are required")
        if self.image is not None and (self.vocab_size is not None or self.context_length is not None):
            raise ValueError("image: excludes vocab_size and context_length")
        if self.image is not None and self.output_dim is None:
            raise ValueError("output_dim: required with image")
        return self


Architecture = Annotated[Mlp | ResNet | Transformer, Field(discriminator="family")]
