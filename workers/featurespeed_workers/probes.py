"""One probe: a short training run from the closed-form answer, with κ times a factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from featurespeed.contract import JobRequest, Optimizer
from featurespeed_workers import data
from featurespeed_workers.branch_scale import with_beta
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.listening import CellProgress, Listener, ignore
from featurespeed_workers.measurement import Setting
from featurespeed_workers.passes import Batch, Parameters, norm, same_randomness, seeded
from featurespeed_workers.recommendation import SeedScaling
from featurespeed_workers.refinement import Candidate, Probe, has_diverged, result
from featurespeed_workers.rules.output_start import drawn_like
from featurespeed_workers.seeds import Cell
from featurespeed_workers.starts import unscaled
from featurespeed_workers.training import Run, Schedule, train

FIRST_STEP = 1_000_000
"""The step number of a probe's first batch: beyond those of the closed form and of any measured training."""
PART = 4
"""A probe is the beginning of a training so many times longer: its warm-up and a peak, but no end, where rates that are
too high for a whole training would still look good."""


@dataclass(frozen=True)
class Probed:
    """What is the same for all probes of one seed: the closed-form answer, and the batches by probe step from 0."""

    setting: Setting
    parameters: Parameters
    """As they were before the closed form scaled them."""
    scaling: SeedScaling
    optimizer: Optimizer
    batch: Callable[[int], Batch]
    seed: int


def run_probe_cell(
    request: JobRequest,
    candidate: Candidate,
    cell: Cell,
    *,
    dataset: Path | None = None,
    listener: Listener = ignore,
    device: str | None = None,
) -> Probe:
    """The probe of a candidate under the seed of ``cell``, from the scaling found there."""
    refine = request.scaling.refine
    assert refine is not None
    assert cell.scaling is not None
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    listener(CellProgress(fraction=0.0, message="building the network"))
    source = data.load(request, dataset=dataset, dtype=getattr(torch, request.measurement.dtype), device=where)
    if cell.branch_scale is not None:
        request = with_beta(request, cell.branch_scale.beta)
    setting = unscaled(request, cell.seed, where)
    probed = Probed(
        setting,
        dict(setting.network.module.named_parameters()),
        cell.scaling,
        request.optimizer,
        lambda step: source.batch(cell.seed, FIRST_STEP + step),
        cell.seed,
    )
    with seeded(cell.seed, where):
        return run_probe(probed, candidate, refine.steps, listener)


def run_probe(probed: Probed, candidate: Candidate, steps: int, listener: Listener = ignore) -> Probe:
    """The first ``steps`` of a training of PART times as many; a probe that diverges is stopped, which is no error.

    The last step sees the first one's batch again: whether the loss has risen is then no matter of the batch.
    """
    losses: list[float] = []

    def record(step: int, loss: float) -> None:
        losses.append(loss)
        if has_diverged(loss, losses[0]):
            raise MeasurementError("diverged", f"the loss is {loss:g} at step {step}")
        if step % max(1, steps // 50) == 0:
            message = f"κ × {candidate.factor:g}, step {step} of {steps}"
            listener(CellProgress(fraction=step / steps, message=message))

    scaling = probed.scaling
    rates = {tensor.name: tensor.rate for tensor in scaling.tensors}
    master = scaling.master_lr * candidate.factor
    schedule = Schedule(PART * steps)
    run = Run(probed.optimizer, rates, master, schedule, every=None, steps=steps, first_rates=scaling.first_rates)
    start = rescaled(probed.parameters, scaling)
    diverged = False
    try:
        with same_randomness(next(iter(start.values())).device):
            for _ in train(probed.setting, start, lambda step: probed.batch(step % (steps - 1)), run, record):
                pass
    except MeasurementError as error:  # of the record, or of a loss that is not finite
        if error.type != "diverged":
            raise
        diverged = True
    return result(candidate, probed.seed, losses, diverged=diverged)


def rescaled(parameters: Parameters, scaling: SeedScaling) -> dict[str, Tensor]:
    """Every tensor at the scale that the closed form gave it: multiplied until its rms is that of ``scaling``."""
    targets: Mapping[str, float] = {t.name: t.std or abs(t.mean) for t in scaling.tensors}
    return {name: _with_rms(p, targets[name]) if name in targets else p for name, p in parameters.items()}


def _with_rms(p: Tensor, rms: float) -> Tensor:
    if p.ndim > 1 and rms and not p.any():
        p = drawn_like(p)
    now = norm(p) / math.sqrt(p.numel())
    return (p.detach() * (rms / now)).requires_grad_(p.requires_grad) if now else p
