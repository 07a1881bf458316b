"""The sweep: one learning rate for the whole network, from PyTorch's initialization and from He's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.quality.runs import Outcome, fresh, make_optimizer, train
from benchmarks.quality.suite import TRAINING_SEEDS, Cell

FIRST_RATE = {"sgd": 1e-3, "adamw": 3e-5}
RATES = 12
"""Learning rates tried, each twice the one before."""
MOST_EXTRA = 4
"""A best rate at the end of the grid has the grid go on, so often at most."""
FINALISTS = 6
"""All runs have the first training seed; the best have the others too."""
INITIALIZATIONS = ("pytorch", "he")


def sweep(cell: Cell) -> dict[str, Any]:
    """All runs, and the best: the lowest mean log-loss over all training seeds."""
    first: dict[tuple[str, int], Outcome] = {}
    for init in INITIALIZATIONS:
        for k in range(RATES):
            first[init, k] = run(cell, init, _rate(cell, k), TRAINING_SEEDS[0])
        for _ in range(MOST_EXTRA):
            of_init = {k: o for (i, k), o in first.items() if i == init and not o.diverged}
            if not of_init or (edge := _beyond(of_init, {k for i, k in first if i == init})) is None:
                break
            first[init, edge] = run(cell, init, _rate(cell, edge), TRAINING_SEEDS[0])
    ranked = sorted((key for key in first if not first[key].diverged), key=lambda key: first[key].mean_log_loss)
    finalists = {
        key: [first[key], *(run(cell, key[0], _rate(cell, key[1]), seed) for seed in TRAINING_SEEDS[1:])]
        for key in ranked[:FINALISTS]
    }
    best = min(finalists, key=lambda key: sum(o.mean_log_loss for o in finalists[key]))
    return {
        "init": best[0],
        "lr": _rate(cell, best[1]),
        "grid_runs": len(first),
        "runs": [o.json() for o in finalists[best]],
        "grid": [{"init": i, "lr": _rate(cell, k), **o.json()} for (i, k), o in sorted(first.items())],
    }


def _rate(cell: Cell, k: int) -> float:
    return float(FIRST_RATE[cell.optimizer] * 2.0**k)


def _beyond(outcomes: Mapping[int, Outcome], tried: set[int]) -> int | None:
    """The next number past the end of the grid if the best lies there, else none."""
    best = min(outcomes, key=lambda k: outcomes[k].mean_log_loss)
    if best == max(tried):
        return best + 1
    return best - 1 if best == min(tried) else None


def run(cell: Cell, init: str, lr: float, seed: int) -> Outcome:
    """One run of the sweep."""
    model = fresh(cell, seed)
    if init == "he":
        he(model, seed)
    return train(cell, model, make_optimizer(cell, model.parameters(), lr), seed)


def he(model: nn.Module, seed: int) -> None:
    """``torch.nn.init.kaiming_normal_`` for the matrices of linear layers; the rest as PyTorch has it."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
