"""How the balanced rates of Eq. 8 drift along training."""

from __future__ import annotations

from collections.abc import Sequence

from featurespeed.contract import Measurement, Statistic
from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.measurement import StateMeasurement

Drift = tuple[float | None, ...]
"""By block."""


def balanced_rate_drift(rule: UpdateRule, first: StateMeasurement, now: StateMeasurement) -> Drift:
    """By block, Eq. 8's rate 1/(L ⟨∇_l, u_l⟩) at ``now`` over that at ``first``, a state of a fresh optimizer.

    ``first`` is taken for the step to which momentum builds up, as in a recommendation. ``None`` where there is no such
    rate: the block is frozen, its gradient is zero, or its update goes against it.
    """
    gain = build_up(rule)
    return tuple(
        gain * before / after if eta and before > 0 and after > 0 else None
        for eta, before, after in zip(now.rates, first.unit_contributions, now.unit_contributions, strict=True)
    )


def build_up(rule: UpdateRule) -> float:
    """By what factor the step under a constant gradient grows from its first size to its steady one: SGD's momentum."""
    if rule.name != "sgd":
        return 1.0
    return rule.sustained().gain / rule.gain / (1 + rule.momentum if rule.nesterov else 1)


def with_drift(measured: Measurement, seeds: Sequence[Drift]) -> Measurement:
    """The measurement with the drift of every seed in its layers."""
    layers = (
        layer.model_copy(update={"balanced_rate_drift": Statistic.of([drift[i] for drift in seeds])})
        for i, layer in enumerate(measured.layers)
    )
    return measured.model_copy(update={"layers": tuple(layers)})
