"""A cell: one request under one seed, the unit of work of a Ray task.

Cells are deterministic in (request, seed): computing one again gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from featurespeed.contract import JobRequest, MeasurementEvent, Report, is_selected, lookup
from featurespeed.contract.base import Model
from featurespeed.defaults import RECOMMENDATION_BATCHES
from featurespeed_workers import data, seeds
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.losses import loss_function
from featurespeed_workers.measurement import Rates, Setting, StateMeasurement, measure_state
from featurespeed_workers.network import Network
from featurespeed_workers.passes import Batch
from featurespeed_workers.rules.fsc import fsc
from featurespeed_workers.rules.scaling import BlockScaling
from featurespeed_workers.rules.table import closed_form, table1_of
from featurespeed_workers.seeds import Cell, Checkpoint, device_name, seed_scaling
from featurespeed_workers.training import Run, Schedule, train

__all__ = ["Cell", "CellProgress", "Listener", "assemble", "ignore", "run_cell"]


class CellProgress(Model):
    """How far a cell is (0 to 1), and what it is doing."""

    fraction: float
    message: str


Listener = Callable[[CellProgress | MeasurementEvent], None]


def ignore(event: CellProgress | MeasurementEvent) -> None:
    """A listener that does nothing."""


def run_cell(
    request: JobRequest,
    seed: int,
    *,
    dataset: Path | None = None,
    listener: Listener = ignore,
    device: str | None = None,
) -> Cell:
    """Answer ``request`` for one seed; ``dataset`` is the local file of data kind ``dataset``.

    ``device`` is a torch device; unless given, the GPU if there is one. Raises MeasurementError if the network cannot
    be measured, SpecError if the dataset does not fit the request.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype: torch.dtype = getattr(torch, request.measurement.dtype)
    listener(CellProgress(fraction=0.0, message="building the network"))
    source = data.load(request, dataset=dataset, dtype=dtype, device=where)
    network = _built(request, seed, dtype, where)
    rule = UpdateRule.from_contract(request.optimizer)
    setting = Setting(network, loss_function(request.loss), lambda name: rule, method=request.measurement.method)

    def batch(step: int) -> Batch:
        return source.batch(seed, step)

    scaling = _scaling(request, setting, batch, listener)
    parameters = _explicit(request, network, scaling.parameters, seed)
    checkpoints, warnings = _measured(request, seed, setting, replace(scaling, parameters=parameters), batch, listener)
    return Cell(
        seed=seed,
        device=device_name(where),
        dtype=request.measurement.dtype,
        threads=torch.get_num_threads(),
        checkpoints=checkpoints,
        scaling=seed_scaling(network, scaling) if request.kind == "recommend" else None,
        warnings=(*(f"seed {seed}: {w}" for w in scaling.warnings), *warnings),
    )


def assemble(request: JobRequest, cells: Sequence[Cell], *, wall_seconds: float) -> Report:
    """The report over all seeds; ``cells`` in the order of ``request.measurement.seeds``."""
    return seeds.assemble(
        request.kind,
        cells,
        feature_step=request.scaling.feature_step,
        spec_sha256=request.sha256,
        wall_seconds=wall_seconds,
    )


def _built(request: JobRequest, seed: int, dtype: torch.dtype, device: torch.device) -> Network:
    """The network at the rule's starting point; frozen blocks require no gradient."""
    network = build(request.architecture, seed=seed)
    if request.rule == "fsc":
        base_initialize(network, request.architecture, seed=seed)
    network.module.to(device=device, dtype=dtype)
    parameters: dict[str, Tensor] = dict(network.module.named_parameters())
    for block in network.blocks:
        for name in block.parameters:
            parameters[name].requires_grad_(not is_selected(block.name, request.frozen))
    if request.rule in ("ntk", "mf_mup"):
        _draw(network, parameters, table1_of(request).std, seed)
    return network


def _scaling(request: JobRequest, setting: Setting, batch: Callable[[int], Batch], listener: Listener) -> BlockScaling:
    """Scales and rates by the request's rule."""
    network = setting.network
    parameters: dict[str, Tensor] = dict(network.module.named_parameters())
    if request.rule == "fsc":
        return fsc(
            setting,
            parameters,
            [batch(step) for step in range(RECOMMENDATION_BATCHES)],
            relative_sensitivity=request.scaling.relative_sensitivity,
            feature_step=request.scaling.feature_step,
            tell=lambda fraction, message: listener(CellProgress(fraction=0.8 * fraction, message=message)),
        )
    return closed_form(request, network, parameters)


def _explicit(request: JobRequest, network: Network, parameters: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Parameters with the request's own ``initialization`` on top."""
    parameters = dict(parameters)
    if request.initialization is not None:
        _draw(network, parameters, request.initialization, seed)
    return parameters


def _draw(network: Network, parameters: dict[str, Tensor], stds: dict[str, float], seed: int) -> None:
    """Draw the weight matrices of the blocks that ``stds`` names from N(0, std²), in place; on the CPU, by seed."""
    generator = torch.Generator().manual_seed(seed)
    for block in network.blocks:
        std = lookup(block.name, stds)
        for name in block.parameters:
            noise = torch.randn(parameters[name].shape, generator=generator)  # drawn in any case: blocks independent
            if std is not None and parameters[name].ndim > 1:
                parameters[name].data.copy_(noise * std)


def _measured(
    request: JobRequest,
    seed: int,
    setting: Setting,
    scaling: BlockScaling,
    batch: Callable[[int], Batch],
    listener: Listener,
) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """The measurement at initialization and, with ``steps``, along training; and what went wrong on the way."""
    checkpoints, warnings = [], []
    steps = request.measurement.steps
    try:
        for step, found in _trajectory(request, setting, scaling, batch):
            checkpoints.append(Checkpoint(step=step, measurement=found))
            angles = tuple(layer.angle for layer in found.layers)
            listener(MeasurementEvent(seed=seed, step=step, loss=found.loss, angles=angles))
            fraction = 0.8 + 0.2 * (step / steps if steps else 1.0)
            listener(CellProgress(fraction=fraction, message=f"measured at step {step}"))
    except MeasurementError as error:
        if not checkpoints:
            raise
        warnings.append(f"seed {seed}: training stopped after step {checkpoints[-1].step}: {error.detail}")
    return tuple(checkpoints), tuple(warnings)


def _trajectory(
    request: JobRequest, setting: Setting, scaling: BlockScaling, batch: Callable[[int], Batch]
) -> Iterator[tuple[int, StateMeasurement]]:
    settings, names = request.measurement, [block.name for block in setting.network.blocks]
    rates = scaling.rates if request.kind == "recommend" else _requested_rates(request, names)
    first = measure_state(setting, scaling.parameters, batch(0), rates)
    yield 0, first
    if settings.steps == 0:
        return
    master = scaling.master_lr if request.kind == "recommend" else _master_lr(request, first)
    schedule = Schedule(settings.steps, constant=request.kind == "measure")
    run = Run(request.optimizer, dict(zip(names, first.rates, strict=True)), master, schedule, settings.every)
    yield from train(setting, scaling.parameters, batch, run)


def _requested_rates(request: JobRequest, names: list[str]) -> Rates:
    given = request.learning_rates
    if given == "balanced":
        return "balanced"
    return {name: (lookup(name, given) or 0.0) if isinstance(given, dict) else float(given) for name in names}


def _master_lr(request: JobRequest, first: StateMeasurement) -> float:
    """δt for kind ``measure``: as requested, else from the feature step of the steady update under balanced rates."""
    if request.measurement.master_lr is not None:
        return request.measurement.master_lr
    if request.learning_rates != "balanced" or first.relative_sensitivity == 0:
        return 1.0
    steady = UpdateRule.from_contract(request.optimizer).sustained().gain
    return request.scaling.feature_step / first.relative_sensitivity / steady
