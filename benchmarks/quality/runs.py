"""One training run, the same for every contender: steps, batches and schedule; and what is kept of it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quality.suite import Cell
from benchmarks.quality.tasks import DATASETS
from featurespeed_workers import data
from featurespeed_workers.architectures import build
from featurespeed_workers.losses import LossFunction, loss_function
from featurespeed_workers.training import Schedule

FLOOR = 1e-4
"""A loss below counts as this: on digits losses come near 0, where logarithms exaggerate."""
TAIL = 20
"""Steps at the end whose mean is the final loss."""
PIECES = 20
"""Points that are kept of a loss curve."""
DIVERGED = 1.5
"""A run that ends above so many times its first loss has diverged."""


@dataclass(frozen=True)
class Outcome:
    """What is kept of one run. ``curve``: mean log-loss over each twentieth of the steps."""

    seed: int
    mean_log_loss: float
    final_loss: float
    diverged: bool
    curve: tuple[float, ...]

    def json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self) | {"curve": [round(x, 4) for x in self.curve]}


@functools.lru_cache(maxsize=4)
def source(cell: Cell) -> data.Source:
    """The cell's batches."""
    path = DATASETS[cell.dataset].path if cell.dataset else None
    return data.load(cell.request, dataset=path, dtype=torch.float32, device=torch.device("cpu"))


def fresh(cell: Cell, seed: int) -> nn.Module:
    """The cell's network with PyTorch's initialization."""
    return build(cell.request.architecture, seed=seed).module


def loss_of(cell: Cell) -> LossFunction:
    """The cell's loss."""
    return loss_function(cell.request.loss)


def train(
    cell: Cell, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int | None = None
) -> Outcome:
    """Train in place: linear warm-up and cosine to 0 on whatever learning rates the optimizer's groups have."""
    steps = steps or cell.steps
    schedule, loss_function = Schedule(steps), loss_of(cell)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    losses: list[float] = []
    for step in range(steps):
        inputs, targets = source(cell).batch(seed, step)
        loss: Tensor = loss_function(model(inputs), targets)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or losses[-1] > 1e6:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return outcome(seed, losses, steps)


def outcome(seed: int, losses: Sequence[float], steps: int) -> Outcome:
    """What is kept of a run's losses. A run that breaks off, or ends well above its start, has diverged."""
    start, complete = losses[0], len(losses) == steps and math.isfinite(losses[-1])
    worst = max([start, *(x for x in losses if math.isfinite(x))])
    padded = [x if math.isfinite(x) else worst for x in losses] + [worst] * (steps - len(losses))
    logs = [math.log(max(x, FLOOR)) for x in padded]
    final = sum(padded[-TAIL:]) / len(padded[-TAIL:])
    return Outcome(
        seed=seed,
        mean_log_loss=sum(logs) / steps,
        final_loss=final,
        diverged=not complete or final > DIVERGED * start,
        curve=tuple(_mean(piece) for piece in _pieces(logs)),
    )


def _pieces(values: Sequence[float]) -> Iterable[Sequence[float]]:
    bounds = [round(i * len(values) / PIECES) for i in range(PIECES + 1)]
    return (values[a:b] for a, b in itertools.pairwise(bounds) if b > a)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def make_optimizer(cell: Cell, groups: Any, lr: float = 1.0) -> torch.optim.Optimizer:
    """The cell's optimizer with torch's own class; ``lr`` for groups that have none."""
    options = cell.request.optimizer.model_dump(exclude={"name"})
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    return kinds[cell.optimizer](groups, lr=lr, **options)
