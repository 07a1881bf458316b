"""A report put to use on real torch models and optimizers."""

import math

import pytest
import torch
from torch import nn

from featurespeed import ParameterMismatch
from featurespeed.contract import Report
from tests.client.reports import parameter, report


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 64), nn.LayerNorm(64), nn.Linear(64, 2, bias=False))


def advice() -> Report:
    return report(
        parameter("0.weight", (64, 4), 0.5, 0.1),
        parameter("0.bias", (64,), 0.0, 0.1),
        parameter("1.weight", (64,), 0.0, 0.2, "output", mean=1.0),
        parameter("1.bias", (64,), 0.0, 0.2, "output"),
        parameter("2.weight", (2, 64), 0.125, 0.2, "output"),
    )


def rms(tensor: torch.Tensor) -> float:
    return math.sqrt(tensor.detach().double().square().mean())


def test_every_tensor_gets_its_scale_and_keeps_its_direction() -> None:
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model[0].bias.fill_(3.0)
        model[1].weight.fill_(7.0)
    storages = [p.data_ptr() for p in model.parameters()]
    advice().apply(model)
    assert rms(model[0].weight) == pytest.approx(0.5, rel=1e-6)
    assert rms(model[2].weight) == pytest.approx(0.125, rel=1e-6)
    assert torch.nn.functional.cosine_similarity(
        model[2].weight.flatten(), before["2.weight"].flatten(), dim=0
    ).item() == pytest.approx(1.0)
    assert model[0].bias.abs().max() == 0
    assert (model[1].weight == 1).all()
    assert [p.data_ptr() for p in model.parameters()] == storages  # in place
    assert all(p.grad is None and p.requires_grad and p.is_leaf for p in model.parameters())


def test_applying_twice_is_applying_once() -> None:
    model = network()
    advice().apply(model)
    once = {name: p.detach().clone() for name, p in model.named_parameters()}
    advice().apply(model)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, once[name], rtol=1e-6, atol=0)


def test_the_rms_is_taken_about_the_mean() -> None:
    layer = nn.Linear(1000, 4, bias=False)
    with torch.no_grad():
        layer.weight.add_(2.0)
    report(parameter("weight", (4, 1000), 0.3, 0.1, mean=2.0)).apply(layer)
    assert rms(layer.weight.detach() - 2.0) == pytest.approx(0.3, rel=1e-5)


def test_zero_tensors_are_drawn() -> None:
    layer = nn.Linear(200, 200, bias=False)
    nn.init.zeros_(layer.weight)
    torch.manual_seed(0)
    report(parameter("weight", (200, 200), 0.3, 0.1)).apply(layer)
    assert rms(layer.weight) == pytest.approx(0.3, rel=0.02)  # 40,000 draws: sd of the rms is 0.35 %


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_values_neither_over_nor_underflow(scale: float) -> None:
    layer = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        layer.weight.mul_(scale)
    report(parameter("weight", (8, 8), 0.3, 0.1)).apply(layer)
    assert rms(layer.weight) == pytest.approx(0.3, rel=1e-5)


def test_bfloat16_is_scaled_in_higher_precision() -> None:
    layer = nn.Linear(512, 512, bias=False, dtype=torch.bfloat16)
    report(parameter("weight", (512, 512), 0.3, 0.1)).apply(layer)
    assert layer.weight.dtype == torch.bfloat16
    assert rms(layer.weight) == pytest.approx(0.3, rel=1e-4)


def test_all_misfits_are_listed_and_nothing_is_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.LayerNorm(64), nn.Linear(64, 3), nn.Linear(3, 1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrong = advice()
    extra = report(*wrong.recommendation.parameters, parameter("9.weight", (1,), 1.0, 1.0))  # type: ignore[union-attr]
    for use in (extra.apply, extra.param_groups):
        with pytest.raises(ParameterMismatch) as caught:
            use(model)
        assert caught.value.faults == [
            "9.weight: not in the model",
            "2.bias: not in the report",
            "3.weight: not in the report",
            "3.bias: not in the report",
            "2.weight: shape (3, 64) in the model, (2, 64) in the report",
        ]
        assert isinstance(caught.value, ValueError)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def test_values_that_are_not_finite_are_a_misfit() -> None:
    model = network()
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    with pytest.raises(ParameterMismatch, match=r"2\.weight: has values that are not finite"):
        advice().apply(model)
    assert torch.equal(model[0].weight, before)


def test_a_measurement_recommends_nothing() -> None:
    with pytest.raises(ValueError, match="kind 'measure' recommends nothing"):
        report(kind="measure").apply(network())


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_optimizers_take_the_groups(kind: type[torch.optim.Optimizer]) -> None:
    model = network()
    optimizer = kind(advice().param_groups(model))  # type: ignore[call-arg]
    assert [(g["name"], g["lr"], len(g["params"])) for g in optimizer.param_groups] == [
        ("input", 0.1, 2),
        ("output", 0.2, 3),
    ]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.ones(3, 4)).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    if kind is torch.optim.SGD:
        torch.testing.assert_close(model[0].weight, before["0.weight"] - 0.1 * gradients["0.weight"])
        torch.testing.assert_close(model[2].weight, before["2.weight"] - 0.2 * gradients["2.weight"])


def test_frozen_blocks_stay_and_frozen_parameters_are_left_out() -> None:
    model = network()
    frozen = report(
        *(p.model_copy(update={"lr": 0.0 if p.block == "input" else p.lr}) for p in advice().recommendation.parameters)  # type: ignore[union-attr]
    )
    model[1].requires_grad_(False)
    groups = frozen.param_groups(model)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == [("input", 0.0, 2), ("output", 0.2, 1)]
    optimizer = torch.optim.SGD(groups)
    before = model[0].weight.detach().clone()
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_a_report_for_two_optimizers_gives_the_groups_of_each() -> None:
    model = network()
    kinds = {"0.weight": "muon", "0.bias": "adamw", "1.weight": "adamw", "1.bias": "adamw", "2.weight": "muon"}
    given = report(*(p.model_copy(update={"optimizer": kinds[p.name]}) for p in advice().recommendation.parameters))  # type: ignore[union-attr]
    muon, adamw = (given.param_groups(model, optimizer=name) for name in ("muon", "adamw"))
    assert [(g["name"], g["lr"], [p.ndim for p in g["params"]]) for g in muon] == [
        ("input", 0.1, [2]),
        ("output", 0.2, [2]),
    ]
    assert [(g["name"], g["lr"], [p.ndim for p in g["params"]]) for g in adamw] == [
        ("input", 0.1, [1]),
        ("output", 0.2, [1, 1]),
    ]
    torch.optim.Muon(muon)
    torch.optim.AdamW(adamw)
    with pytest.raises(ValueError, match=r"for muon and adamw.*param_groups\(model, optimizer='muon'\) and"):
        given.param_groups(model)
    with pytest.raises(ValueError, match="'sgd' has no parameters in this report; it is for muon, adamw"):
        given.param_groups(model, optimizer="sgd")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("names", [("embed.weight",), ("head.weight",), ("embed.weight", "head.weight")])
def test_tied_weights_count_once(names: tuple[str, ...]) -> None:
    model = Tied()
    given = report(*(parameter(name, (16, 8), 0.5, 0.25, "embed") for name in names))
    given.apply(model)
    assert rms(model.embed.weight) == pytest.approx(0.5, rel=1e-6)
    assert model.head.weight is model.embed.weight
    groups = given.param_groups(model)
    assert [len(g["params"]) for g in groups] == [1]
    torch.optim.AdamW(groups)


@pytest.mark.parametrize(("std", "lr", "block"), [(0.25, 0.1, "embed"), (0.5, 0.2, "embed"), (0.5, 0.1, "head")])
def test_weights_tied_in_the_model_but_not_in_the_report_are_refused(std: float, lr: float, block: str) -> None:
    model = Tied()
    before = model.embed.weight.detach().clone()
    given = report(
        parameter("embed.weight", (16, 8), 0.5, 0.1, "embed"), parameter("head.weight", (16, 8), std, lr, block)
    )
    for use in (given.apply, given.param_groups):
        with pytest.raises(
            ParameterMismatch, match=r"head.weight: tied to embed.weight in the model, not in the report"
        ):
            use(model)
    assert torch.equal(model.embed.weight, before)
