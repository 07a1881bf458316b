"""The other contenders, each by its own library: a learning-rate finder, Prodigy, and µP from a swept small network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import matplotlib as mpl
import mup
import torch
from prodigyopt import Prodigy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torch_lr_finder import LRFinder

from benchmarks.quality.runs import Outcome, fresh, loss_of, make_optimizer, source, train
from benchmarks.quality.suite import TRAINING_SEEDS, Cell
from benchmarks.quality.sweep import FIRST_RATE, RATES
from benchmarks.quality.work import step_work, sweep_work
from featurespeed.contract import Architecture, Transformer
from featurespeed_workers.architectures import build
from featurespeed_workers.architectures.transformer import ClassifierHead

FINDER_STEPS = 100
BASE_DIVISOR = 4
"""µP sweeps a network narrower by this factor."""


class _Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """The batches of a training seed, from one that training does not reach."""

    def __init__(self, cell: Cell, seed: int) -> None:
        self._cell = cell
        self._seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(10_000, 10_000 + 2 * FINDER_STEPS):
            yield source(self._cell).batch(self._seed, step)


def lr_finder(cell: Cell) -> dict[str, Any]:
    """torch-lr-finder: 100 steps at rising rates, then that at which the loss falls fastest; for every seed anew."""
    mpl.use("Agg")
    runs, rates = [], []
    for seed in TRAINING_SEEDS:
        rates.append(_found(cell, seed))
        model = fresh(cell, seed)
        runs.append(train(cell, model, make_optimizer(cell, model.parameters(), rates[-1]), seed))
    return {
        "runs": [o.json() for o in runs],
        "cost": FINDER_STEPS * step_work(cell) / sweep_work(cell),
        "rates": rates,
        "seed_spread": {"median": max(rates) / min(rates), "worst": max(rates) / min(rates)},
    }


def _found(cell: Cell, seed: int) -> float:
    model = fresh(cell, seed)
    optimizer = make_optimizer(cell, model.parameters(), 1e-6)
    finder = LRFinder(model, optimizer, _Loss(loss_of(cell)), device="cpu")
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finder.range_test(DataLoader(_Batches(cell, seed), batch_size=None), end_lr=10.0, num_iter=FINDER_STEPS)
        figure, axes = mpl.pyplot.subplots()
        _, rate = finder.plot(ax=axes, suggest_lr=True)
        mpl.pyplot.close(figure)
    return float(rate)


class _Loss(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._function(outputs, targets)


def prodigy(cell: Cell) -> dict[str, Any]:
    """prodigyopt at its recommended rate 1, with its safeguard for a warm-up; replaces SGD too."""
    runs = []
    for seed in TRAINING_SEEDS:
        model = fresh(cell, seed)
        optimizer = Prodigy(model.parameters(), lr=1.0, safeguard_warmup=True)
        runs.append(train(cell, model, optimizer, seed))
    return {"runs": [o.json() for o in runs], "cost": 0.0}


def mu_transfer(cell: Cell) -> dict[str, Any]:
    """µP: the best of 12 rates of a network a quarter as wide, transferred by the package ``mup``."""
    base = _narrowed(cell.request.architecture, BASE_DIVISOR)
    tried = {k: _mup_run(cell, base, FIRST_RATE[cell.optimizer] * 2.0**k, TRAINING_SEEDS[0]) for k in range(RATES)}
    alive = {k: o for k, o in tried.items() if not o.diverged} or tried
    best = min(alive, key=lambda k: alive[k].mean_log_loss)
    rate = FIRST_RATE[cell.optimizer] * 2.0**best
    runs = [_mup_run(cell, cell.request.architecture, rate, seed) for seed in TRAINING_SEEDS]
    narrow = step_work(cell) / BASE_DIVISOR**2  # hidden matrices make up nearly all of it
    return {"runs": [o.json() for o in runs], "cost": RATES * cell.steps * narrow / sweep_work(cell), "lr": rate}


def _narrowed(architecture: Architecture, divisor: float) -> Architecture:
    return architecture.model_copy(update={"width": int(architecture.width / divisor)})


def _mup_run(cell: Cell, architecture: Architecture, lr: float, seed: int) -> Outcome:
    base = _narrowed(cell.request.architecture, BASE_DIVISOR)
    model = _mup_model(architecture, base, seed)
    delta = _mup_model(_narrowed(base, 0.5), base, seed)
    mup.set_base_shapes(model, _mup_model(base, base, seed), delta=delta)
    options = cell.request.optimizer.model_dump(exclude={"name"})
    kind = mup.MuSGD if cell.optimizer == "sgd" else mup.MuAdamW
    return train(cell, model, kind(model.parameters(), lr=lr, **options), seed)


class _Readout(nn.Module):
    """Our output block with mup's readout as its matrix."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.norm, self.activation = head.norm, head.activation
        self.pooled = isinstance(head, ClassifierHead)
        self.readout = mup.MuReadout(head.in_features, head.out_features, bias=head.bias is not None)

    def forward(self, f: Tensor) -> Tensor:
        f = self.activation(self.norm(f))
        out: Tensor = self.readout(f.mean(dim=1) if self.pooled else f)
        return out


def _mup_model(architecture: Architecture, base: Architecture, seed: int) -> nn.Module:
    """The network as mup wants it: its readout, and attention scaled by 1/d instead of 1/√d relative to the base."""
    torch.manual_seed(seed)
    module = build(architecture, seed=seed).module
    module.output = _Readout(module.output)
    if isinstance(architecture, Transformer):
        factor = (base.width / architecture.width) ** 0.5
        for part in module.modules():
            if isinstance(attention := getattr(part, "attention", None), nn.Module):
                attention.qkv.register_forward_hook(_scale_queries(architecture.width, factor))
    return module


def _scale_queries(width: int, factor: float) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, qkv: Tensor) -> Tensor:
        return torch.cat([qkv[..., :width] * factor, qkv[..., width:]], dim=-1)

    return hook
