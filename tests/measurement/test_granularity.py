"""Rates by tensor and by group: closed forms on small networks, measured from outside; and runs under them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurespeed.contract import Report, parse_request
from featurespeed.defaults import RELATIVE_SENSITIVITY
from featurespeed_workers import measure, recommend
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.data import load
from featurespeed_workers.local import answer
from featurespeed_workers.training import Schedule
from tests.measurement.test_contributions import WEIGHTS, batches, model

SPEC: dict[str, Any] = {
    "kind": "recommend",
    "architecture": {"family": "mlp", "input_dim": 64, "width": 24, "depth": 5, "output_dim": 10},
    "data": {"kind": "digits", "batch_size": 32},
    "loss": "cross_entropy",
    "optimizer": {"name": "sgd"},
    "measurement": {"seeds": [0, 1], "dtype": "float64"},
}
VIT = {
    "family": "transformer", "layers": 3, "width": 16, "heads": 2, "output_dim": 10, "bias": True,
    "image": {"height": 8, "width": 8, "patch": 4},
}  # fmt: skip


def decays(net: nn.Module, report: Report, data: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Each tensor's contribution under SGD at its recommended rate, δt taken out: η ‖∇‖², a mean over the batches."""
    rates = {p.name: p.lr / report.recommendation.master_lr for p in report.recommendation.parameters}
    found = dict.fromkeys(rates, 0.0)
    for inputs, targets in data:
        loss = F.cross_entropy(net(inputs), targets)
        gradients = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)
        for (name, _), g in zip(net.named_parameters(), gradients, strict=True):
            found[name] += rates[name] * float(g.square().sum()) / len(data)
    return found


def test_by_tensor_the_tensors_of_a_block_share_its_contribution_equally() -> None:
    net = model()
    report = recommend(net, batches(), optimizer="sgd", granularity="tensor", contributions=WEIGHTS)
    report.apply(net)
    shares = dict(zip("01234", [3 / 6.5, 1 / 6.5, 1 / 6.5, 1 / 6.5, 0.5 / 6.5], strict=True))
    for name, decay in decays(net, report, batches()).items():
        assert decay == pytest.approx(shares[name[0]] / 2, rel=1e-9), name  # weight and bias
    advice = report.recommendation
    assert advice.granularity == "tensor"
    assert advice.relative_sensitivity == pytest.approx(RELATIVE_SENSITIVITY, rel=0.02)
    for block in advice.blocks:
        weight, bias = (p.lr for p in advice.parameters if p.block == block.name)
        assert block.lr == pytest.approx(2 / (1 / weight + 1 / bias), rel=1e-9)
    assert len(report.param_groups(net)) == 10


def test_by_tensor_a_measurement_moves_every_tensor_at_its_own_rate() -> None:
    """The oracle: directional derivatives of features along −η ∇, by finite differences, with rates from gradients."""
    net, (inputs, targets) = model(), batches()[0]
    layers = measure(net, batches(), granularity="tensor").measurements[0].layers
    assert [layer.contribution.mean for layer in layers] == pytest.approx([0.2] * 5, rel=1e-12)
    gradients = torch.autograd.grad(F.cross_entropy(net(inputs), targets), list(net.parameters()))
    before = [net[: i + 1](inputs).detach() for i in range(5)]
    step = 1e-6
    with torch.no_grad():
        for p, g in zip(net.parameters(), gradients, strict=True):
            p -= step * g / (10 * g.square().sum())
        after = [net[: i + 1](inputs) for i in range(5)]
    speeds = [float((b - a).norm()) / step / math.sqrt(a.numel()) for a, b in zip(before, after, strict=True)]
    assert [layer.feature_speed.mean for layer in layers] == pytest.approx(speeds, rel=1e-4)


class Attention(nn.Module):
    """Separate keys: a constant added to every key changes no attention weight, so its bias has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_without_a_gradient_has_its_blocks_rate(dtype: torch.dtype, optimizer: str) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(40, 3))
    net = nn.Sequential(nn.Linear(6, 8), Attention(), head).to(dtype)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(16, 5, 6, generator=generator).to(dtype), torch.arange(16) % 3) for _ in range(4)]
    report = recommend(net, data, optimizer=optimizer, granularity="tensor", branches={"1": ["1.out"]})
    advice = report.recommendation
    rates = {p.name: p.lr for p in advice.parameters}
    assert rates["1.k.bias"] == rates["1.unused"] == advice.blocks[1].lr
    others = [lr for name, lr in rates.items() if name.startswith("1.") and name not in ("1.k.bias", "1.unused")]
    assert min(others) < rates["1.k.bias"] < max(others)
    assert rates["1.k.bias"] == pytest.approx(len(others) / sum(1 / lr for lr in others), rel=1e-5)
    assert "1.k.bias: its gradient is zero, it has the block's rate" in advice.blocks[1].note
    assert "1.q" not in advice.blocks[1].note
    if optimizer == "sgd":
        report.apply(net)
        found = decays(net, report, data)
        assert found["1.unused"] == 0
        assert sum(decay for name, decay in found.items() if name.startswith("1.")) == pytest.approx(1 / 3, rel=1e-4)


@pytest.mark.parametrize("architecture", [SPEC["architecture"], VIT], ids=["mlp", "vit"])
def test_by_group_there_are_six_numbers(architecture: dict[str, Any]) -> None:
    spec = {**SPEC, "architecture": architecture, "scaling": {"contributions": WEIGHTS}}
    blocks = answer(parse_request(spec)).recommendation
    report = answer(parse_request({**spec, "scaling": {"contributions": WEIGHTS, "granularity": "group"}}))
    advice = report.recommendation
    assert advice.granularity == "group"
    assert len({(b.init_std, b.lr) for b in advice.blocks}) == 3
    assert len({(b.init_std, b.lr) for b in advice.blocks[1:-1]}) == 1
    assert report.warnings == ()
    for seed in range(2):
        # at the same place of every hidden block the geometric mean of what each has by itself; the first is as before
        own = [b.init_std_over_seeds.values[seed] for b in blocks.blocks]
        common = [b.init_std_over_seeds.values[seed] for b in advice.blocks]
        assert common[0] == own[0]
        if architecture["family"] == "mlp":
            assert common[1] == pytest.approx(math.prod(own[1:-1]) ** (1 / 3), rel=1e-12)
    by_place: dict[str, set[tuple[float, float]]] = {}
    for p in advice.parameters:
        if p.block.startswith("hidden"):
            by_place.setdefault(p.name.split(".", 1)[1], set()).add((p.init_std, p.lr))
    assert all(len(found) == 1 for found in by_place.values())
    assert len({std for found in by_place.values() for std, _ in found if std}) == (4 if architecture is VIT else 1)
    assert advice.relative_sensitivity == pytest.approx(RELATIVE_SENSITIVITY, rel=0.02)
    contributions = [layer.contribution.mean for layer in report.measurements[0].layers]
    assert max(contributions[1:-1]) > 1.05 * min(contributions[1:-1])  # equal together, not one by one


def test_by_group_the_hidden_blocks_contribute_what_was_asked_together() -> None:
    net = model()
    report = recommend(net, batches(), optimizer="sgd", granularity="group", contributions=WEIGHTS)
    report.apply(net)
    found = decays(net, report, batches())
    for names, share in (("0", 3), ("123", 3), ("4", 0.5)):
        assert sum(found[n] for n in found if n[0] in names) == pytest.approx(share / 6.5, rel=1e-9)


def test_by_group_only_blocks_of_one_shape_share_a_std_and_frozen_ones_stay() -> None:
    torch.manual_seed(0)
    sizes = [6, 8, 8, 12, 12, 12, 3]
    net = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(sizes)))
    net.double()
    net[4].requires_grad_(False)
    frozen = float(net[4][0].weight.square().mean().sqrt())
    report = recommend(net, batches(), optimizer="sgd", granularity="group")
    assert any("hidden blocks are of 4 shapes" in w for w in report.warnings)  # 8 × 8, 12 × 8, 12 × 12, nothing
    blocks = report.recommendation.blocks
    assert blocks[4].lr == 0
    assert blocks[4].init_std == pytest.approx(frozen, rel=1e-12)
    assert len({b.lr for b in blocks[1:4]}) == 1


@pytest.mark.parametrize("granularity", ["tensor", "group"])
def test_a_run_is_what_torch_alone_would_do(granularity: str) -> None:
    fields = {"seeds": [5], "steps": 6, "every": 3, "dtype": "float64"}
    optimizer = {"name": "adamw", "weight_decay": 0.01}
    spec = {**SPEC, "architecture": VIT, "optimizer": optimizer, "scaling": {"granularity": granularity}}
    asked = parse_request({**spec, "measurement": fields})
    report = answer(asked)
    network = build(asked.architecture, seed=5)
    base_initialize(network, seed=5)
    net = network.module.double()
    report.apply(net)
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    real = torch.optim.AdamW(report.param_groups(net), weight_decay=0.01)
    peaks, schedule, losses = [g["lr"] for g in real.param_groups], Schedule(6), []
    for step in range(7):
        inputs, targets = source.batch(5, step)
        real.zero_grad()
        loss = F.cross_entropy(net(inputs), targets)
        losses.append(float(loss.detach()))
        loss.backward()
        for group, peak in zip(real.param_groups, peaks, strict=True):
            group["lr"] = peak * (schedule.factor(step) if step < 6 else 0.0)
        real.step()
    assert [m.step for m in report.measurements] == [0, 3, 6]
    assert [m.loss for m in report.measurements] == pytest.approx([losses[0], losses[3], losses[6]], rel=1e-8)


def test_granularity_is_checked() -> None:
    with pytest.raises(ValueError, match="granularity: 'layer' is not one of block, tensor, group"):
        recommend(model(), batches(), granularity="layer")
    with pytest.raises(ValueError, match="granularity: needs learning_rates 'balanced'"):
        measure(model(), batches(), learning_rates=0.1, granularity="tensor")
