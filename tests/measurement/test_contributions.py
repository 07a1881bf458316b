"""Weights of the contributions: measured from outside, every block has the part of the loss decay that was asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featurespeed.contract import Recommendation, parse_request
from featurespeed.defaults import RELATIVE_SENSITIVITY
from featurespeed_workers import MeasurementError, measure, recommend
from featurespeed_workers.local import answer

WEIGHTS = {"input": 3.0, "hidden": 1.0, "output": 0.5}
SHARES = [3 / 6.5, 1 / 6.5, 1 / 6.5, 1 / 6.5, 0.5 / 6.5]
SPEC: dict[str, Any] = {
    "architecture": {"family": "mlp", "input_dim": 64, "width": 24, "depth": 5, "output_dim": 10, "bias": True},
    "data": {"kind": "digits", "batch_size": 32},
    "loss": "cross_entropy",
    "optimizer": {"name": "adam"},
    "measurement": {"seeds": [0], "dtype": "float64"},
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [nn.Sequential(nn.Tanh(), nn.Linear(16, 16)) for _ in range(3)]
    return nn.Sequential(nn.Linear(6, 16), *hidden, nn.Sequential(nn.Tanh(), nn.Linear(16, 3))).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(20, 6, generator=generator).double() for _ in range(4)]
    return [(x, torch.randint(0, 3, (20,), generator=generator)) for x in inputs]


def decays(net: nn.Sequential, advice: Recommendation) -> Iterator[float]:
    """Each block's contribution under SGD at its recommended rate, δt taken out: Σ η ‖∇‖², a mean over the batches."""
    rates = {p.name: p.lr / advice.master_lr for p in advice.parameters}
    for i in range(len(net)):
        own = {name: p for name, p in net.named_parameters() if name.startswith(f"{i}.")}
        total = 0.0
        for inputs, targets in batches():
            gradients = torch.autograd.grad(F.cross_entropy(net(inputs), targets), list(own.values()))
            total += sum(rates[n] * float(g.square().sum()) for n, g in zip(own, gradients, strict=True))
        yield total / 4


def test_every_block_contributes_what_was_asked() -> None:
    net = model()
    report = recommend(net, batches(), optimizer="sgd", contributions=WEIGHTS)
    advice = report.recommendation
    report.apply(net)
    assert list(decays(net, advice)) == pytest.approx(SHARES, rel=1e-9)
    assert advice.contributions == WEIGHTS
    assert advice.relative_sensitivity == pytest.approx(RELATIVE_SENSITIVITY, rel=0.02)
    # the target of τ is met with these weights, hence by another output scale than with equal ones
    even = recommend(model(), batches(), optimizer="sgd", contributions=dict.fromkeys(WEIGHTS, 1.0)).recommendation
    assert advice.blocks[-1].init_std > 1.1 * even.blocks[-1].init_std
    assert [b.init_std for b in advice.blocks[:-1]] == pytest.approx([b.init_std for b in even.blocks[:-1]], rel=1e-9)


def test_a_specification_asks_for_the_same() -> None:
    for fields in ({"kind": "recommend"}, {"kind": "measure"}):
        found = answer(parse_request({**SPEC, **fields, "scaling": {"contributions": WEIGHTS}}))
        contributions = [layer.contribution.mean for layer in found.measurements[0].layers]
        # a recommendation averages four batches, of which the report shows the first
        assert contributions == pytest.approx(SHARES, rel=1e-9 if fields["kind"] == "measure" else 0.2)
    even = answer(parse_request({**SPEC, "kind": "measure"})).measurements[0]
    assert [layer.contribution.mean for layer in even.layers] == pytest.approx([0.2] * 5, rel=1e-9)
    assert measure(model(), batches(), contributions=WEIGHTS).measurements[0].layers[0].contribution.mean == (
        pytest.approx(SHARES[0], rel=1e-9)
    )


def test_weight_zero_is_rate_zero_and_frozen_blocks_count_for_nothing() -> None:
    net = model()
    net[0].requires_grad_(False)
    report = recommend(net, batches(), optimizer="sgd", contributions={"output": 0.0})
    *hidden, output = report.recommendation.blocks
    assert [block.lr > 0 for block in hidden] == [False, True, True, True]
    assert output.lr == 0
    assert output.note == "its contribution weight is 0"
    assert output.init_std != pytest.approx(float(net[-1][1].weight.detach().square().mean().sqrt()), rel=0.01)
    net[0].requires_grad_(True)
    report.apply(net)
    assert list(decays(net, report.recommendation)) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], rel=1e-9)


def defaults(hidden: int) -> dict[str, float]:
    """Input : all ``hidden`` blocks together : output = 1 : √n : 1."""
    return {"input": 1.0, "hidden": math.sqrt(hidden) / hidden if hidden else 1.0, "output": 1.0}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("frozen", [(), (2,), (1, 3), (0,), (1, 2, 3)], ids=str)
def test_by_default_the_groups_contribute_as_1_to_root_n_to_1(frozen: tuple[int, ...], optimizer: str) -> None:
    """n counts the hidden blocks that train; seen from outside, and the same by a specification."""
    n = 3 - len({1, 2, 3} & set(frozen))
    names = ["input", "hidden_2", "hidden_3", "hidden_4", "output"]
    spec = {**SPEC, "kind": "recommend", "optimizer": {"name": optimizer}, "frozen": [names[i] for i in frozen]}
    assert answer(parse_request(spec)).recommendation.contributions == pytest.approx(defaults(n))
    net = model()
    for i in frozen:
        net[i].requires_grad_(False)
    report = recommend(net, batches(), optimizer=optimizer)
    advice = report.recommendation
    assert advice.contributions == pytest.approx(defaults(n))
    if optimizer == "sgd":
        net.requires_grad_(True)
        report.apply(net)
        parts = [0.0 if i in frozen else 1 / math.sqrt(n) if 0 < i < 4 else 1.0 for i in range(5)]
        assert list(decays(net, advice)) == pytest.approx([part / sum(parts) for part in parts], rel=1e-9)


def test_a_group_that_is_not_named_has_its_default_weight() -> None:
    given = {**SPEC, "kind": "recommend", "scaling": {"contributions": {"input": 3.0}}, "frozen": ["hidden_2"]}
    assert parse_request(given).contributions == pytest.approx({**defaults(2), "input": 3.0})
    asked = recommend(model(), batches(), contributions={"hidden": 3.0}).recommendation
    assert asked.contributions == {**defaults(3), "hidden": 3.0}


MISUSE = {
    "a group that is none": ({"head": 1.0}, "unknown group 'head'; groups are input, hidden, output"),
    "negative": ({"input": -1.0}, "the weight of 'input' must be finite and not negative, got -1.0"),
    "not a number": ({"input": float("nan")}, "got nan"),
    "all zero": (dict.fromkeys(WEIGHTS, 0.0), "one must be positive"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_weights_that_mean_nothing_are_refused(case: str) -> None:
    weights, message = MISUSE[case]
    for ask in (measure, recommend):
        with pytest.raises(ValueError, match=message):
            ask(model(), batches(), contributions=weights)


def test_weights_need_balanced_rates_and_a_feature_that_moves() -> None:
    with pytest.raises(ValueError, match="needs learning_rates 'balanced'"):
        measure(model(), batches(), learning_rates=0.1, contributions=WEIGHTS)
    with pytest.raises(MeasurementError, match="last hidden feature does not move"):
        recommend(model(), batches(), contributions={"input": 0.0, "hidden": 0.0})
