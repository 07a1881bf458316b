"""Balanced rates at scales that stay: BC and LD of rule ``fsc``, at the weights and optimizer state of a training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from featurespeed.contract import Granularity
from featurespeed.defaults import LARGEST_DECAY
from featurespeed.defaults import feature_step as default_feature_step
from featurespeed_workers.balance import Balance, Slope
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.measurement import Setting, StateMeasurement, measure_slopes, measure_state
from featurespeed_workers.passes import Batch
from featurespeed_workers.rules.scaling import BlockScaling


def keep_scales(
    setting: Setting,
    batches: Sequence[Batch],
    *,
    present: Mapping[str, float] | None,
    contributions: Mapping[str, float],
    granularity: Granularity = "block",
    feature_step: float | None = None,
) -> BlockScaling:
    """Balance the contributions of the optimizer's next step at the present weights, and give it the size δt = κ/τ.

    η_l = C_l / ⟨∇_l, u_l⟩ (Eq. 8) with u_l the optimizer's direction at its present state, and the product's mean over
    the batches. So the blocks contribute C_l to the decay on these batches, in the mean, and −L̇ is 1. τ is measured
    along that step: the mean of ‖ḟ_{L-1}‖/‖f_{L-1}‖. κ is ``feature_step`` if it is given, else that of the learning
    rates ``present``, by block and parameter name: the features keep their pace. Where these are not known (``None``)
    or move nothing, κ is the optimizer's default, but no more than takes a quarter of the loss.

    Raises MeasurementError with a block's name where a mean ⟨∇_l, u_l⟩ is not positive: no rate of it lowers the loss.
    """
    network = setting.network
    parameters: dict[str, Tensor] = dict(network.module.named_parameters())
    balance = Balance.of(network, contributions, granularity)
    moving = present if present is not None and any(present.values()) else None
    some = moving or dict.fromkeys((block.name for block in network.blocks), 1.0)  # slopes do not depend on them
    each = [measure_slopes(setting, parameters, batch, some) for batch in batches]
    slopes = {name: Slope.mean([found[name] for _, found in each]) for name in each[0][1]}
    rates = balance.rates(slopes)
    tau = _relative_speed([measure_state(setting, parameters, batch, rates) for batch in batches])
    if tau == 0:
        raise MeasurementError("no-feature-motion", "the last hidden feature does not move: no block before it trains")
    if feature_step is None and moving is not None:
        feature_step = _relative_speed([found for found, _ in each]) or None
    if feature_step is None:
        decay = LARGEST_DECAY * abs(statistics.fmean(found.loss for found, _ in each))
        feature_step = min(default_feature_step(setting.main_optimizer), decay * tau)
    return BlockScaling(
        parameters=parameters,
        rates=rates,
        master_lr=feature_step / tau,
        relative_sensitivity=tau,
        feature_step=feature_step,
        contributions=dict(contributions),
        granularity=granularity,
        notes={block: "; ".join(parts) for block, parts in balance.notes(slopes).items()},
        kept=True,
    )


def _relative_speed(measured: Sequence[StateMeasurement]) -> float:
    """Mean of ‖ḟ_{L-1}‖/‖f_{L-1}‖; where −L̇ is 1 in the mean, it is τ."""
    last = [found.layers[-2] for found in measured]
    if not all(layer.feature_rms for layer in last):
        raise MeasurementError("zero-feature", f"the features of block {last[0].name!r} are zero")
    return statistics.fmean(layer.feature_speed / layer.feature_rms for layer in last)
