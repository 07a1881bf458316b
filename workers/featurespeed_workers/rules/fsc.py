"""FSC (paper, Sec 4.2): Forward features, Sensitivities, Contributions — and the master rate from the feature step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count

from torch import Tensor

from featurespeed.contract import Granularity
from featurespeed_workers.balance import Balance, Slope, Slopes
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.measurement import Setting, measure_slopes
from featurespeed_workers.network import Block
from featurespeed_workers.passes import Batch, Parameters
from featurespeed_workers.rules.forward import Forwarded, scale_features
from featurespeed_workers.rules.groups import share_scales
from featurespeed_workers.rules.output_scale import Found, Trial, find_output_scale, rough_scale
from featurespeed_workers.rules.output_start import DrawnOutput, Head, State, ZeroOutput, drawn_like
from featurespeed_workers.rules.scaling import BlockScaling

Tell = Callable[[float, str], None]
"""Is given how far the work is, 0 to 1, and what is being done."""


def fsc(
    setting: Setting,
    parameters: Parameters,
    batches: Sequence[Batch],
    *,
    relative_sensitivity: float,
    feature_step: float,
    contributions: Mapping[str, float],
    largest_decay: float | None = None,
    granularity: Granularity = "block",
    zero_output: bool = False,
    tell: Tell = lambda fraction, message: None,
) -> BlockScaling:
    """Scale every block: SP by forward rescaling, FL by the output scale, BC and LD by Eq. 8, then δt = κ/τ.

    ``contributions`` are the weights by group of the blocks' contributions to the loss decay; equal ones are Eq. 8.
    ``largest_decay``: the part of the loss beyond which no steady step may go, to first order; κ is then smaller.
    ``granularity`` says what has a rate of its own; under ``group`` hidden blocks share their scales too.
    With ``zero_output`` the output matrices start at 0 and the rate of the first step has the part of their scale.
    The direction is the one that ``setting``'s optimizer settles to (see UpdateRule.sustained), from a fresh state.
    Raises MeasurementError for a network that cannot be scaled, naming the first layer concerned.
    """
    fresh = replace(setting, state=lambda name: {})
    setting = setting.sustained()
    balance = Balance.of(setting.network, contributions, granularity)
    tell(0.0, "forward features")
    *hidden, output = setting.network.blocks
    scalables = [(block.name, s) for block in hidden for s in block.scalables]
    drawn = {} if zero_output else _drawn(parameters, output)
    forward = scale_features(setting.network, {**parameters, **drawn}, batches, scalables)
    shared = share_scales(setting.network, forward.parameters) if granularity == "group" else None
    start = shared.parameters if shared else forward.parameters
    head: Head = ZeroOutput.of(fresh, start, batches) if zero_output else DrawnOutput(start, output, batches)

    def try_scale(scale: float, states: int | None = None) -> Trial:
        return _try(setting, head.states(scale)[:states], scale, balance)

    rounds = count(1)  # of both searches together, so that progress never goes back

    def tell_round(_: int) -> None:
        done = next(rounds)
        tell(min(0.2 + 0.02 * done, 0.99), f"output scale, round {done}")

    if isinstance(head, DrawnOutput) and head.immaterial(setting.network):
        found = Found(try_scale(1.0), "its scale is immaterial, as with a norm after the output")
    else:  # on the first batch alone to begin with, for a quarter of the work
        first = rough_scale(lambda scale: try_scale(scale, 1), relative_sensitivity, tell_round)
        found = find_output_scale(try_scale, relative_sensitivity, tell_round, first=first)
    trial, reached = found.trial, found.shortfall is None
    warnings = [
        *_drawn_text(output, drawn),
        *_unscaled(forward),
        *([] if reached else [_unreached(output.name, relative_sensitivity, found)]),
    ]
    if shared and shared.kinds > 1:
        warnings.append(f"hidden blocks are of {shared.kinds} shapes: each shape has its own std, all have one rate")
    tau = relative_sensitivity if reached else trial.relative_sensitivity
    if largest_decay is not None:
        feature_step = min(feature_step, largest_decay * trial.loss * tau)
    return BlockScaling(
        parameters=head.start(trial.scale),
        first_rates=head.first_rates(trial.scale),
        rates=balance.rates(trial.slopes),
        master_lr=feature_step / tau,
        relative_sensitivity=trial.relative_sensitivity,
        feature_step=feature_step,
        contributions=dict(contributions),
        granularity=granularity,
        notes=_notes(forward, balance, trial.slopes) | head.notes(trial.scale),
        warnings=tuple(warnings),
        stds=shared.stds if shared else {},
    )


def _drawn(parameters: Parameters, output: Block) -> dict[str, Tensor]:
    """New output matrices where they are all zero: zero has no scale, and no gradient reaches the blocks before."""
    names = (name for scalable in output.scalables for name in scalable.parameters)
    return {name: drawn_like(parameters[name]) for name in names if not parameters[name].any()}


def _drawn_text(output: Block, drawn: Mapping[str, Tensor]) -> list[str]:
    why = "is zero, so that no gradient reaches the blocks before it"
    return (
        [f"block {output.name!r} {why}: its scale is for weights that are drawn (report.apply draws)"] if drawn else []
    )


def _try(setting: Setting, states: Sequence[State], scale: float, balance: Balance) -> Trial:
    """τ and the slopes at one output scale: means over the states, each on its batch under its own balanced rates."""
    found = [measure_slopes(setting, parameters, batch, balance) for parameters, batch in states]
    tau = statistics.fmean(m.relative_sensitivity for m, _ in found)
    if tau == 0:
        raise MeasurementError("no-feature-motion", "the last hidden feature does not move: no block before it trains")
    each = [slopes for _, slopes in found]
    loss = statistics.fmean(m.loss for m, _ in found)
    return Trial(scale, tau, {name: Slope.mean([slopes[name] for slopes in each]) for name in each[0]}, loss)


def _notes(forward: Forwarded, balance: Balance, slopes: Slopes) -> dict[str, str]:
    """What a reader must know of a block: which scales are as they were and why, which rates are not its own doing."""
    why = {
        "its scale is immaterial, as behind a norm layer": forward.immaterial,
        "no scale brings its output to its target": forward.unreached,
    }
    notes = balance.notes(slopes)
    for reason, scalables in why.items():
        for block, scalable in scalables:
            notes.setdefault(block, []).append(f"{scalable.module}: left as it was, {reason}")
    return {block: "; ".join(parts) for block, parts in notes.items()}


def _unscaled(forward: Forwarded) -> list[str]:
    why = "a residual block whose branches are not named, a saturated activation, or a bias"
    return [
        f"block {block!r}: no scale brings {scalable.module!r} to rms {scalable.target_rms:.3g}; left as it was ({why})"
        for block, scalable in forward.unreached
    ]


def _unreached(output: str, target: float, found: Found) -> str:
    return (
        f"no scale of block {output!r} was found that reaches the relative sensitivity {target:.3g}; "
        f"the nearest is {found.trial.relative_sensitivity:.3g} ({found.shortfall})"
    )
