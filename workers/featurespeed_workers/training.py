"""A training run under given block learning rates, measured at checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from featurespeed.contract import Optimizer
from featurespeed.defaults import WARMUP_FRACTION
from featurespeed_workers.balance import rate_of
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.measurement import Setting, StateMeasurement, measure_state
from featurespeed_workers.network import Block
from featurespeed_workers.optimizers import make_optimizers, state_of
from featurespeed_workers.passes import Batch, forward, under


@dataclass(frozen=True)
class Schedule:
    """Factor on the learning rates over a run: constant, or linear warm-up and then cosine to zero."""

    steps: int
    warmup_fraction: float = WARMUP_FRACTION
    constant: bool = False

    def factor(self, step: int) -> float:
        """The factor for step 0 … steps-1."""
        if self.constant:
            return 1.0
        warmup = max(1, round(self.warmup_fraction * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


@dataclass(frozen=True)
class Run:
    """What to train: rates η, master rate δt, how long, and how often to measure (``None``: never).

    ``steps``: how much of the schedule, unless all of it.
    ``rates`` are by block name, and by parameter name for those that have their own.
    """

    optimizer: Optimizer
    rates: dict[str, float]
    master_lr: float
    schedule: Schedule
    every: int | None
    steps: int | None = None
    first_rates: dict[str, float] = field(default_factory=dict)
    """Learning rates of step 0 by block name, where they are not δt η_l times the schedule."""


Record = Callable[[int, float], None]
"""Is given each step and its loss, before the update."""


def train(
    setting: Setting,
    parameters: dict[str, Tensor],
    batch: Callable[[int], Batch],
    run: Run,
    record: Record = lambda step, loss: None,
) -> Iterator[tuple[int, StateMeasurement]]:
    """Train copies of ``parameters`` with real optimizers; yield (step, measurement) at checkpoints after step 0.

    Each measurement is along the update that the optimizer would make next on that step's batch, at rates η_l
    (schedule and δt left out). Raises MeasurementError when the loss is no longer finite, naming the step.
    """
    weights = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in parameters.items()}
    groups = [group for block in setting.network.blocks for group in _groups(setting, weights, block, run)]
    optimizers = make_optimizers(run.optimizer, groups)
    setting = replace(setting, state=lambda name: state_of(optimizers, weights[name]))
    steps = run.schedule.steps if run.steps is None else run.steps
    for step in range(steps + 1):
        last = step == steps
        now = batch(step)
        after_first = step == 1 and run.first_rates
        if run.every is not None and step and (last or step % run.every == 0 or after_first):
            yield step, measure_state(setting, weights, now, run.rates)
        if not last:
            lr = run.master_lr * run.schedule.factor(step)
            first = run.first_rates if step == 0 else {}
            record(step, _step(setting, weights, now, optimizers, lr, step, first))


def _groups(setting: Setting, weights: dict[str, Tensor], block: Block, run: Run) -> list[dict[str, Any]]:
    """One group for each optimizer that steps parameters of the block, and each rate."""
    found: dict[tuple[str, float], list[Tensor]] = {}
    for name in block.parameters:
        if weights[name].requires_grad:
            key = setting.rule(name).name, rate_of(run.rates, block.name, name)
            found.setdefault(key, []).append(weights[name])
    return [
        {"params": params, "optimizer": optimizer, "base": rate, "block": block.name}
        for (optimizer, rate), params in found.items()
    ]


def _step(
    setting: Setting,
    weights: dict[str, Tensor],
    batch: Batch,
    optimizers: Sequence[torch.optim.Optimizer],
    lr: float,
    step: int,
    own_rates: Mapping[str, float],
) -> float:
    """Make one step at ``lr`` times each group's base rate, or at the block's own rate; the loss before it."""
    inputs, targets = batch
    for optimizer in optimizers:
        optimizer.zero_grad()

    def action(module: nn.Module) -> float:
        loss = setting.loss_function(forward(module, inputs), targets)
        if not torch.isfinite(loss):
            raise MeasurementError("diverged", f"the loss is not finite at step {step}")
        torch.autograd.backward(loss)
        return loss.item()

    loss = under(setting.network, weights, action)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = own_rates.get(group["block"], lr * group["base"])
        optimizer.step()
    return loss
