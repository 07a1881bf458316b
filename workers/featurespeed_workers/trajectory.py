"""The state of one seed, measured at initialization and along training."""

from __future__ import annotations

from collections.abc import Iterator

from featurespeed.contract import JobRequest, MeasurementEvent, lookup
from featurespeed_workers.balance import Balance
from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.drift import Drift, balanced_rate_drift
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.listening import CellProgress, Listener
from featurespeed_workers.measurement import Rates, StateMeasurement, measure_state
from featurespeed_workers.network import Network
from featurespeed_workers.seeds import Checkpoint
from featurespeed_workers.starts import Start
from featurespeed_workers.training import Record, Run, Schedule, train


def measured(
    request: JobRequest, seed: int, begun: Start, listener: Listener, record: Record
) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """The measurement at initialization and, with ``steps``, along training; and what went wrong on the way.

    ``record`` is given the losses of the training.
    """
    checkpoints: list[Checkpoint] = []
    warnings = []
    steps, rule = request.measurement.steps, UpdateRule.from_contract(request.optimizer)
    try:
        for step, found in _trajectory(request, begun, record):
            if not checkpoints or (step == 1 and begun.scaling.first_rates):  # at zero output, gradients are zero
                first = found
            measurable = steps and (step or not begun.scaling.first_rates)
            drift = _drift(rule, first, found) if measurable else None
            checkpoints.append(Checkpoint(step=step, measurement=found, drift=drift))
            angles = tuple(layer.angle for layer in found.layers)
            listener(MeasurementEvent(seed=seed, step=step, loss=found.loss, angles=angles))
            fraction = 0.8 + 0.2 * (step / steps if steps else 1.0)
            listener(CellProgress(fraction=fraction, message=f"measured at step {step}"))
    except MeasurementError as error:
        if not checkpoints:
            raise
        warnings.append(f"seed {seed}: training stopped after step {checkpoints[-1].step}: {error.detail}")
    return tuple(checkpoints), tuple(warnings)


def _drift(rule: UpdateRule, first: StateMeasurement, found: StateMeasurement) -> Drift:
    if found is first:  # over itself, without momentum's build-up
        return tuple(1.0 if eta else None for eta in first.rates)
    return balanced_rate_drift(rule, first, found)


def _trajectory(request: JobRequest, begun: Start, record: Record) -> Iterator[tuple[int, StateMeasurement]]:
    settings, scaling = request.measurement, begun.scaling
    rates = scaling.rates if request.kind == "recommend" else _requested_rates(request, begun.setting.network)
    first = measure_state(begun.setting, scaling.parameters, begun.batch(0), rates)
    yield 0, first
    if settings.steps == 0 and not scaling.first_rates:
        return
    master = scaling.master_lr if request.kind == "recommend" else _master_lr(request, first)
    steps = settings.steps or 1  # an output that starts at zero shows its balance after one step
    schedule = Schedule(steps, constant=request.kind == "measure")
    run = Run(request.optimizer, first.all_rates, master, schedule, settings.every, first_rates=scaling.first_rates)
    yield from train(begun.setting, scaling.parameters, begun.batch, run, record)


def _requested_rates(request: JobRequest, network: Network) -> Rates:
    given, names = request.learning_rates, [block.name for block in network.blocks]
    if given == "balanced":
        return Balance.requested(request, network)
    return {name: (lookup(name, given) or 0.0) if isinstance(given, dict) else float(given) for name in names}


def _master_lr(request: JobRequest, first: StateMeasurement) -> float:
    """δt for kind ``measure``: as requested, else from the feature step of the steady update under balanced rates."""
    if request.measurement.master_lr is not None:
        return request.measurement.master_lr
    if request.learning_rates != "balanced" or first.relative_sensitivity == 0:
        return 1.0
    step = request.feature_step / first.relative_sensitivity
    if request.largest_decay is not None and first.loss_decay > 0:
        step = min(step, request.largest_decay * first.loss / first.loss_decay)
    return step / UpdateRule.from_contract(request.optimizer).sustained().gain
