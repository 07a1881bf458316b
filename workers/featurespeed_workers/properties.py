"""The properties of a scaling (paper, Sec 4 and 6) as verdicts: pure functions of what was measured.

The paper's Θ(1) and O(1) compare with constants; here each quantity is put into its own natural unit, and the constants
are those of :mod:`featurespeed.defaults`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from featurespeed.contract import GeometricStatistic, Statistic
from featurespeed.contract.properties import Property, StateProperties
from featurespeed.defaults import (
    CONTRIBUTION_FACTOR,
    FEATURE_RMS_RANGE,
    FEATURE_STEP_FACTOR,
    LOSS_DECAY_RANGE,
    RELATIVE_SENSITIVITY,
    STABILITY_BOUND,
)
from featurespeed_workers.measurement import StateMeasurement
from featurespeed_workers.stability import LayerStability, Stability

Range = tuple[float, float]
AT_MOST = (0.0, STABILITY_BOUND)


@dataclass(frozen=True)
class SeedState:
    """One state of one seed, measured along the update that its optimizer settles to.

    ``master_lr`` is the peak δt by which block rates are multiplied (``None``: no step has a size), ``feature_step``
    the κ that this is to give, ``shares`` the part of the loss decay that each block should contribute (0 where it does
    not train). ``stability`` is ``None`` if it was not measured.
    """

    measurement: StateMeasurement
    shares: tuple[float, ...]
    master_lr: float | None
    feature_step: float
    stability: Stability | None

    def times(self, factor: float) -> Self:
        """The state with its step, as it is and as it should be, ``factor`` times as large."""
        master_lr = None if self.master_lr is None else self.master_lr * factor
        return replace(self, master_lr=master_lr, feature_step=self.feature_step * factor)


def verdicts(seeds: Sequence[SeedState]) -> StateProperties:
    """The verdicts on one state over all seeds."""
    return StateProperties(
        SP=_signal_propagation(seeds),
        FL=_feature_learning(seeds),
        LD=_loss_decay(seeds),
        BC=_balanced_contributions(seeds),
        FS=_speed(seeds, "features", lambda s, i: _per_nat(s, i)),
        BS=_speed(seeds, "backward pass", _stability(lambda layer: layer.relative_backward_speed)),
        S=_speed(seeds, "gradient", _stability(lambda layer: layer.relative_gradient_speed), output_too=True),
    )


def _signal_propagation(seeds: Sequence[SeedState]) -> Property:
    """SP: ‖f_l‖_rms, l = 1 … L-1."""
    low, high = FEATURE_RMS_RANGE

    def explain(block: str | None, rms: float) -> str:
        if rms == 0:
            return f"the features of block {block!r} are zero"
        size = f"{_number(1 / rms)} × too small" if rms < low else f"{_number(rms)} × too large"
        return f"the features of block {block!r} have rms {_number(rms)}: {size}"

    values = _by_block(seeds, lambda s, i: s.measurement.layers[i].feature_rms)
    return _judge(values[:-1], (low, high), explain, "there is no hidden feature")


def _feature_learning(seeds: Sequence[SeedState]) -> Property:
    """FL: δt ‖ḟ_{L-1}‖/‖f_{L-1}‖, against κ, the geometric mean over seeds."""
    feature_step = GeometricStatistic.of([s.feature_step for s in seeds]).mean
    bounds = (feature_step / FEATURE_STEP_FACTOR, feature_step * FEATURE_STEP_FACTOR)

    def explain(block: str | None, change: float) -> str:
        moves = f"the features of block {block!r} change by {_part(change)} in a step, not by {_part(feature_step)}"
        if change == 0:
            return f"{moves}: no block before them learns"
        few = change < bounds[0]
        factor = _number(feature_step / change if few else change / feature_step)
        if few and (tau := _sensitivity(seeds)) and tau < RELATIVE_SENSITIVITY / FEATURE_STEP_FACTOR:
            lazy = _number(RELATIVE_SENSITIVITY / tau)
            return f"{moves}: the output's scale is too large (lazy), by about {lazy} × for each nat of loss decay"
        return f"{moves}: learning rates are {factor} × too {'small' if few else 'large'}"

    def change(state: SeedState, i: int) -> float | None:
        layer = state.measurement.layers[i]
        if state.master_lr is None or layer.feature_rms == 0:
            return None
        return state.master_lr * layer.feature_speed / layer.feature_rms

    return _judge(_by_block(seeds, change)[-2:-1], bounds, explain, _no_step(seeds))


def _sensitivity(seeds: Sequence[SeedState]) -> float | None:
    """τ, the geometric mean over seeds; ``None`` where the loss does not decay or a feature is zero."""
    measured = [s.measurement for s in seeds]
    if any(m.loss_decay <= 0 or m.layers[-2].feature_rms == 0 for m in measured):
        return None
    return GeometricStatistic.of([m.relative_sensitivity for m in measured]).mean or None


def _loss_decay(seeds: Sequence[SeedState]) -> Property:
    """LD: δt (−L̇) / L."""
    low, high = LOSS_DECAY_RANGE

    def explain(_: str | None, part: float) -> str:
        if part <= 0:
            return "a step raises the loss to first order: the update points against the gradient"
        step = f"a step lowers the loss by {_part(part)} of itself to first order"
        if part < low:
            return f"{step}, {_number(low / part)} × below {_part(low)}: learning rates are too small"
        return f"{step}, {_number(part / high)} × above {_part(high)}: learning rates are too large"

    def decay(state: SeedState) -> float | None:
        measured = state.measurement
        if state.master_lr is None or not measured.loss > 0:
            return None
        return state.master_lr * measured.loss_decay / measured.loss

    missing = _no_step(seeds) if any(s.master_lr is None for s in seeds) else "the loss is zero"
    return _judge([(None, Statistic.of([decay(s) for s in seeds]))], (low, high), explain, missing)


def _balanced_contributions(seeds: Sequence[SeedState]) -> Property:
    """BC: C_l / (−L̇) as a multiple of the block's share, over the blocks that have one."""
    shares = {layer.name: share for layer, share in zip(seeds[0].measurement.layers, seeds[0].shares, strict=True)}

    def explain(block: str | None, ratio: float) -> str:
        share = shares[block or ""]
        if ratio < 0:
            return f"block {block!r} raises the loss: its update points against the gradient"
        contributes = f"block {block!r} contributes {_part(ratio * share)} of the decay, not {_part(share)}"
        if ratio == 0:
            return f"{contributes}: it does not learn"
        size = f"{_number(1 / ratio)} × too small" if ratio < 1 else f"{_number(ratio)} × too large"
        return f"{contributes}: its learning rate is {size}"

    def ratio(state: SeedState, i: int) -> float | None:
        measured, share = state.measurement, state.shares[i]
        if not share or not measured.loss_decay > 0:
            return None
        return measured.layers[i].contribution / measured.loss_decay / share

    bounds = (1 / CONTRIBUTION_FACTOR, CONTRIBUTION_FACTOR)
    return _judge(_by_block(seeds, ratio), bounds, explain, "the loss does not decay")


def _per_nat(state: SeedState, i: int) -> float | None:
    measured, layer = state.measurement, state.measurement.layers[i]
    if layer.feature_rms == 0 or not measured.loss_decay > 0:
        return None
    return layer.feature_speed / layer.feature_rms / measured.loss_decay


def _stability(quantity: Callable[[LayerStability], float | None]) -> Callable[[SeedState, int], float | None]:
    return lambda state, i: None if state.stability is None else quantity(state.stability.layers[i])


def _speed(
    seeds: Sequence[SeedState],
    what: str,
    quantity: Callable[[SeedState, int], float | None],
    output_too: bool = False,
) -> Property:
    """FS, BS or S: a relative speed per nat, of hidden layers (of S: of every block that trains)."""

    def explain(block: str | None, speed: float) -> str:
        return (
            f"the {what} of block {block!r} would change by {_number(speed)} × its size per nat of loss decay, "
            f"more than {_number(STABILITY_BOUND)} ×"
        )

    values = _by_block(seeds, quantity)
    return _judge(values if output_too else values[:-1], AT_MOST, explain, "not measured")


def _by_block(
    seeds: Sequence[SeedState], quantity: Callable[[SeedState, int], float | None]
) -> list[tuple[str | None, Statistic]]:
    names = [layer.name for layer in seeds[0].measurement.layers]
    return [(name, Statistic.of([quantity(s, i) for s in seeds])) for i, name in enumerate(names)]


def _judge(
    values: Sequence[tuple[str | None, Statistic]],
    bounds: Range,
    explain: Callable[[str | None, float], str],
    missing: str,
) -> Property:
    """The verdict on the worst of ``values``: by block, means over seeds."""
    known = [(block, statistic, statistic.mean) for block, statistic in values if statistic.mean is not None]
    if not known:
        return Property(holds=None, value=None, range=bounds, reason=missing)
    block, statistic, value = max(known, key=lambda item: _excess(item[2], bounds))
    holds = bounds[0] <= value <= bounds[1]
    reason = None if holds else explain(block, value)
    return Property(holds=holds, value=value, range=bounds, block=block, over_seeds=statistic, reason=reason)


def _excess(value: float, bounds: Range) -> float:
    """How far a value is from the middle of its range, as a factor."""
    low, high = bounds
    if low == 0:
        return value / high
    return max(value / high, low / value) if value > 0 else math.inf


def _no_step(seeds: Sequence[SeedState]) -> str:
    if any(s.master_lr is None for s in seeds):
        return "balanced learning rates have no size of step; give measurement.master_lr, or learning_rates"
    return "the last hidden feature is zero"


def _number(x: float) -> str:
    """Two significant digits, in full where that is short."""
    rounded = float(f"{x:.2g}")
    return f"{rounded:.0f}" if 10 <= rounded < 1e5 else f"{rounded:g}"


def _part(x: float) -> str:
    """A part in per cent."""
    return f"{_number(100 * x)} %"
