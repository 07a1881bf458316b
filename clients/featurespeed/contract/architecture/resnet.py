"""The paper's ResNet, and the scale of residual branches."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from featurespeed.contract.architecture.chain import Activation, BlockChain, Depth, Norm, Signature, norm_parameters
from featurespeed.contract.base import Dim, Model, Width


class DepthPower(Model):
    """``coefficient · L^depth_exponent``, L the number of blocks."""

    coefficient: Annotated[float, Field(ge=0, le=1000)] = 1.0
    depth_exponent: Annotated[float, Field(ge=-4, le=4)] = -0.5

    def at(self, depth: int) -> float:
        """Its value for a network of that depth."""
        return self.coefficient * math.pow(depth, self.depth_exponent)


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
        return scale.at(self.depth) if isinstance(scale, DepthPower) else scale

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

    @property
    def signature(self) -> Signature:
        """Vectors in, vectors out."""
        return Signature((self.input_dim,), self.output_dim)

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly."""
        m, norm = self.width, norm_parameters(self.norm, self.width, bias=self.bias)
        hidden = norm + (m + self.bias) * m
        return (self.input_dim + self.bias) * m + (self.depth - 2) * hidden + norm + (m + self.bias) * self.output_dim

    @property
    def activations(self) -> int:
        """At each cut node; behind activation, branch and norm."""
        inside = self.width * (2 + (self.norm != "none"))
        return self.input_dim + (self.depth - 1) * (3 * self.width + inside) + 5 * self.output_dim
