"""The lines of PyTorch set up the optimizers that the report's own parameter groups would."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from featurespeed.contract import parse_request
from featurespeed.snippet import snippet
from featurespeed_workers.architectures import build
from featurespeed_workers.local import answer

SPEC: dict[str, Any] = {
    "kind": "recommend",
    "architecture": {
        "family": "resnet",
        "input_dim": 64,
        "width": 16,
        "depth": 4,
        "output_dim": 10,
        "norm": "layernorm",
    },
    "data": {"kind": "digits", "batch_size": 32},
    "loss": "cross_entropy",
    "measurement": {"seeds": [0]},
}
OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "adam", "betas": [0.8, 0.95]},
    {"name": "adamw", "weight_decay": 0.1},
    {"name": "muon", "momentum": 0.9, "adamw": {"betas": [0.8, 0.9]}},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["name"])
def test_it_is_what_the_report_says(optimizer: dict[str, Any]) -> None:
    request = parse_request({**SPEC, "optimizer": optimizer})
    report = answer(request)
    found: dict[str, Any] = {}
    lines = snippet(report, request)
    assert lines is not None
    exec(lines, found)
    model = build(request.architecture, seed=5).module
    names = {p: name for name, p in model.named_parameters()}
    kinds = ["muon", "adamw"] if optimizer["name"] == "muon" else [optimizer["name"]]
    made = found["optimizers"](model)
    for kind, own in zip(kinds, made, strict=True):
        assert type(own).__name__.lower() == kind
        lines_rates = {names[p]: group["lr"] for group in own.param_groups for p in group["params"]}
        report_groups = report.param_groups(model, optimizer=kind)
        rates = {names[p]: group["lr"] for group in report_groups for p in group["params"]}
        assert lines_rates == pytest.approx(rates, rel=1e-5)
        settings = optimizer["adamw"] if (kind, optimizer["name"]) == ("adamw", "muon") else optimizer
        for key, value in settings.items():
            if key not in ("name", "adamw"):
                assert own.param_groups[0][key] == (tuple(value) if isinstance(value, list) else value)
    torch.manual_seed(0)
    found["initialize"](model)
    for advice in report.recommendation.parameters:
        p = model.get_parameter(advice.name).detach()
        assert p.mean().item() == pytest.approx(advice.init_mean, abs=0.3 * advice.init_std + 1e-6)
        assert (p - advice.init_mean).square().mean().sqrt().item() == pytest.approx(advice.init_std, rel=0.2)


def test_the_schedule_is_the_one_of_training() -> None:
    """Warm-up and cosine as featurespeed_workers.training has them."""
    request = parse_request(SPEC)
    found: dict[str, Any] = {}
    exec(snippet(answer(request), request) or "", found)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = found["schedule"](optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(2.0 / 5)
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) == 5
    assert rates[-1] < 0.01


def test_what_takes_more_than_these_lines_has_none() -> None:
    measured = parse_request({**SPEC, "kind": "measure"})
    assert snippet(answer(measured), measured) is None
    zero = parse_request({**SPEC, "scaling": {"zero_output": True}})
    assert snippet(answer(zero), zero) is None
