"""κ: what it is by default for every optimizer; the step of SGD under mse, at most a quarter of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurespeed.contract import OptimizerName, Recommendation, Report, Sgd, parse_request
from featurespeed.defaults import RELATIVE_SENSITIVITY
from featurespeed_workers import recommend
from featurespeed_workers.architectures import build
from featurespeed_workers.data import load
from featurespeed_workers.local import answer
from tests.measurement.test_recommendation import _redraw

KAPPA = {"sgd": 2.0, "adam": 1.2, "adamw": 1.2, "signsgd": 0.5, "muon": 0.25}
KINDS: dict[str, Any] = {"sgd": torch.optim.SGD}
MOMENTUM = Sgd(name="sgd", momentum=0.9)
H = 1e-6
Loss = Callable[[Tensor, Tensor], Tensor]


def spec(optimizer: dict[str, Any], **fields: Any) -> dict[str, Any]:
    basis = {
        "kind": "recommend",
        "architecture": {"family": "mlp", "input_dim": 12, "width": 24, "depth": 4, "output_dim": 2},
        "data": {"kind": "gaussian", "batch_size": 32, "targets": "teacher"},
        "loss": "mse",
        "optimizer": optimizer,
        "measurement": {"seeds": [0], "dtype": "float64"},
    }
    return {**basis, **fields}


def own_module(size: float = 1.0) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A module, and four batches of a regression with targets of the given size."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Sequential(nn.Tanh(), nn.Linear(16, 16)), nn.Linear(16, 3)).double()
    inputs = [torch.randn(20, 6).double() for _ in range(4)]
    return net, [(x, size * torch.sin(x[:, :3] + x[:, 3:])) for x in inputs]


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def part_taken(
    net: nn.Module, report: Report, kind: Any, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss = half_squares
) -> float:
    """The decay of the loss over the loss, means over batches, by a real step at H times the rates; per step."""
    start, before, decay = {n: p.detach().clone() for n, p in net.state_dict().items()}, 0.0, 0.0
    for inputs, targets in batches:
        net.load_state_dict(start)
        groups = [{"params": g["params"], "lr": H * g["lr"]} for g in report.param_groups(net)]
        optimizer = kind(groups, weight_decay=0.0)
        net.zero_grad()
        found = loss(net(inputs), targets)
        found.backward()
        optimizer.step()
        before += float(found.detach())
        with torch.no_grad():
            decay += float(found - loss(net(inputs), targets))
    net.load_state_dict(start)
    return decay / before / H


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_every_optimizer_has_its_own(optimizer: str) -> None:
    """In a report, by a specification and for a module of one's own; asked for, it is what was asked."""
    architecture = {"family": "mlp", "input_dim": 64, "width": 24, "depth": 4, "output_dim": 10}
    digits = {"kind": "digits", "batch_size": 32}
    fields = {"architecture": architecture, "data": digits, "loss": "cross_entropy"}
    advice = answer(parse_request(spec({"name": optimizer}, **fields))).recommendation
    net, batches = own_module()
    own = recommend(net, [(x, y.argmax(1)) for x, y in batches], optimizer=optimizer).recommendation
    for found in (advice, own):
        assert found.feature_step == pytest.approx(KAPPA[optimizer], rel=1e-12)
        assert found.master_lr == pytest.approx(KAPPA[optimizer] / RELATIVE_SENSITIVITY, rel=1e-12)
    asked = answer(parse_request(spec({"name": optimizer}, **fields, scaling={"feature_step": 0.7}))).recommendation
    assert asked.feature_step == pytest.approx(0.7, rel=1e-12)
    assert rates(asked) == pytest.approx([rate * 0.7 / KAPPA[optimizer] for rate in rates(advice)], rel=1e-9)


def rates(advice: Recommendation) -> list[float]:
    return [block.lr for block in advice.blocks]


@pytest.mark.parametrize(
    ("optimizer", "steady"),
    [({"name": "sgd", "momentum": 0.9}, 10), ({"name": "sgd"}, 1)],
    ids=["momentum", "plain"],
)
def test_under_mse_a_steady_step_of_sgd_takes_a_quarter_of_the_loss(optimizer: dict[str, Any], steady: int) -> None:
    """Torch alone takes the step: a quarter where the default κ would take more, all that is asked if asked."""
    asked = parse_request(spec(optimizer))
    report = answer(asked)
    advice, kappa = report.recommendation, KAPPA[optimizer["name"]]
    model = build(asked.architecture, seed=0).module.double()
    _redraw(asked, model, {p.name: p.init_std for p in advice.parameters})
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    batches = [source.batch(0, step) for step in range(4)]
    kind = KINDS[optimizer["name"]]
    assert steady * part_taken(model, report, kind, batches) == pytest.approx(0.25, rel=1e-3)
    assert advice.feature_step < 0.8 * kappa
    assert advice.master_lr == pytest.approx(advice.feature_step / RELATIVE_SENSITIVITY, rel=1e-12)

    chosen = answer(parse_request(spec(optimizer, scaling={"feature_step": kappa})))
    assert chosen.recommendation.feature_step == pytest.approx(kappa, rel=1e-12)
    more = 0.25 * kappa / advice.feature_step
    assert steady * part_taken(model, chosen, kind, batches) == pytest.approx(more, rel=1e-3)


def test_the_bound_leaves_a_smaller_step_alone() -> None:
    """Targets of size 30 are so large a loss that κ takes less than a quarter; other optimizers have no bound."""
    for name in ("adamw", "signsgd"):
        free = answer(parse_request(spec({"name": name}))).recommendation
        assert free.feature_step == pytest.approx(KAPPA[name], rel=1e-12)
    net, batches = own_module(30.0)
    report = recommend(net, batches, loss="mse", optimizer="sgd")
    assert report.recommendation.feature_step == pytest.approx(KAPPA["sgd"], rel=1e-12)
    report.apply(net)
    assert part_taken(net, report, torch.optim.SGD, batches) < 0.24


def test_under_cross_entropy_a_step_takes_more() -> None:
    net, batches = own_module()
    labelled = [(x, y.argmax(1)) for x, y in batches]
    report = recommend(net, labelled, optimizer="sgd")
    report.apply(net)
    assert report.recommendation.feature_step == pytest.approx(KAPPA["sgd"], rel=1e-12)
    assert part_taken(net, report, torch.optim.SGD, labelled, F.cross_entropy) > 1


def test_modules_of_ones_own_have_the_bound_too() -> None:
    net, batches = own_module()
    report = recommend(net, batches, loss="mse", optimizer=MOMENTUM)
    report.apply(net)
    assert 10 * part_taken(net, report, torch.optim.SGD, batches) == pytest.approx(0.25, rel=1e-4)
    assert report.recommendation.feature_step < 0.8 * KAPPA["sgd"]
    assert report.properties.before.FL.range == report.properties.after.FL.range
    for arguments in ({"loss": "mse", "feature_step": 2.0}, {"loss": half_squares}):  # asked; of unknown kind
        free = recommend(net, batches, optimizer=MOMENTUM, **arguments).recommendation
        assert free.feature_step == pytest.approx(2.0, rel=1e-12)
    with pytest.raises(ValueError, match="feature_step: must be positive, got 0"):
        recommend(net, batches, feature_step=0)


def test_over_seeds_it_is_a_geometric_mean() -> None:
    one, other, both = (
        answer(parse_request(spec({"name": "sgd"}, measurement={"seeds": seeds, "dtype": "float64"}))).recommendation
        for seeds in ([0], [1], [0, 1])
    )
    assert one.feature_step != pytest.approx(other.feature_step, rel=0.01)
    assert both.feature_step == pytest.approx(math.sqrt(one.feature_step * other.feature_step), rel=1e-12)
    assert both.master_lr == pytest.approx(both.feature_step / RELATIVE_SENSITIVITY, rel=1e-12)


def test_a_measured_training_at_balanced_rates_has_the_same_steps() -> None:
    """Its δt, unless given, is κ/τ, under mse at most what takes a quarter of the loss of step 0."""
    run = {"seeds": [0], "dtype": "float64", "steps": 4, "every": 2}
    fields = {"kind": "measure", "initialization": {"output": 0.3}}
    optimizer = {"name": "sgd", "momentum": 0.9}
    found = answer(parse_request(spec(optimizer, **fields, measurement=run))).measurements
    quarter = 0.25 * found[0].loss / 10
    assert found[0].loss_decay == pytest.approx(1.0, rel=1e-9)
    given = answer(parse_request(spec(optimizer, **fields, measurement={**run, "master_lr": quarter}))).measurements
    assert [m.loss for m in found] == pytest.approx([m.loss for m in given], rel=1e-9)
