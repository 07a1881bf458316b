"""FSC (paper, Sec 4.2): Forward features, Sensitivities, Contributions — and the master rate from the feature step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from featurespeed.defaults import FEATURE_STEP, RELATIVE_SENSITIVITY, SENSITIVITY_TOLERANCE
from featurespeed_workers import formula
from featurespeed_workers.capture import Batch, Parameters
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.measurement import RuleOf, Setting, measure_state
from featurespeed_workers.network import Network, Scalable
from featurespeed_workers.rules.forward import multiply, scale_features
from featurespeed_workers.rules.scaling import BlockScaling

MAX_ROUNDS = 24
LARGEST_STEP = math.log(64.0)
"""Most by which one round may change the logarithm of the output scale."""
FIRST_SCALE = 1 / 64
"""The search starts with an output near 0, where b_L does not depend on the scale and τ is inverse to it.

Under mse a scale at which f_L meets its targets has the smallest b_L, hence the largest τ: from beyond that scale the
search would find a second, useless solution."""
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class _Trial:
    """One output scale and what was measured there, over the batches."""

    scale: float
    relative_sensitivity: float
    unit_contributions: tuple[float, ...]


def fsc(
    setting: Setting,
    parameters: Parameters,
    batches: Sequence[Batch],
    *,
    relative_sensitivity: float = RELATIVE_SENSITIVITY,
    feature_step: float = FEATURE_STEP,
    report: Report = lambda fraction, message: None,
) -> BlockScaling:
    """Scale every block: SP by forward rescaling, FL by the output scale, BC and LD by Eq. 8, then δt = κ/τ.

    The direction is the one that ``setting``'s optimizer settles to (see UpdateRule.sustained), from a fresh state.
    Raises MeasurementError for a network that cannot be scaled, naming the first layer concerned.
    """
    setting = replace(setting, rule=_sustained(setting.rule), state=lambda name: {})
    report(0.0, "forward features")
    *hidden, output = setting.network.blocks
    scalables = [(block.name, s) for block in hidden for s in block.scalables]
    forward = scale_features(setting.network, parameters, batches, scalables)
    report(0.2, "output scale")
    trial, reached = _output_scale(setting, forward.parameters, batches, output.scalables, relative_sensitivity, report)
    tau = relative_sensitivity if reached else trial.relative_sensitivity
    notes = dict.fromkeys(forward.immaterial, "a norm layer makes this block's scale immaterial: left as it was")
    return BlockScaling(
        parameters=_scaled(forward.parameters, output.scalables, trial.scale),
        rates=_balanced(setting.network, forward.parameters, trial.unit_contributions),
        master_lr=feature_step / tau,
        relative_sensitivity=trial.relative_sensitivity,
        notes=notes,
        warnings=() if reached else (_unreached(output.name, relative_sensitivity, trial),),
    )


def _sustained(rule: RuleOf) -> RuleOf:
    return lambda name: rule(name).sustained()


def _output_scale(
    setting: Setting,
    parameters: Mapping[str, Tensor],
    batches: Sequence[Batch],
    scalables: Sequence[Scalable],
    target: float,
    report: Report,
) -> tuple[_Trial, bool]:
    """FL: the output scale at which τ meets its target (Eq. 7 in relative form), or the nearest that was found.

    In log-log coordinates τ falls about linearly with the scale, so secant steps converge in a few rounds; once the
    target lies between two trials, a step that leaves that interval is replaced by its geometric middle.
    """
    trials: list[_Trial] = []
    scale = FIRST_SCALE
    for round_ in range(MAX_ROUNDS):
        report(0.2 + 0.7 * round_ / MAX_ROUNDS, f"output scale, round {round_ + 1}")
        try:
            trials.append(_try(setting, _scaled(parameters, scalables, scale), batches, scale))
        except MeasurementError:
            if not trials:
                raise
            scale = math.sqrt(scale * _nearest(trials, target).scale)  # went too far: overflow, or saturated logits
            continue
        if abs(trials[-1].relative_sensitivity / target - 1) <= SENSITIVITY_TOLERANCE:
            return trials[-1], True
        if not scalables or _is_immaterial(trials):
            break
        scale = math.exp(_next(trials, target))
    return _nearest(trials, target), False


def _try(setting: Setting, parameters: Parameters, batches: Sequence[Batch], scale: float) -> _Trial:
    """τ and ⟨∇_l, u_l⟩ at one output scale: means over the batches, each under its own balanced rates."""
    found = [measure_state(setting, parameters, batch, "balanced") for batch in batches]
    tau = statistics.fmean(m.relative_sensitivity for m in found)
    if tau == 0:
        raise MeasurementError("no-feature-motion", "the last hidden feature does not move: no block before it trains")
    units = zip(*(m.unit_contributions for m in found), strict=True)
    return _Trial(scale, tau, tuple(statistics.fmean(u) for u in units))


def _nearest(trials: Sequence[_Trial], target: float) -> _Trial:
    return min(trials, key=lambda t: abs(math.log(t.relative_sensitivity / target)))


def _is_immaterial(trials: Sequence[_Trial]) -> bool:
    """Whether τ does not respond to the scale, as with a norm after the output."""
    if len(trials) < 2:
        return False
    slope = _slope(trials[-2], trials[-1])
    return slope is not None and abs(slope) < 0.02


def _slope(a: _Trial, b: _Trial) -> float | None:
    """d log τ / d log scale between two trials."""
    run = math.log(b.scale / a.scale)
    return math.log(b.relative_sensitivity / a.relative_sensitivity) / run if run else None


def _next(trials: Sequence[_Trial], target: float) -> float:
    """The logarithm of the scale to try next."""
    last = trials[-1]
    slope = _slope(trials[-2], last) if len(trials) > 1 else None
    slope = max(-4.0, min(-0.25, slope)) if slope is not None else -1.0
    step = -math.log(last.relative_sensitivity / target) / slope
    proposal = math.log(last.scale) + max(-LARGEST_STEP, min(LARGEST_STEP, step))
    above = [math.log(t.scale) for t in trials if t.relative_sensitivity > target]
    below = [math.log(t.scale) for t in trials if t.relative_sensitivity < target]
    if above and below and max(above) < min(below) and not max(above) < proposal < min(below):
        return (max(above) + min(below)) / 2
    return proposal


def _scaled(parameters: Mapping[str, Tensor], scalables: Sequence[Scalable], scale: float) -> dict[str, Tensor]:
    scaled = dict(parameters)
    for scalable in scalables:
        multiply(scaled, scalable, scale)
    return scaled


def _balanced(network: Network, parameters: Parameters, units: Sequence[float]) -> dict[str, float]:
    """BC and LD: Eq. 8 from the contributions averaged over the batches; 0 for a frozen block."""
    trains = [any(parameters[n].requires_grad for n in block.parameters) for block in network.blocks]
    return {
        block.name: formula.balanced_rate(sum(trains), unit) if on else 0.0
        for block, on, unit in zip(network.blocks, trains, units, strict=True)
    }


def _unreached(output: str, target: float, nearest: _Trial) -> str:
    return (
        f"no scale of block {output!r} reaches the relative sensitivity {target:.3g}: "
        f"the nearest found is {nearest.relative_sensitivity:.3g} (saturated logits, or a norm after the output)"
    )
