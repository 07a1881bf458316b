"""The measurement against dense Jacobians in float64: every family, every optimizer, fresh and after some steps."""

from __future__ import annotations

import math

import pytest
import torch

from featurespeed.contract import parse_request
from featurespeed_workers.architectures import build
from featurespeed_workers.data import load
from featurespeed_workers.directions import UpdateRule, rules_of
from featurespeed_workers.losses import loss_function
from featurespeed_workers.measurement import Setting, measure_state
from featurespeed_workers.optimizers import make_optimizers, state_of

from .oracle import expected, real_update

ARCHITECTURES = {
    "mlp": {"family": "mlp", "input_dim": 5, "width": 7, "depth": 4, "output_dim": 3, "bias": True},
    "mlp_norm": {"family": "mlp", "input_dim": 5, "width": 7, "depth": 3, "output_dim": 3, "norm": "rmsnorm"},
    "resnet": {"family": "resnet", "input_dim": 5, "width": 6, "depth": 5, "output_dim": 3, "activation": "tanh"},
    "resnet_identity": {
        "family": "resnet", "input_dim": 5, "width": 6, "depth": 4, "output_dim": 3, "activation": "silu",
        "shortcut": "identity", "norm": "layernorm", "bias": True, "branch_scale": 0.5,
    },
    "transformer": {
        "family": "transformer", "layers": 2, "width": 8, "heads": 2, "vocab_size": 6, "context_length": 4,
        "mlp_ratio": 1.5, "bias": True,
    },
    "convnet": {
        "family": "convnet", "image": {"height": 4, "width": 3, "channels": 2}, "width": 3, "layers": 2, "stages": 2,
        "output_dim": 3, "bias": True,
    },
    "convnet_batchnorm": {
        "family": "convnet", "image": {"height": 3, "width": 3}, "width": 2, "layers": 2, "output_dim": 3,
        "norm": "batchnorm", "activation": "silu", "shortcut": "identity",
    },
    "convnet_groupnorm": {
        "family": "convnet", "image": {"height": 3, "width": 3}, "width": 4, "layers": 1, "output_dim": 3,
        "norm": "groupnorm", "groups": 2, "activation": "gelu",
    },
    "vit": {
        "family": "transformer", "layers": 1, "width": 8, "heads": 2, "mlp_ratio": 2, "norm": "rmsnorm",
        "image": {"height": 4, "width": 4, "patch": 2}, "output_dim": 3,
    },
}  # fmt: skip
OPTIMIZERS = {
    "sgd": {"name": "sgd"},
    "sgd_decay": {"name": "sgd", "weight_decay": 0.1},
    "momentum": {"name": "sgd", "momentum": 0.9},
    "nesterov": {"name": "sgd", "momentum": 0.8, "nesterov": True},
    "adam": {"name": "adam", "weight_decay": 0.01},
    "adamw": {"name": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.1},
    "signsgd": {"name": "signsgd", "weight_decay": 0.1},
    "signum": {"name": "signsgd", "momentum": 0.9},
    "muon": {"name": "muon", "weight_decay": 0.1, "adamw": {"betas": [0.9, 0.95], "weight_decay": 0.2}},
    "muon_plain": {
        "name": "muon",
        "nesterov": False,
        "momentum": 0.8,
        "ns_steps": 3,
        "ns_coefficients": [2, -1.5, 0.5],
        "adjust_lr_fn": "match_rms_adamw",
    },
}
RATE = 0.05
TOLERANCE = 1e-9


def _setup(architecture: str, optimizer: str, loss: str = "cross_entropy"):
    family = ARCHITECTURES[architecture]
    tokens = "vocab_size" in family
    data = {"kind": "tokens", "batch_size": 2} if tokens else {"kind": "gaussian", "batch_size": 3}
    request = parse_request(
        {"kind": "measure", "architecture": family, "data": data, "loss": loss, "optimizer": OPTIMIZERS[optimizer]}
    )
    network = build(request.architecture, seed=0)
    network.module.double()
    source = load(request, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    return request, network, source, loss_function(loss)


def _optimizers(request, network) -> list[torch.optim.Optimizer]:
    """torch's own, by its documentation: with Muon for the matrices inside, AdamW for all the rest."""
    hidden = [p for n, p in network.module.named_parameters() if p.ndim == 2 and n.startswith("hidden")]
    rest = [p for p in network.module.parameters() if all(p is not q for q in hidden)]
    if (name := request.optimizer.name) != "muon":
        return make_optimizers(request.optimizer, [{"params": [*hidden, *rest], "optimizer": name, "lr": RATE}])
    options = request.optimizer.model_dump(exclude={"name", "adamw"})
    adamw = request.optimizer.adamw.model_dump()
    return [torch.optim.Muon(hidden, lr=RATE, **options), torch.optim.AdamW(rest, lr=RATE, **adamw)]


def _train(network, optimizers, source, loss_fn, steps: int) -> None:
    for step in range(steps):
        inputs, targets = source.batch(0, step + 100)
        network.module.zero_grad()
        loss_fn(network.module(inputs), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
    network.module.zero_grad()


def _check(architecture: str, optimizer_name: str, steps: int, loss: str = "cross_entropy") -> None:
    request, network, source, loss_fn = _setup(architecture, optimizer_name, loss)
    names = [block.name for block in network.blocks]
    optimizers = _optimizers(request, network)
    _train(network, optimizers, source, loss_fn, steps)
    inputs, targets = source.batch(0, 0)
    velocity = real_update(network.module, optimizers, loss_fn(network.module(inputs), targets))
    truth = expected(network.module, names, inputs, targets, loss_fn, velocity)

    rule = rules_of(request.optimizer, network)
    parameters = dict(network.module.named_parameters())
    setting = Setting(network, loss_fn, rule, lambda name: state_of(optimizers, parameters[name]))
    found = measure_state(setting, parameters, (inputs, targets), dict.fromkeys(names, RATE))

    assert found.method == "exact"
    assert found.formula_residual <= 1e-10
    assert found.loss_decay == pytest.approx(math.fsum(truth.contribution), rel=TOLERANCE)
    scale = max(abs(c) for c in truth.contribution)
    for i, layer in enumerate(found.layers):
        speed, backward = truth.speed[i], truth.backward[i]
        cos = float(-(speed * backward).sum() / (speed.norm() * backward.norm()))
        assert layer.feature_speed == pytest.approx(float(speed.norm()) / math.sqrt(speed.numel()), rel=TOLERANCE)
        assert layer.backward_rms == pytest.approx(float(backward.norm()) / math.sqrt(speed.numel()), rel=TOLERANCE)
        assert layer.contribution == pytest.approx(truth.contribution[i], rel=TOLERANCE, abs=TOLERANCE * scale)
        assert layer.cos == pytest.approx(cos, rel=TOLERANCE, abs=TOLERANCE)
        assert layer.angle == pytest.approx(math.acos(cos), rel=TOLERANCE)
        decay = math.fsum(truth.contribution[: i + 1])
        assert layer.sensitivity == pytest.approx(
            float(speed.norm()) / math.sqrt(speed.numel()) / decay,
            rel=1e3 * TOLERANCE if abs(decay) < 1e-3 * scale else TOLERANCE * 10,
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_family_under_gradient_descent(architecture: str) -> None:
    _check(architecture, "sgd", steps=0)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("architecture", ["mlp", "resnet_identity", "transformer"])
def test_every_optimizer_fresh_and_with_state(architecture: str, optimizer: str, steps: int) -> None:
    _check(architecture, optimizer, steps)


@pytest.mark.parametrize("architecture", ["mlp_norm", "resnet"])
def test_mse(architecture: str) -> None:
    _check(architecture, "momentum", 2, loss="mse")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_finite_difference_is_a_looser_witness(architecture: str) -> None:
    """A second estimator of ḟ agrees to the square root of the precision, and says how far it is off."""
    request, network, source, loss_fn = _setup(architecture, "adam")
    rule = UpdateRule.from_contract(request.optimizer)
    parameters, batch = dict(network.module.named_parameters()), source.batch(0, 0)
    exact = measure_state(Setting(network, loss_fn, lambda n: rule), parameters, batch, "balanced")
    differences = Setting(network, loss_fn, lambda n: rule, method="finite_difference")
    loose = measure_state(differences, parameters, batch, "balanced")
    assert loose.method == "finite_difference"
    assert 1e-12 < loose.formula_residual < 1e-5
    for a, b in zip(exact.layers, loose.layers, strict=True):
        assert b.feature_speed == pytest.approx(a.feature_speed, rel=1e-5)
        assert b.angle == pytest.approx(a.angle, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_double_backward_is_exact_as_well(architecture: str) -> None:
    request, network, source, loss_fn = _setup(architecture, "adam")
    rule = UpdateRule.from_contract(request.optimizer)
    parameters, batch = dict(network.module.named_parameters()), source.batch(0, 0)
    exact, twice = (
        measure_state(Setting(network, loss_fn, lambda n: rule, method=m), parameters, batch, "balanced")
        for m in ("exact", "double_backward")
    )
    assert twice.method == "double_backward"
    for a, b in zip(exact.layers, twice.layers, strict=True):
        assert (b.feature_speed, b.cos) == pytest.approx((a.feature_speed, a.cos), rel=1e-11)


def test_balanced_rates_give_equal_contributions_and_unit_decay() -> None:
    request, network, source, loss_fn = _setup("resnet", "sgd")
    rule = UpdateRule.from_contract(request.optimizer)
    parameters = dict(network.module.named_parameters())
    found = measure_state(Setting(network, loss_fn, lambda n: rule), parameters, source.batch(0, 0), "balanced")
    assert found.loss_decay == pytest.approx(1.0, rel=1e-12)
    assert [layer.contribution for layer in found.layers] == pytest.approx([0.2] * 5, rel=1e-12)
    # Eq. 8 for gradient descent: η_l = 1 / (L ‖∇_l‖²)
    assert list(found.rates) == pytest.approx([1 / (5 * layer.gradient_norm**2) for layer in found.layers], rel=1e-9)


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "sgd_decay", "adam", "signum", "muon", "muon_plain"])
def test_sustained_is_the_step_that_a_constant_gradient_settles_to(optimizer: str) -> None:
    """Against the optimizers themselves, run on a loss whose gradient is constant."""
    spec = parse_request(
        {"kind": "measure", "architecture": ARCHITECTURES["mlp"], "data": {"kind": "gaussian"}, "loss": "mse",
         "optimizer": {**OPTIMIZERS[optimizer], "weight_decay": 0.0}}
    ).optimizer  # fmt: skip
    gradient = torch.tensor([[3.0, -2.0], [0.5, 1.0], [-0.2, 7.0]], dtype=torch.float64)
    weight = torch.zeros_like(gradient).requires_grad_()
    [real] = make_optimizers(spec, [{"params": [weight], "optimizer": spec.name, "lr": 1.0}])
    for _ in range(400):
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        real.step()
    steady = before - weight.detach()
    ours = UpdateRule.from_contract(spec).sustained().direction(weight.detach(), gradient, {})
    assert torch.allclose(ours, steady, rtol=1e-9)
