"""What one seed gives, and the report made of all seeds."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence

import torch

from featurespeed.contract import (
    BlockRecommendation,
    BranchScale,
    Evidence,
    GeometricStatistic,
    Kind,
    LayerMeasurement,
    Measurement,
    OptimizerName,
    ParameterRecommendation,
    Provenance,
    Recommendation,
    Report,
    Statistic,
)
from featurespeed.contract.base import Model
from featurespeed.defaults import WARMUP_FRACTION
from featurespeed.version import __version__
from featurespeed_workers.drift import Drift, with_drift
from featurespeed_workers.loss_curves import SeedLosses, over_seeds
from featurespeed_workers.measurement import LayerValues, Setting, StateMeasurement
from featurespeed_workers.passes import norm
from featurespeed_workers.rules.scaling import BlockScaling

RESIDUAL_BOUNDS = {"float32": 1e-4, "float64": 1e-10, "bfloat16": 5e-2}
"""The two sides of the formula must agree to this, relatively, in an exact measurement."""
FINITE_DIFFERENCE_BOUND = 5e-2


class Tensors(Model):
    """Initialization of one tensor for one seed: ``mean`` + ``std`` · noise; and which optimizer steps it."""

    name: str
    block: str
    shape: tuple[int, ...]
    mean: float
    std: float
    optimizer: OptimizerName | None = None


class SeedScaling(Model):
    """One seed's recommendation; ``rates`` are η_l in the order of the blocks, δt left out."""

    blocks: tuple[str, ...]
    rates: tuple[float, ...]
    master_lr: float
    relative_sensitivity: float | None
    notes: dict[str, str]
    contributions: dict[str, float] | None = None
    tensors: tuple[Tensors, ...]


class Checkpoint(Model):
    """One seed's measurement at one step."""

    step: int
    measurement: StateMeasurement
    drift: Drift | None = None


class Cell(Model):
    """Everything found for one seed; serialises to JSON without loss."""

    seed: int
    device: str
    dtype: str
    threads: int
    checkpoints: tuple[Checkpoint, ...]
    scaling: SeedScaling | None = None
    branch_scale: BranchScale | None = None
    losses: SeedLosses | None = None
    warnings: tuple[str, ...] = ()


def seed_scaling(setting: Setting, scaling: BlockScaling) -> SeedScaling:
    """The scalars of a scaling, and the optimizer of each parameter."""
    network = setting.network
    tensors = [
        Tensors(
            name=name,
            block=block.name,
            shape=tuple(p.shape),
            mean=mean,
            std=std,
            optimizer=setting.rule(name).name if p.requires_grad else None,
        )
        for block in network.blocks
        for name in block.parameters
        for p in [scaling.parameters[name]]
        for mean, std in [_mean_and_std(p.detach(), scaling.stds.get(block.name))]
    ]
    return SeedScaling(
        blocks=tuple(b.name for b in network.blocks),
        rates=tuple(scaling.rates[b.name] for b in network.blocks),
        master_lr=scaling.master_lr,
        relative_sensitivity=scaling.relative_sensitivity,
        notes=scaling.notes,
        contributions=scaling.contributions,
        tensors=tuple(tensors),
    )


def _mean_and_std(p: torch.Tensor, given: float | None) -> tuple[float, float]:
    """(value, 0) for a constant tensor (zero biases, unit gains), else (0, rms): weights are drawn about zero."""
    if given is not None and p.ndim > 1:
        return 0.0, given
    first = float(p.flatten()[0])
    drawn = p.numel() == 1 and (p.ndim > 1 or first not in (0.0, 1.0))  # one number may be a draw that looks constant
    constant = bool((p == first).all()) and not drawn
    return (first, 0.0) if constant else (0.0, norm(p) / math.sqrt(p.numel()))


def assemble(
    kind: Kind, cells: Sequence[Cell], *, feature_step: float, spec_sha256: str | None, wall_seconds: float
) -> Report:
    """The report over all seeds, in the order of ``cells``; scales and rates are combined by geometric mean."""
    steps = [c.step for c in cells[0].checkpoints]
    common = [s for s in steps if all(any(c.step == s for c in cell.checkpoints) for cell in cells)]
    measurements = tuple(_over_seeds(step, [_at(cell, step) for cell in cells]) for step in common)
    losses = [cell.losses for cell in cells if cell.losses is not None]
    scalings = [cell.scaling for cell in cells if cell.scaling is not None]
    first = cells[0]
    return Report(
        kind=kind,
        recommendation=_recommendation(scalings, feature_step) if scalings else None,
        measurements=measurements,
        branch_scale=first.branch_scale,
        evidence=Evidence(loss_curves=over_seeds(losses)) if losses else None,
        warnings=tuple(dict.fromkeys([*(w for c in cells for w in c.warnings), *_doubts(cells)])),
        provenance=Provenance(
            featurespeed=__version__,
            torch=torch.__version__,
            python=platform.python_version(),
            device=first.device,
            dtype=first.dtype,
            threads=first.threads,
            seeds=tuple(cell.seed for cell in cells),
            spec_sha256=spec_sha256,
            wall_seconds=wall_seconds,
        ),
    )


def device_name(device: torch.device) -> str:
    """The GPU's own name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _at(cell: Cell, step: int) -> Checkpoint:
    return next(c for c in cell.checkpoints if c.step == step)


def _over_seeds(step: int, seeds: Sequence[Checkpoint]) -> Measurement:
    found = _measurement(step, [c.measurement for c in seeds])
    drifts = [c.drift for c in seeds if c.drift is not None]
    return with_drift(found, drifts) if drifts else found


def _measurement(step: int, seeds: Sequence[StateMeasurement]) -> Measurement:
    loss = Statistic.of([m.loss for m in seeds])
    return Measurement(
        step=step,
        loss=loss.mean or 0.0,
        loss_decay=math.fsum(m.loss_decay for m in seeds) / len(seeds),
        formula_residual=max(m.formula_residual for m in seeds),
        method="exact" if all(m.method == "exact" for m in seeds) else "finite_difference",
        loss_over_seeds=loss,
        layers=tuple(_layer(i, [m.layers[i] for m in seeds]) for i in range(len(seeds[0].layers))),
    )


def _layer(index: int, seeds: Sequence[LayerValues]) -> LayerMeasurement:
    def over(quantity: Callable[[LayerValues], float | None]) -> Statistic:
        return Statistic.of([quantity(v) for v in seeds])

    return LayerMeasurement(
        index=index + 1,
        name=seeds[0].name,
        size=seeds[0].size,
        angle=over(lambda v: v.angle),
        cos=over(lambda v: v.cos),
        feature_rms=over(lambda v: v.feature_rms),
        feature_speed=over(lambda v: v.feature_speed),
        backward_rms=over(lambda v: v.backward_rms),
        sensitivity=over(lambda v: v.sensitivity),
        contribution=over(lambda v: v.contribution),
        gradient_norm=over(lambda v: v.gradient_norm),
    )


def _recommendation(seeds: Sequence[SeedScaling], feature_step: float) -> Recommendation:
    master = GeometricStatistic.of([s.master_lr for s in seeds])
    rates = [GeometricStatistic.of([s.rates[i] * s.master_lr for s in seeds]) for i in range(len(seeds[0].blocks))]
    stds = [_block_std(block, seeds) for block in seeds[0].blocks]
    by_block = dict(zip(seeds[0].blocks, rates, strict=True))
    taus = [s.relative_sensitivity for s in seeds if s.relative_sensitivity is not None]
    tau = GeometricStatistic.of(taus) if taus else None
    return Recommendation(
        master_lr=master.mean,
        output_multiplier=1.0,
        relative_sensitivity=tau.mean if tau else None,
        feature_step=feature_step if tau else None,
        warmup_fraction=WARMUP_FRACTION,
        master_lr_over_seeds=master,
        relative_sensitivity_over_seeds=tau,
        contributions=seeds[0].contributions,
        blocks=tuple(
            BlockRecommendation(
                index=i + 1,
                name=name,
                init_std=stds[i].mean,
                multiplier=1.0,
                lr=rates[i].mean,
                init_std_over_seeds=stds[i],
                lr_over_seeds=rates[i],
                note=next((s.notes[name] for s in seeds if name in s.notes), None),
            )
            for i, name in enumerate(seeds[0].blocks)
        ),
        parameters=tuple(
            ParameterRecommendation(
                name=t.name,
                block=t.block,
                shape=t.shape,
                init_mean=t.mean,
                init_std=GeometricStatistic.of([s.tensors[i].std for s in seeds]).mean,
                lr=by_block[t.block].mean,
                optimizer=t.optimizer,
            )
            for i, t in enumerate(seeds[0].tensors)
        ),
    )


def _block_std(block: str, seeds: Sequence[SeedScaling]) -> GeometricStatistic:
    """Root mean square over the entries of the block's matrices (of all its tensors if it has none)."""

    def std(scaling: SeedScaling) -> float:
        own = [t for t in scaling.tensors if t.block == block]
        matrices = [t for t in own if len(t.shape) > 1] or own
        entries = sum(math.prod(t.shape) for t in matrices)
        return math.sqrt(sum(t.std**2 * math.prod(t.shape) for t in matrices) / entries) if entries else 0.0

    return GeometricStatistic.of([std(s) for s in seeds])


def _doubts(cells: Sequence[Cell]) -> list[str]:
    """Warnings about the measurements themselves."""
    doubts = []
    for cell in cells:
        for checkpoint in cell.checkpoints:
            m, where = checkpoint.measurement, f"seed {cell.seed}, step {checkpoint.step}"
            bound = RESIDUAL_BOUNDS.get(cell.dtype, 5e-2) if m.method == "exact" else FINITE_DIFFERENCE_BOUND
            if m.formula_residual > bound:
                doubts.append(
                    f"{where}: the two sides of the formula differ by {m.formula_residual:.1e} (> {bound:.0e})"
                )
            still = [v.name for v, rate in zip(m.layers, m.rates, strict=True) if rate and v.gradient_norm == 0]
            if still:
                doubts.append(f"{where}: the gradient of block {still[0]!r} is zero: it does not learn")
    return doubts
