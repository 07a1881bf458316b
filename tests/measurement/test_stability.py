"""Stability (paper, Sec 6) against dense Hessians, central differences and Prop 6.1, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.losses import mse
from featurespeed_workers.measurement import Setting, measure_state
from featurespeed_workers.modules import network_of
from featurespeed_workers.stability import stability
from tests.measurement.operators import OnceDifferentiable

from .oracle import _tail_gradient as tail_gradient
from .test_oracle import ARCHITECTURES, _setup


def _measured(architecture: str, optimizer: str, loss: str = "cross_entropy", rates="balanced"):
    request, network, source, loss_fn = _setup(architecture, optimizer, loss)
    rule = UpdateRule.from_contract(request.optimizer)
    setting = Setting(network, loss_fn, lambda name: rule)
    parameters, batch = dict(network.module.named_parameters()), source.batch(0, 0)
    return setting, parameters, batch, measure_state(setting, parameters, batch, rates)


def _velocity(setting: Setting, parameters, batch, rates) -> dict[str, torch.Tensor]:
    """ẇ = −η u by torch alone, per unit of loss decay."""
    loss = setting.loss_function(setting.network.module(batch[0]), batch[1])
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    eta = {n: rates.get(n, rates[b.name]) for b in setting.network.blocks for n in b.parameters}
    found = {n: -eta[n] * setting.rule(n).direction(p.detach(), gradients[n], {}) for n, p in parameters.items()}
    decay = -sum(float((gradients[n] * v).sum()) for n, v in found.items())
    return {n: v / decay for n, v in found.items()}


@pytest.mark.parametrize(
    ("architecture", "optimizer", "loss"),
    [
        ("mlp", "sgd", "cross_entropy"),
        ("mlp_norm", "momentum", "mse"),
        ("resnet", "adam", "mse"),
        ("resnet", "sgd_decay", "cross_entropy"),
    ],
)
def test_gradient_speed_is_that_of_the_dense_hessian(architecture: str, optimizer: str, loss: str) -> None:
    setting, parameters, batch, measured = _measured(architecture, optimizer, loss)
    velocity = _velocity(setting, parameters, batch, measured.all_rates)
    names = list(parameters)
    sizes = [parameters[n].numel() for n in names]

    def loss_of(flat: torch.Tensor) -> torch.Tensor:
        parts = {n: x.view_as(parameters[n]) for n, x in zip(names, flat.split(sizes), strict=True)}
        return setting.loss_function(functional_call(setting.network.module, parts, (batch[0],)), batch[1])

    flat = torch.cat([parameters[n].detach().flatten() for n in names])
    hessian = torch.autograd.functional.hessian(loss_of, flat)
    change = dict(zip(names, (hessian @ torch.cat([velocity[n].flatten() for n in names])).split(sizes), strict=True))
    found = stability(setting, parameters, batch, measured)
    for block, layer, by_measurement in zip(setting.network.blocks, found.layers, measured.layers, strict=True):
        dense = math.hypot(*(float(change[n].norm()) for n in block.parameters))
        assert layer.relative_gradient_speed == pytest.approx(dense / by_measurement.gradient_norm, rel=1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_speeds_are_those_of_central_differences(architecture: str) -> None:
    """Forward and backward passes from torch alone, at w ± h ẇ; θ̃ is between f and −ḃ wherever it is given."""
    setting, parameters, batch, measured = _measured(architecture, "adam")
    velocity = _velocity(setting, parameters, batch, measured.all_rates)
    names, h = [block.name for block in setting.network.blocks], 1e-6

    def passes(step: float):
        """f_l, b_l and ∇_l."""
        with torch.no_grad():
            for n, p in parameters.items():
                p.add_(velocity[n], alpha=step)
        features, x = [], batch[0]
        for name in names:
            features.append(x := getattr(setting.network.module, name)(x))
        rest = [names[i + 1 :] for i in range(len(names))]
        backward = [
            tail_gradient(setting.network.module, r, f, batch[1], setting.loss_function)
            for r, f in zip(rest, features, strict=True)
        ]
        loss = setting.loss_function(features[-1], batch[1])
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        by_block = [torch.cat([gradients[n].flatten() for n in b.parameters]) for b in setting.network.blocks]
        with torch.no_grad():
            for n, p in parameters.items():
                p.sub_(velocity[n], alpha=step)
        return [f.detach() for f in features], backward, by_block

    found = stability(setting, parameters, batch, measured)
    here, ahead, behind = passes(0.0), passes(h), passes(-h)
    for i, layer in enumerate(found.layers):
        measured_speeds = (layer.relative_feature_speed, layer.relative_backward_speed, layer.relative_gradient_speed)
        for speed, x, after, before in zip(measured_speeds, here, ahead, behind, strict=True):
            difference = (after[i] - before[i]) / (2 * h)
            assert speed == pytest.approx(float(difference.norm() / x[i].norm()), rel=1e-6)


def test_parts_of_a_batch_add_up() -> None:
    setting, parameters, batch, measured = _measured("transformer", "sgd")
    whole = stability(setting, parameters, batch, measured)
    parts = stability(setting, parameters, batch, measured, examples=1)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert (b.relative_backward_speed, b.relative_gradient_speed) == pytest.approx(
            (a.relative_backward_speed, a.relative_gradient_speed), rel=1e-12
        )


HOMOGENEOUS = {"mlp": {"bias": False}, "resnet": {"activation": "relu"}}


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("architecture", HOMOGENEOUS)
def test_backward_speed_formula(architecture: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prop 6.1: ‖ḃ_v‖ from the second derivative, and from forward quantities, contributions and the loss's Hessian."""
    monkeypatch.setitem(ARCHITECTURES, "homogeneous", {**ARCHITECTURES[architecture], **HOMOGENEOUS[architecture]})
    setting, parameters, batch, measured = _measured("homogeneous", "adam", loss)
    velocity = _velocity(setting, parameters, batch, measured.all_rates)
    found = stability(setting, parameters, batch, measured)
    assert found.backward_residual < 1e-10

    def outputs(w):
        return functional_call(setting.network.module, w, (batch[0],))

    primal = {n: p.detach() for n, p in parameters.items()}
    f_last, f_last_dot = torch.func.jvp(outputs, (primal,), (velocity,))
    of_loss = torch.autograd.functional.hessian(lambda f: setting.loss_function(f, batch[1]), f_last)
    curvature = float(torch.einsum("ab,abcd,cd", f_last, of_loss, f_last_dot))
    for v, (layer, m) in enumerate(zip(found.layers, measured.layers, strict=True)):
        size, backward = math.sqrt(m.size), layer.relative_backward_speed * m.backward_rms * math.sqrt(m.size)
        later = sum(other.contribution for other in measured.layers[v + 1 :]) / measured.loss_decay
        feature = m.feature_rms * size
        assert backward == pytest.approx((later - curvature) / (feature * math.cos(layer.backward_angle)), rel=1e-9)


@pytest.mark.parametrize("architecture", ["mlp_norm", "resnet", "transformer"])
def test_what_is_not_homogeneous_has_no_backward_angle(architecture: str) -> None:
    """A norm, tanh, attention."""
    found = stability(*_measured(architecture, "sgd"))
    assert found.backward_residual is None
    assert all(layer.backward_angle is None for layer in found.layers)


def test_zero_biases_do_not_pass_for_homogeneous() -> None:
    """At zero biases Euler's identity holds in a ReLU MLP, but not its derivative."""
    setting, parameters, batch, _ = _measured("mlp", "sgd")
    with torch.no_grad():
        for name, p in parameters.items():
            if name.endswith("bias"):
                p.zero_()
    measured = measure_state(setting, parameters, batch, "balanced")
    assert stability(setting, parameters, batch, measured).backward_residual is None


def test_frozen_blocks_have_no_gradient_and_linear_losses_no_second_derivative() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    module[0].requires_grad_(False)
    setting = Setting(network_of(module), lambda f, y: (f * y).sum(), lambda name: UpdateRule("sgd"))
    batch = (torch.randn(5, 3).double(), torch.randn(5, 2).double())
    parameters = dict(module.named_parameters())
    found = stability(setting, parameters, batch, measure_state(setting, parameters, batch, "balanced"))
    first, last = found.layers
    assert (first.relative_feature_speed, first.relative_gradient_speed) == (0.0, None)
    assert first.relative_backward_speed > 0  # b_1 = W_2ᵀ y moves with W_2
    assert (last.relative_backward_speed, last.relative_gradient_speed) == (0.0, 0.0)


def test_gradients_beyond_float32_squares() -> None:
    """Gradients of 1e-22: the ratios are those of the same net in float64."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    batch = (torch.randn(6, 4), torch.randn(6, 3))
    found = {}
    for dtype in (torch.float32, torch.float64):
        network = network_of(module.to(dtype))
        setting = Setting(network, lambda f, y: mse(f, y) * 1e-22, lambda name: UpdateRule("sgd"))
        parameters, cast = dict(module.named_parameters()), tuple(x.to(dtype) for x in batch)
        found[dtype] = stability(setting, parameters, cast, measure_state(setting, parameters, cast, "balanced"))
    for a, b in zip(found[torch.float32].layers, found[torch.float64].layers, strict=True):
        assert (a.relative_backward_speed, a.relative_gradient_speed) == pytest.approx(
            (b.relative_backward_speed, b.relative_gradient_speed), rel=1e-4
        )


def test_an_operator_without_second_derivative_says_so() -> None:
    module = nn.Sequential(OnceDifferentiable(3, 4), nn.Linear(4, 2)).double()
    setting = Setting(network_of(module), mse, lambda name: UpdateRule("sgd"), method="finite_difference")
    batch = (torch.randn(5, 3).double(), torch.randn(5, 2).double())
    parameters = dict(module.named_parameters())
    measured = measure_state(setting, parameters, batch, "balanced")
    with pytest.raises(RuntimeError, match="once_differentiable"):
        stability(setting, parameters, batch, measured)
