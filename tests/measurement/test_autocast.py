"""bfloat16 autocast, in the model's own forward or around the measurement: near float32, and judged as bfloat16."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from featurespeed_workers import FeatureSpeedMonitor, measure, recommend
from featurespeed_workers.methods import residual_bound

WIDTH, HEADS = 32, 4
BLOCKS = ["first", "layers.0", "layers.1", "layers.2", "last"]
BRANCHES = {name: [f"{name}.out", f"{name}.down"] for name in BLOCKS[1:-1]}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    def __init__(self, forward_in) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 10)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.forward_in = forward_in

    def forward(self, x: Tensor) -> Tensor:
        with self.forward_in():
            x = self.first(x)
            for layer in self.layers:
                x = layer(x)
            return self.last(x)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


WAYS = {"in its forward": (autocast, contextlib.nullcontext), "around": (contextlib.nullcontext, autocast)}


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.float().flatten(0, 1), targets.flatten())


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 12, 8, generator=generator), torch.randint(0, 10, (16, 12), generator=generator))
        for _ in range(4)
    ]


def angles(report) -> list[float]:
    return [layer.angle.mean for layer in report.measurements[0].layers]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["exact", "double_backward", "central_difference"])
def test_angles_are_near_those_of_float32(way: str, method: str) -> None:
    inside, outside = WAYS[way]
    truth = measure(Model(contextlib.nullcontext), data(), loss=loss, blocks=BLOCKS)
    with outside():
        found = measure(Model(inside), data(), loss=loss, blocks=BLOCKS, method=method)
    [measured] = found.measurements
    assert measured.method == method
    assert 1e-6 < measured.formula_residual < residual_bound(method, "bfloat16")  # it did run in bfloat16
    assert not found.warnings  # though some residuals are above the bound for float32, which the parameters have
    differentiated = method != "central_difference"
    assert angles(found) == pytest.approx(angles(truth), abs=2e-3 if differentiated else 2 * measured.cos_error)


@pytest.mark.parametrize("way", WAYS)
def test_recommendations_are_near_those_of_float32(way: str) -> None:
    inside, outside = WAYS[way]
    asked = {
        "loss": loss,
        "optimizer": "adamw",
        "branches": {f"layers.{i}": [f"layers.{i}.out", f"layers.{i}.down"] for i in range(3)},
    }
    truth = recommend(Model(contextlib.nullcontext), data(), **asked)
    with outside():
        found = recommend(Model(inside), data(), **asked)
    for a, b in zip(found.recommendation.blocks, truth.recommendation.blocks, strict=True):
        assert (a.init_std, a.lr) == pytest.approx((b.init_std, b.lr), rel=0.05)


def test_a_monitor_within_autocast() -> None:
    records, model = [], Model(contextlib.nullcontext)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    monitor = FeatureSpeedMonitor(model, optimizer, to=records.append, loss=loss, every=1, blocks=BLOCKS)
    for x, y in data():
        with autocast():
            value = loss(model(x), y)
            monitor.step(x, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert [(record.error, record.warnings) for record in records] == [(None, ())] * 4
