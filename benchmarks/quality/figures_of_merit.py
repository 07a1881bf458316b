"""Figures of merit: how a contender does against the best run of the sweep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.quality import results
from benchmarks.quality.contenders import SWEEP
from benchmarks.quality.suite import Cell

RESAMPLES = 10_000


@dataclass(frozen=True)
class Score:
    """One contender on one cell, over the training seeds.

    ``regret``: mean log-loss over training minus the sweep's best; ``error``: standard error of that difference, the
    runs paired by seed. ``loss_ratio``: final loss over the sweep's. ``diverged``: runs. ``cost``: work before training
    over the sweep's.
    """

    cell: Cell
    contender: str
    regret: float
    error: float
    loss_ratio: float
    diverged: int
    cost: float
    seed_spread: float | None
    answer_spread: float | None


def score(cell: Cell, contender: str) -> Score | None:
    """The score, if both results are there."""
    found, best = results.load(cell, contender), results.load(cell, SWEEP)
    if found is None or best is None:
        return None
    differences = [a["mean_log_loss"] - b["mean_log_loss"] for a, b in zip(found["runs"], best["runs"], strict=True)]
    finals = [math.log(max(a["final_loss"], 1e-8) / max(b["final_loss"], 1e-8)) for a, b in _pairs(found, best)]
    return Score(
        cell=cell,
        contender=contender,
        regret=statistics.fmean(differences),
        error=statistics.stdev(differences) / math.sqrt(len(differences)),
        loss_ratio=math.exp(statistics.fmean(finals)),
        diverged=sum(run["diverged"] for run in found["runs"]),
        cost=found.get("cost", 1.0),
        seed_spread=found.get("seed_spread", {}).get("median"),
        answer_spread=found.get("answer_spread", {}).get("median"),
    )


def _pairs(found: dict[str, Any], best: dict[str, Any]) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    return zip(found["runs"], best["runs"], strict=True)


def interval(values: Sequence[float], statistic: Callable[[Any], Any] = np.median) -> tuple[float, float]:
    """95 % bootstrap interval of a statistic over cells; the same values give the same interval."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile([statistic(row) for row in drawn], [0.025, 0.975])
    return float(low), float(high)
