"""Work, counted in floating-point operations of matrix products and attention by torch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.utils.flop_counter import FlopCounterMode

from benchmarks.quality.runs import fresh, loss_of, source
from benchmarks.quality.suite import TRAINING_SEEDS, Cell
from benchmarks.quality.sweep import INITIALIZATIONS, RATES

T = TypeVar("T")


def counted(action: Callable[[], T]) -> tuple[T, float]:
    """What the action returns, and its work."""
    counter = FlopCounterMode(display=False)
    with counter:
        result = action()
    return result, float(counter.get_total_flops())


def step_work(cell: Cell) -> float:
    """Forward and backward of one training step."""
    model, (inputs, targets) = fresh(cell, TRAINING_SEEDS[0]), source(cell).batch(TRAINING_SEEDS[0], 0)
    return counted(lambda: loss_of(cell)(model(inputs), targets).backward())[1]


def sweep_work(cell: Cell) -> float:
    """The plain grid with one seed, as somebody would sweep; what this sweep spends beyond is not counted."""
    return RATES * len(INITIALIZATIONS) * cell.steps * step_work(cell)
