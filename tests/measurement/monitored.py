"""A training that a monitor watches: what makes it hard to leave alone, and how two of them are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
Watch = Callable[[int, Tensor, Tensor], object]


def make_model(seed: int = 0) -> nn.Sequential:
    """Batch norm (buffers), dropout (randomness), a frozen bias."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)),
        nn.Sequential(nn.Dropout(0.2), nn.GELU(), nn.Linear(16, 16)),
        nn.Sequential(nn.GELU(), nn.Linear(16, 4)),
    )
    model[2][1].bias.requires_grad_(False)
    return model


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def batches(steps: int, seed: int = 1) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(32, 8, generator=generator)
        yield x, x[:, :4].argmax(1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, watch: Watch = lambda *_: None) -> object:
    """Losses, and all that a step can change: weights, buffers, gradients, optimizer, schedule and random state."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(5)
    losses = []
    for step, (x, y) in enumerate(batches(steps)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        watch(step, x, y)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, state(model, optimizer), schedule.state_dict()


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "gradients": [p.grad for p in model.parameters()],
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        }
    )
