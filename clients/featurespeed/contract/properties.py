"""The properties of a scaling (paper, Sec 4 and 6) as verdicts, and the speeds and kernels behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from featurespeed.contract.base import Model
from featurespeed.contract.statistic import Statistic

PropertyName = Literal["SP", "FL", "LD", "BC", "FS", "BS", "S"]

MEANINGS: Mapping[PropertyName, str] = {
    "SP": "feature rms",
    "FL": "feature change a step",
    "LD": "loss decay a step / loss",
    "BC": "contribution / its share",
    "FS": "feature speed per nat",
    "BS": "backward speed per nat",
    "S": "gradient speed per nat",
}
"""What of the worst block each property bounds."""


class Property(Model):
    """Whether a property holds: ``value`` is in ``range``, ends included. ``None`` for both where it is not measured.

    ``block`` is the worst one, ``over_seeds`` the value there for every seed, ``value`` its mean. ``reason`` is a
    sentence for every property that does not hold or is not measured.
    """

    holds: bool | None
    value: float | None
    range: tuple[float, float]
    block: str | None = None
    over_seeds: Statistic | None = None
    reason: str | None = None


class StateProperties(Model):
    """The verdicts on one state of a network. l runs over hidden features, L-1 is the last of them.

    SP: ‖f_l‖_rms of the worst l. FL: ‖ḟ_{L-1}‖/‖f_{L-1}‖ in one step at the peak rates. LD: the loss decay of that
    step, to first order, as a part of the loss. BC: what the worst block contributes to the loss decay, as a multiple
    of what it should. FS, BS, S: ‖ḟ_l‖/‖f_l‖, ‖ḃ_l‖/‖b_l‖ and ‖d∇_l/dt‖/‖∇_l‖ of the worst l (for S, of the worst
    block that trains), per unit (nat) of loss decay.
    """

    SP: Property
    FL: Property
    LD: Property
    BC: Property
    FS: Property
    BS: Property
    S: Property


class Properties(Model):
    """``before``: under PyTorch's default initialization and learning rate; ``after``: under the recommendation.

    Kind ``measure`` has ``before`` only: the state that was measured.
    """

    before: StateProperties | None = None
    after: StateProperties | None = None


class LayerStability(Model):
    """Relative speeds at one layer, each per unit (nat) of loss decay.

    relative_feature_speed: ‖ḟ_l‖/‖f_l‖. relative_backward_speed: ‖ḃ_l‖/‖b_l‖. relative_gradient_speed:
    ‖d∇_l/dt‖/‖∇_l‖. backward_angle: θ̃_l between f_l and −ḃ_l, radians, for networks in which f_l → f_L is positively
    1-homogeneous (ReLU without norms and biases).
    """

    index: int
    name: str
    relative_feature_speed: Statistic
    relative_backward_speed: Statistic
    relative_gradient_speed: Statistic
    backward_angle: Statistic


class StabilityMeasurement(Model):
    """Stability (paper, Sec 6) at initialization, along the update that the optimizer settles to.

    ``backward_formula_residual``: largest difference between the two sides of the backward speed formula (Prop 6.1)
    relative to ‖ḃ_l‖‖f_l‖, over layers and seeds; ``None`` where it does not apply.
    """

    layers: tuple[LayerStability, ...]
    backward_formula_residual: float | None


class KernelCosine(Model):
    """M_1/√M_2 of a layer's kernel (paper, Thm 3.2), by random probes.

    ``values``: the estimate for every seed (``None`` where nothing before the layer trains), ``mean`` over them.
    ``standard_error`` of the mean: what a finite number of probes leaves, with the seeds as they are.
    """

    mean: float
    standard_error: Annotated[float, Field(ge=0)]
    values: tuple[float | None, ...]
