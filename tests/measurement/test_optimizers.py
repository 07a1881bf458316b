"""SignSgd, the optimizer that torch lacks: its steps written out by hand, and that it is a torch optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.optimizers import SignSgd


def test_steps_are_those_of_signum() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 4.0]))
    optimizer = SignSgd([weight], lr=0.5, momentum=0.5, weight_decay=0.1)
    gradients = [[2.0, -1.0, 0.0, 3.0], [-3.0, -1.0, 1.0, -1.5], [-1.0, 3.0, 0.0, 0.0]]
    # buffers: the first gradient; then half the buffer before, plus the gradient
    signs = [[1.0, -1.0, 0.0, 1.0], [-1.0, -1.0, 1.0, 0.0], [-1.0, 1.0, 1.0, 0.0]]
    expected = weight.detach().clone()
    for gradient, sign in zip(gradients, signs, strict=True):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        expected = expected * (1 - 0.5 * 0.1) - 0.5 * torch.tensor(sign)
        torch.testing.assert_close(weight.detach(), expected)


def test_it_is_a_torch_optimizer() -> None:
    """Groups, schedules, closures, saved state and copies: with all of them a run is the same."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    groups = [{"params": [model.weight], "lr": 0.01}, {"params": [model.bias]}]
    optimizer = SignSgd(groups, lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.01]
    twin = copy.deepcopy(model)
    restored = SignSgd([{"params": [twin.weight]}, {"params": [twin.bias]}])
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.step(closure) < first
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert theirs.grad is not None
        mine.grad = theirs.grad.clone()
    restored.step()
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr: must be 0 or positive, got -1.0"),
        ({"momentum": 1.0}, "momentum: must be at least 0 and less than 1, got 1.0"),
        ({"weight_decay": float("nan")}, "weight_decay: must be 0 or positive, got nan"),
    ],
)
def test_bad_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SignSgd([nn.Parameter(torch.ones(1))], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adams_start_in_place_is_its_start(dtype: torch.dtype) -> None:
    """As out of place, and as torch's own first step of rate 1; sums are those of double precision."""
    torch.manual_seed(0)
    gradient = torch.randn(70_000, dtype=dtype) * torch.logspace(-9, 2, 70_000, dtype=dtype)
    gradient[::1000] = 0
    rule = UpdateRule(name="adam", eps=1e-6)
    expected, kept = rule.direction(torch.zeros(70_000, dtype=dtype), gradient, {}), gradient.clone()
    assert rule.starts_in_place(gradient, {})
    product, length = rule.start_in_place(gradient)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
    assert product == pytest.approx(float(kept.double() @ expected.double()), rel=1e-5)
    assert length == pytest.approx(float(expected.double().norm()), rel=1e-5)
    weight = torch.zeros(70_000, dtype=dtype, requires_grad=True)
    weight.grad = kept
    torch.optim.Adam([weight], lr=1.0, eps=1e-6).step()
    torch.testing.assert_close(-weight.detach(), gradient, rtol=1e-5, atol=1e-7)


def test_a_start_in_place_is_for_adam_alone_where_nothing_else_enters() -> None:
    gradient = torch.randn(10, 10)
    assert UpdateRule(name="adamw").starts_in_place(gradient, {})
    for rule in (UpdateRule(name="sgd"), UpdateRule(name="adamw", weight_decay=0.1), UpdateRule(name="muon")):
        assert not rule.starts_in_place(gradient, {})
    assert not UpdateRule(name="adam").starts_in_place(gradient, {"step": torch.tensor(1.0)})
    assert not UpdateRule(name="adam").starts_in_place(gradient.t(), {})
    assert not UpdateRule(name="adam").starts_in_place(gradient.bfloat16(), {})
