"""What one seed gives, and the report made of all seeds."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence

import torch

from featurespeed.contract import (
    BranchScale,
    Evidence,
    Kind,
    LayerMeasurement,
    Measurement,
    Provenance,
    Report,
    Statistic,
)
from featurespeed.contract.base import Model
from featurespeed.version import __version__
from featurespeed_workers.drift import Drift, with_drift
from featurespeed_workers.kernel import Kernels
from featurespeed_workers.loss_curves import SeedLosses, over_seeds
from featurespeed_workers.measurement import LayerValues, StateMeasurement
from featurespeed_workers.methods import ORDER, residual_bound
from featurespeed_workers.properties import SeedState
from featurespeed_workers.recommendation import SeedScaling, recommendation
from featurespeed_workers.summaries import properties_of, stability_of, with_kernels


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
    before: SeedState | None = None
    after: SeedState | None = None
    kernels: Kernels | None = None
    warnings: tuple[str, ...] = ()


def assemble(kind: Kind, cells: Sequence[Cell], *, spec_sha256: str | None, wall_seconds: float) -> Report:
    """The report over all seeds, in the order of ``cells``; scales and rates are combined by geometric mean."""
    steps = [c.step for c in cells[0].checkpoints]
    common = [s for s in steps if all(any(c.step == s for c in cell.checkpoints) for cell in cells)]
    initial, *later = (_over_seeds(step, [_at(cell, step) for cell in cells]) for step in common)
    losses = [cell.losses for cell in cells if cell.losses is not None]
    scalings = [cell.scaling for cell in cells if cell.scaling is not None]
    first = cells[0]
    return Report(
        kind=kind,
        recommendation=recommendation(scalings) if scalings else None,
        measurements=(with_kernels(initial, [cell.kernels for cell in cells]), *later),
        before=_before(cells) if scalings else None,
        properties=properties_of([cell.before for cell in cells], [cell.after for cell in cells]),
        stability=stability_of([cell.after or cell.before for cell in cells]),
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


def _before(cells: Sequence[Cell]) -> Measurement | None:
    """The state before the recommendation; ``None`` if under one of the seeds it cannot be measured."""
    states = [cell.before for cell in cells if cell.before is not None]
    return _measurement(0, [state.measurement for state in states]) if len(states) == len(cells) else None


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
        method=max((m.method for m in seeds), key=(*ORDER, "finite_difference").index),
        cos_error=max((m.cos_error for m in seeds if m.cos_error is not None), default=None),
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


def _doubts(cells: Sequence[Cell]) -> list[str]:
    """Warnings about the measurements themselves."""
    doubts = _stand_ins([c.measurement for cell in cells for c in cell.checkpoints])
    for cell in cells:
        for checkpoint in cell.checkpoints:
            m, where = checkpoint.measurement, f"seed {cell.seed}, step {checkpoint.step}"
            bound = residual_bound(m.method, m.precision or cell.dtype)
            if m.formula_residual > bound:
                doubts.append(
                    f"{where}: the two sides of the formula differ by {m.formula_residual:.1e} (> {bound:.0e})"
                )
            still = [v.name for v, rate in zip(m.layers, m.rates, strict=True) if rate and v.gradient_norm == 0]
            from_zero = checkpoint.step == 0 and cell.scaling is not None and cell.scaling.first_rates
            if still and not from_zero:
                doubts.append(f"{where}: the gradient of block {still[0]!r} is zero: it does not learn")
    return doubts


def _stand_ins(found: Sequence[StateMeasurement]) -> list[str]:
    """By what was measured where forward mode does not do, why, and the error that it adds."""
    told = []
    for reason, method in dict.fromkeys((m.reason, m.method) for m in found if m.reason is not None):
        errors = [m.cos_error for m in found if (m.reason, m.method) == (reason, method) and m.cos_error is not None]
        added = f"about {max(errors):.0e} to cos θ" if errors else "no error but rounding"
        told.append(f"{reason}: measured by {method.replace('_', ' ')}, which adds {added}")
    return told
