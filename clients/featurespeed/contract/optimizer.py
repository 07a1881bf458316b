"""Optimizers: which direction the parameters take. Fields have the names and meanings of torch.optim's arguments."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from featurespeed.contract.base import Model

OptimizerName = Literal["sgd", "adam", "adamw", "signsgd", "muon"]
Unit = Annotated[float, Field(ge=0, lt=1)]
WeightDecay = Annotated[float, Field(ge=0, le=100)]
Coefficient = Annotated[float, Field(ge=-100, le=100)]


class Sgd(Model):
    """Stochastic gradient descent, as ``torch.optim.SGD``."""

    name: Literal["sgd"]
    momentum: Unit = 0.0
    nesterov: bool = False
    weight_decay: WeightDecay = 0.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true needs momentum > 0")
        return self


class AdamSettings(Model):
    """What Adam and AdamW are told beside a learning rate."""

    betas: tuple[Unit, Unit] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    weight_decay: WeightDecay = 0.0


class Adam(AdamSettings):
    """Adam, as ``torch.optim.Adam``: weight decay is added to the gradient."""

    name: Literal["adam"]


class AdamW(AdamSettings):
    """AdamW, as ``torch.optim.AdamW``: weight decay is decoupled from the gradient."""

    name: Literal["adamw"]


class SignSgd(Model):
    """The sign of the gradient or, with momentum, of the momentum buffer (Signum); weight decay is decoupled.

    It is ``featurespeed_workers.optimizers.SignSgd``: torch has none.
    """

    name: Literal["signsgd"]
    momentum: Unit = 0.0
    weight_decay: WeightDecay = 0.0


class Muon(Model):
    """Muon for the weight matrices of hidden blocks, as ``torch.optim.Muon``, and AdamW for all other parameters.

    Matrices are 2-D parameters; embeddings are none. ``adamw`` holds the settings of ``torch.optim.AdamW``. Both take
    the learning rate of their block.
    """

    name: Literal["muon"]
    momentum: Unit = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[Coefficient, Coefficient, Coefficient] = (3.4445, -4.7750, 2.0315)
    ns_steps: Annotated[int, Field(ge=1, le=99)] = 5
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-7
    weight_decay: WeightDecay = 0.0
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None
    adamw: AdamSettings = AdamSettings()


Optimizer = Annotated[Sgd | Adam | AdamW | SignSgd | Muon, Field(discriminator="name")]
