"""β for a target angle: the search on curves that are known, and the angle seen by a measurement of its own."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from benchmarks.paper import mean_field

from featurespeed.contract import parse_request
from featurespeed.defaults import RELATIVE_SENSITIVITY
from featurespeed_workers.cells import assemble, run_cell
from featurespeed_workers.data import load
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.local import answer
from featurespeed_workers.rules.angle_search import Unreachable, find_beta

CURVES = {
    "one input": lambda beta: math.atan(5 * beta),
    "many inputs": lambda beta: 0.9 + 0.5 * beta**2 / (0.01 + beta**2),
    "steep": lambda beta: 1.5 / (1 + math.exp(-6 * (math.log(beta) + 3))),
    "depth 40": lambda beta: mean_field.angle(39, beta),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("part", [0.02, 0.2, 0.5, 0.8, 0.98])
def test_the_search_finds_the_root_of_a_rising_curve(curve, part: float) -> None:
    tried = []

    def angle_at(beta: float) -> float:
        tried.append(beta)
        return curve(beta)

    low, high = curve(0.002), curve(1.0)
    target = low + part * (high - low)
    found = find_beta(angle_at, target, smallest=0.002, first=min(1.0, math.tan(target) / 5))
    assert curve(found.beta) == found.angle == pytest.approx(target, abs=0.02)
    assert 0.002 <= found.beta <= 1
    assert len(tried) == len(set(tried)) <= 14


@pytest.mark.parametrize("target", [0.5, 1.45])
def test_a_target_outside_the_range_is_told_with_its_ends(target: float) -> None:
    curve = CURVES["many inputs"]
    with pytest.raises(Unreachable) as caught:
        find_beta(curve, target, smallest=0.002, first=0.1)
    ends = caught.value.low, caught.value.high
    assert [(end.beta, end.angle) for end in ends] == [(0.002, curve(0.002)), (1.0, curve(1.0))]


def test_where_large_scales_cannot_be_measured_the_range_ends_there() -> None:
    def angle_at(beta: float) -> float:
        if beta > 0.3:
            raise MeasurementError("not-finite", "the features are not finite")
        return math.atan(5 * beta)

    assert find_beta(angle_at, math.atan(1.4), smallest=0.002, first=0.9).beta == pytest.approx(0.28, rel=0.05)
    with pytest.raises(Unreachable) as caught:
        find_beta(angle_at, 1.2, smallest=0.002, first=0.1)
    assert 0.27 < caught.value.high.beta <= 0.3


def spec(target: float, depth: int = 10, **changes: Any) -> dict[str, Any]:
    """The paper's protocol (Fig. 1c)."""
    basis = {
        "kind": "measure", "loss": "mse", "optimizer": {"name": "sgd"}, "frozen": ["input", "output"],
        "architecture": {
            "family": "resnet", "input_dim": 10, "width": 128, "depth": depth, "output_dim": 1,
            "branch_scale": {"target_angle": target},
        },
        "data": {"kind": "sphere", "batch_size": 1, "targets": "ones"},
        "initialization": {"input": 0.316, "hidden": math.sqrt(2 / 128), "output": 1 / 128},
        "measurement": {"seeds": [0, 1, 2]},
    }  # fmt: skip
    return {**basis, **changes}


def angle_by_hand(document: dict[str, Any], beta: float, seed: int) -> float:
    """θ_{L-1} by torch alone, in float64: gradients by autograd, ḟ by a central difference."""
    asked = parse_request({**document, "architecture": {**document["architecture"], "branch_scale": beta}})
    a, generator = asked.architecture, torch.Generator().manual_seed(seed)
    stds = [0.316, *[math.sqrt(2 / a.width)] * (a.depth - 2), 1 / a.width]
    shapes = [(a.width, 10), *[(a.width, a.width)] * (a.depth - 2), (1, a.width)]
    weights = [torch.randn(shape, generator=generator).double() * s for shape, s in zip(shapes, stds, strict=True)]
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))

    def last_hidden(hidden: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        f = x @ weights[0].T
        for w in hidden:
            f = math.sqrt(1 - beta**2) * f + beta * torch.relu(f) @ w.T
        return f

    angles = []
    for step in range(4):
        x, y = source.batch(seed, step)
        hidden = [w.clone().requires_grad_() for w in weights[1:-1]]
        f = last_hidden(hidden, x)
        loss = 0.5 * (f @ weights[-1].T - y).square().sum()
        b, *gradients = torch.autograd.grad(loss, [f, *hidden])
        moves = [-g / g.square().sum() for g in gradients]
        h = 1e-7
        ends = [last_hidden([w.detach() + s * h * v for w, v in zip(hidden, moves, strict=True)], x) for s in (1, -1)]
        speed = (ends[0] - ends[1]) / (2 * h)
        angles.append(math.acos(-float((b * speed).sum() / b.norm() / speed.norm())))
    return statistics.fmean(angles)


@pytest.mark.parametrize(("depth", "target"), [(5, 0.4), (10, 0.7), (40, 0.2), (40, 1.1)])
def test_the_angle_at_the_beta_found_is_the_target(depth: int, target: float) -> None:
    document = spec(target, depth)
    report = answer(parse_request(document))
    found = report.branch_scale
    assert found.target_angle == target
    assert found.angle == pytest.approx(target, abs=0.02)
    by_hand = [angle_by_hand(document, found.beta, seed) for seed in (0, 1, 2)]
    assert statistics.fmean(by_hand) == pytest.approx(target, abs=0.02)
    assert list(found.angles) == pytest.approx(by_hand, abs=2e-4)
    assert report.warnings == ()


def test_every_seed_finds_the_same_beta_and_goes_on_with_it() -> None:
    asked = parse_request(spec(0.7))
    cells = [run_cell(asked, seed) for seed in (2, 0, 1)]
    [beta] = {cell.branch_scale.beta for cell in cells}
    given = parse_request({**spec(0.7), "architecture": {**spec(0.7)["architecture"], "branch_scale": beta}})
    assert [cell.checkpoints for cell in cells] == [run_cell(given, seed).checkpoints for seed in (2, 0, 1)]
    report = assemble(asked, cells, wall_seconds=0.0)
    assert report.provenance.spec_sha256 == asked.sha256


def test_a_recommendation_says_which_beta_it_is_for() -> None:
    changes = {
        "kind": "recommend", "loss": "cross_entropy", "frozen": [], "initialization": None,
        "architecture": {**spec(1.2)["architecture"], "input_dim": 64, "output_dim": 10, "width": 32, "depth": 6},
        "data": {"kind": "digits", "batch_size": 32}, "optimizer": {"name": "adamw"},
        "measurement": {"seeds": [0]},
    }  # fmt: skip
    report = answer(parse_request(spec(1.2, **changes)))
    assert report.branch_scale.angle == pytest.approx(1.2, abs=0.02)
    notes = {block.name: block.note for block in report.recommendation.blocks}
    assert notes["hidden_2"] == notes["hidden_5"] == f"branch scale β = {report.branch_scale.beta:g}"
    assert notes["input"] is notes["output"] is None
    assert report.recommendation.relative_sensitivity == pytest.approx(RELATIVE_SENSITIVITY, rel=0.02)


def test_an_angle_out_of_reach_is_refused_with_those_in_reach() -> None:
    with pytest.raises(
        MeasurementError, match=r"target_angle: 1\.55 cannot be reached; β from .* to 1 gives"
    ) as caught:
        answer(parse_request(spec(1.55)))
    assert caught.value.type == "unreachable-angle"
