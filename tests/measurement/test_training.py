"""Runs under a recommendation: their losses are those of torch alone, and what drifts is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from featurespeed.contract import parse_request
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.data import load
from featurespeed_workers.local import answer
from featurespeed_workers.loss_curves import LossRecord, SeedLosses, over_seeds

MLP = {"family": "mlp", "input_dim": 64, "width": 24, "depth": 4, "output_dim": 10}
STEPS = 25


def spec(**changes: Any) -> dict[str, Any]:
    basis = {
        "kind": "recommend", "architecture": MLP, "data": {"kind": "digits", "batch_size": 32},
        "loss": "cross_entropy", "optimizer": {"name": "adamw", "weight_decay": 0.1}, "frozen": ["hidden_3"],
        "measurement": {"seeds": [3], "steps": STEPS, "every": 10, "dtype": "float64"},
    }  # fmt: skip
    return {**basis, **changes}


def torch_losses(asked, start: dict[str, torch.Tensor], rates: dict[str, float]) -> list[float]:
    """A training loop of its own: linear warm-up over 5 % of the steps, then cosine to 0; by parameter name."""
    module = build(asked.architecture, seed=3).module.double()
    module.load_state_dict(start)
    trained = [(name, p) for name, p in module.named_parameters() if not name.startswith("hidden_3")]
    optimizer = torch.optim.AdamW([{"params": [p], "name": name} for name, p in trained], weight_decay=0.1)
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    warmup, losses = max(1, round(0.05 * STEPS)), []
    for step in range(STEPS):
        inputs, targets = source.batch(3, step)
        loss = F.cross_entropy(module(inputs), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))
        factor = (step + 1) / warmup if step < warmup else cosine
        for group in optimizer.param_groups:
            group["lr"] = factor * rates[group["name"]]
        optimizer.step()
    return losses


def test_both_curves_are_what_torch_alone_gives() -> None:
    asked = parse_request(spec())
    report = answer(asked)
    curves = report.evidence.loss_curves
    assert (curves.every, curves.steps) == (1, tuple(range(STEPS)))
    default = {name: p.double() for name, p in build(asked.architecture, seed=3).module.state_dict().items()}
    expected = torch_losses(asked, default, dict.fromkeys(default, 1e-3))
    assert curves.pytorch_default == curves.pytorch_default_by_seed[0] == pytest.approx(expected, rel=1e-9)

    network = build(asked.architecture, seed=3)
    base_initialize(network, seed=3)
    start = {name: p.double() for name, p in network.module.state_dict().items()}
    advice = {p.name: p for p in report.recommendation.parameters}
    scaled = {name: p * (advice[name].init_std / p.square().mean().sqrt()) for name, p in start.items()}
    expected = torch_losses(asked, scaled, {name: p.lr for name, p in advice.items()})
    assert curves.recommended == curves.recommended_by_seed[0] == pytest.approx(expected, rel=1e-6)
    assert [m.loss for m in report.measurements[:3]] == pytest.approx([curves.recommended[i] for i in (0, 10, 20)])


def test_a_curve_ends_where_a_seed_diverges_and_the_other_run_goes_on() -> None:
    changes = {"optimizer": {"name": "sgd"}, "loss": "mse", "scaling": {"feature_step": 1000.0}, "frozen": []}
    changes["measurement"] = {"seeds": [0, 1], "steps": 60, "every": 60}
    report = answer(parse_request(spec(**changes)))
    curves = report.evidence.loss_curves
    ends = [own.index(None) for own in curves.recommended_by_seed]
    assert all(loss is None for own, end in zip(curves.recommended_by_seed, ends, strict=True) for loss in own[end:])
    assert curves.recommended.index(None) == min(ends)
    assert None not in curves.pytorch_default
    for seed, end in enumerate(ends):
        told = f"seed {seed}: training stopped after step 0: the loss is not finite at step {end}"
        assert told in report.warnings


def test_without_steps_there_is_no_evidence_and_no_drift() -> None:
    report = answer(parse_request(spec(measurement={"seeds": [0]})))
    assert report.evidence is None
    assert report.measurements[0].layers[0].balanced_rate_drift is None


@pytest.mark.parametrize(("steps", "every", "points"), [(1, 1, 1), (500, 1, 500), (501, 2, 251), (100_000, 200, 500)])
def test_long_curves_are_means_over_windows(steps: int, every: int, points: int) -> None:
    told: list[float] = []
    record = LossRecord(steps, "training", lambda event: told.append(event.fraction))
    losses = [math.sin(step) for step in range(steps)]
    for step, loss in enumerate(losses):
        record(step, loss)
    curve = record.curve()
    assert (record.every, len(curve)) == (every, points)
    for i in (0, points // 2, points - 1):
        window = losses[i * every : (i + 1) * every]
        assert curve[i] == pytest.approx(sum(window) / len(window), abs=1e-12)
    assert len(told) <= 200


def test_a_window_that_is_not_complete_has_no_mean() -> None:
    record = LossRecord(1100, "training")
    for step in range(301):
        record(step, 1.0)
    assert record.every == 3
    assert record.curve() == (*[1.0] * 100, *[None] * 267)
    other = SeedLosses(every=3, steps=1100, recommended=(3.0,) * 367, pytorch_default=(2.0,) * 367)
    both = over_seeds([record.beside((1.0,) * 367), other])
    assert both.recommended == (*[2.0] * 100, *[None] * 267)
    assert both.pytorch_default == (1.5,) * 367
    assert both.steps[-1] == 1098


def test_under_gradient_descent_the_balanced_rate_goes_as_the_gradient_squared() -> None:
    """Eq. 8: η_l = 1/(L ‖∇_l L‖²)."""
    report = answer(parse_request(spec(optimizer={"name": "sgd"})))
    first, *later = report.measurements
    assert [m.step for m in later] == [10, 20, 25]
    for measured in (first, *later):
        for start, layer in zip(first.layers, measured.layers, strict=True):
            [drift] = layer.balanced_rate_drift.values
            if layer.name == "hidden_3":
                assert drift is None  # frozen
            else:
                assert drift == pytest.approx((start.gradient_norm.mean / layer.gradient_norm.mean) ** 2, rel=1e-9)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_build_up_of_momentum_is_no_drift(nesterov: bool) -> None:
    """All digits in each batch and hardly a step: the gradient is constant, and so is its balanced rate."""
    changes = {
        "kind": "measure", "learning_rates": 1e-12, "data": {"kind": "digits", "batch_size": 1797},
        "optimizer": {"name": "sgd", "momentum": 0.5, "nesterov": nesterov},
        "measurement": {"seeds": [0], "steps": 40, "every": 40, "dtype": "float64", "master_lr": 1.0},
    }  # fmt: skip
    first, last = answer(parse_request(spec(**changes))).measurements
    drifts = [layer.balanced_rate_drift.mean for layer in last.layers if layer.name != "hidden_3"]
    assert drifts == pytest.approx([1.0] * 3, rel=1e-6)
    assert [layer.balanced_rate_drift.mean for layer in first.layers] == [1.0, 1.0, None, 1.0]
