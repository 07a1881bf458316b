"""M_1/√M_2 by random probes (Thm 3.2) against dense kernels in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from featurespeed.contract import Sgd
from featurespeed_workers.architectures import build
from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.kernel import kernel_cosines, moments_cosine
from featurespeed_workers.measurement import Setting, measure_state
from featurespeed_workers.modules import network_of
from tests.theory.test_kernel import MLP, RESNET, TRANSFORMER, kernels, problem

PLAIN = UpdateRule.from_contract(Sgd(name="sgd"))


def dense(network, parameters, x, rates) -> list[float]:
    found = []
    for K in kernels(network, parameters, x, rates):
        eigenvalues = torch.linalg.eigvalsh(K)
        found.append(float(eigenvalues.mean() / eigenvalues.square().mean().sqrt()))
    return found


def estimates(architecture, *numbers: int):
    """What the dense kernels give, and estimates from so many probes."""
    network = build(architecture, seed=0)
    network.module.double()
    parameters = {n: p.detach().requires_grad_() for n, p in network.module.named_parameters()}
    batch, loss_function = problem(architecture, 0)
    rates = {block.name: 0.1 * (i + 1) for i, block in enumerate(network.blocks)}
    truth = dense(network, parameters, batch[0], rates)
    setting = Setting(network, loss_function, lambda name: PLAIN)
    return truth, *(kernel_cosines(setting, parameters, batch, rates, probes=n, seed=1) for n in numbers)


@pytest.mark.parametrize("architecture", [MLP, RESNET, TRANSFORMER], ids=lambda a: a.family)
def test_probes_agree_with_the_dense_kernel(architecture) -> None:
    truth, found = estimates(architecture, 12)
    assert len(found) == len(truth)
    for expected, layer in zip(truth, found, strict=True):
        assert abs(layer.cos - expected) < 4 * layer.standard_error
        assert layer.standard_error < 0.15


def test_probes_converge_as_their_root() -> None:
    truth, few, many = estimates(MLP, 30, 480)
    for expected, rough, fine in zip(truth, few, many, strict=True):
        assert abs(fine.cos - expected) < 4 * fine.standard_error
        assert fine.standard_error < 0.03
        assert fine.standard_error == pytest.approx(rough.standard_error / 4, rel=0.6)


def test_a_backward_pass_that_does_not_know_the_kernel_has_that_angle() -> None:
    """Thm 3.2 itself: b_L Gaussian and independent of K_L, m_L = 4000; cos θ_L is M_1/√M_2 within 3 %."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 100), nn.Tanh(), nn.Linear(100, 40)).double()
    inputs, backward = torch.randn(100, 40).double(), torch.randn(100, 40).double()
    setting = Setting(network_of(module), lambda f, b: (f * b).sum(), lambda name: PLAIN)
    parameters = dict(module.named_parameters())
    measured = measure_state(setting, parameters, (inputs, backward), {"0": 1.0, "2": 2.0})
    view = kernel_cosines(setting, parameters, (inputs, backward), {"0": 1.0, "2": 2.0}, probes=4, seed=0)
    assert view[-1].standard_error < 0.02
    assert view[-1].cos == pytest.approx(measured.layers[-1].cos, rel=0.03)
    assert measured.layers[-1].cos < 0.8, "a kernel that is a multiple of the identity would prove nothing"


def test_frozen_blocks_are_not_in_the_kernel() -> None:
    network = build(MLP, seed=0)
    network.module.double()
    parameters = {n: p.detach().requires_grad_(not n.startswith("input")) for n, p in network.module.named_parameters()}
    batch, loss_function = problem(MLP, 0)
    setting = Setting(network, loss_function, lambda name: PLAIN)
    rates = dict(zip((b.name for b in network.blocks), [0.0, 1.0, 2.0, 1.0], strict=True))
    large = {name: rate * 1e30 for name, rate in rates.items()}
    first, *others = kernel_cosines(setting, parameters, batch, large, probes=400, seed=2)
    assert first is None
    trained = {n: p.detach().requires_grad_() for n, p in parameters.items()}
    truth = dense(network, trained, batch[0], rates)[1:]
    for expected, found in zip(truth, others, strict=True):
        assert abs(found.cos - expected) < 4 * found.standard_error


def test_error_of_the_ratio_of_moments() -> None:
    """The jackknife's error is the scatter of the estimate over repeated draws: χ² moments of a known spectrum."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.linspace(0.1, 3, 50, dtype=torch.float64)
    truth = float(spectrum.mean() / spectrum.square().mean().sqrt())
    estimates = []
    for _ in range(400):
        squares = torch.randn(8, 50, generator=generator, dtype=torch.float64).square()
        pair = ((squares * spectrum).mean(1).tolist(), (squares * spectrum.square()).mean(1).tolist())
        estimates.append(moments_cosine(*pair))
    scatter = torch.tensor([e.cos for e in estimates]).std().item()
    stated = math.sqrt(sum(e.standard_error**2 for e in estimates) / len(estimates))
    assert stated == pytest.approx(scatter, rel=0.15)
    assert abs(sum(e.cos for e in estimates) / len(estimates) - truth) < 4 * scatter / 20


def test_an_operator_without_forward_rule_says_so() -> None:
    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.exp())
            return x.exp()

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0]

    class Layer(nn.Linear):
        def forward(self, x):
            return Exp.apply(super().forward(x))

    module = nn.Sequential(Layer(3, 4), nn.Linear(4, 2)).double()
    setting = Setting(network_of(module), lambda f, y: (f * y).sum(), lambda name: PLAIN)
    batch = (torch.randn(5, 3).double(), torch.randn(5, 2).double())
    with pytest.raises(NotImplementedError):
        kernel_cosines(setting, dict(module.named_parameters()), batch, {"0": 1.0, "1": 1.0}, probes=2, seed=0)
