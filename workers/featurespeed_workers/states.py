"""The states whose properties a report judges: PyTorch's defaults and the recommendation, or what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from featurespeed.budget import stability_examples
from featurespeed.contract import JobRequest
from featurespeed_workers.balance import Balance
from featurespeed_workers.data import Source
from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.drift import build_up
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.kernel import Kernels, kernel_cosines
from featurespeed_workers.listening import CellProgress, Listener
from featurespeed_workers.measurement import Rates, Setting, StateMeasurement, measure_state
from featurespeed_workers.passes import Batch, Parameters
from featurespeed_workers.properties import SeedState
from featurespeed_workers.seeds import Checkpoint
from featurespeed_workers.stability import Stability, stability
from featurespeed_workers.starts import Start, default_start

Warnings = tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """How a state is to be judged: its peak δt, the κ that this is to give, and what blocks should contribute."""

    master_lr: float | None
    feature_step: float
    balance: Balance
    stability: bool
    """Whether that is to be measured."""
    settles: bool = True
    """Whether the optimizer is fresh, and its momentum still to build up; else its present update is measured."""
    examples: int | None = None
    """How many examples of a batch the second derivatives may take at once (``None``: all)."""


def seed_state(
    setting: Setting, parameters: Parameters, batch: Batch, measured: StateMeasurement, how: Judgement
) -> tuple[SeedState, Warnings]:
    """The state of which ``measured`` is the measurement, along the update that a fresh optimizer settles to.

    That is another one than the first step under momentum: then it is measured anew, at the same rates.
    """
    trained = [name for name, p in parameters.items() if p.requires_grad]
    if how.settles and any(setting.rule(name).sustained() != setting.rule(name) for name in trained):
        setting = setting.sustained()
        measured = measure_state(setting, parameters, batch, measured.all_rates)
    found, warnings = _stability(setting, parameters, batch, measured, how)
    return SeedState(measured, _shares(parameters, how.balance), how.master_lr, how.feature_step, found), warnings


def _shares(parameters: Parameters, balance: Balance) -> tuple[float, ...]:
    blocks = zip(balance.network.blocks, balance.weights, strict=True)
    weights = [w if any(parameters[n].requires_grad for n in block.parameters) else 0.0 for block, w in blocks]
    total = math.fsum(weights) or 1.0
    return tuple(weight / total for weight in weights)


def _stability(
    setting: Setting, parameters: Parameters, batch: Batch, measured: StateMeasurement, how: Judgement
) -> tuple[Stability | None, Warnings]:
    if not how.stability:
        return None, ()
    if how.examples == 0:
        return None, (
            "stability is not measured: no memory for the second derivatives of one example "
            "(with batch norm or dropout: of all)",
        )
    try:
        return stability(setting, parameters, batch, measured, examples=how.examples), ()
    except (RuntimeError, MeasurementError) as error:  # no second derivative, or no memory for it
        return None, (f"stability is not measured: {_first_line(error)}",)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def measured_state(
    setting: Setting, parameters: Parameters, batch: Batch, rates: Rates, how: Judgement
) -> tuple[SeedState | None, Warnings]:
    """The state at given rates; instead of it a warning if it cannot be measured."""
    try:
        measured = measure_state(setting, parameters, batch, rates)
        return seed_state(setting, parameters, batch, measured, how)
    except MeasurementError as error:
        return None, (f"it cannot be measured: {error.detail}",)


def default_state(
    request: JobRequest, seed: int, source: Source, device: torch.device, listener: Listener
) -> tuple[SeedState | None, Warnings]:
    """The request's network under PyTorch's initialization and learning rate; a warning if it cannot be measured."""
    listener(CellProgress(fraction=0.0, message="measuring PyTorch's defaults"))
    begun = default_start(request, seed, source, device)
    scaling = begun.scaling
    how = _judgement(request, begun, scaling.master_lr)
    found, warnings = measured_state(begun.setting, scaling.parameters, begun.batch(0), scaling.rates, how)
    return found, tuple(f"seed {seed}: under PyTorch's defaults, {w}" for w in warnings)


def begun_state(
    request: JobRequest, seed: int, begun: Start, checkpoints: Sequence[Checkpoint], listener: Listener
) -> tuple[SeedState | None, Kernels | None, Warnings]:
    """The state in which a run begins, and its kernels if they are asked for.

    It is that under the recommendation, or for kind ``measure`` under what was asked.
    """
    measured = checkpoints[0].measurement
    if request.kind == "recommend":
        master_lr: float | None = begun.scaling.master_lr
    elif request.learning_rates == "balanced":
        master_lr = request.measurement.master_lr
    else:
        master_lr = request.measurement.master_lr or 1.0
    how = _judgement(request, begun, master_lr)
    if begun.scaling.first_rates:
        return _after_first_step(request, begun, checkpoints, how), None, ()
    listener(CellProgress(fraction=1.0, message="measuring stability"))
    found, warnings = seed_state(begun.setting, begun.scaling.parameters, begun.batch(0), measured, how)
    kernels, more = _kernels(request, seed, begun, measured.all_rates, listener)
    return found, kernels, tuple(f"seed {seed}: {w}" for w in (*warnings, *more))


def _after_first_step(
    request: JobRequest, begun: Start, checkpoints: Sequence[Checkpoint], how: Judgement
) -> SeedState | None:
    """An output that starts at zero has its properties from the second step on (paper, App. B); stability is left out.

    Momentum begins to build up only then: hidden blocks had no gradient before.
    """
    measured = next((c.measurement for c in checkpoints if c.step == 1), None)
    if measured is None:
        return None
    gain = build_up(UpdateRule.from_contract(request.optimizer))
    shares = _shares(begun.scaling.parameters, how.balance)
    return SeedState(measured, shares, (how.master_lr or 1.0) * gain, how.feature_step, None)


def _judgement(request: JobRequest, begun: Start, master_lr: float | None) -> Judgement:
    balance = Balance.requested(request, begun.setting.network)
    wanted = begun.scaling.feature_step or request.feature_step  # under mse the rule may have taken less
    stable, examples = request.measures_stability, stability_examples(request)
    return Judgement(master_lr, wanted, balance, stable, examples=examples)


def _kernels(
    request: JobRequest, seed: int, begun: Start, rates: Mapping[str, float], listener: Listener
) -> tuple[Kernels | None, Warnings]:
    if not (probes := request.measurement.kernel_probes):
        return None, ()

    def tell(fraction: float) -> None:
        listener(CellProgress(fraction=1.0, message=f"probing kernels, {fraction:.0%}"))

    state = (begun.setting, begun.scaling.parameters, begun.batch(0), rates)
    try:
        return kernel_cosines(*state, probes=probes, seed=seed, tell=tell), ()
    except NotImplementedError as error:
        return None, (f"kernels are not probed: {_first_line(error)}",)
