"""Thm 3.2 against dense kernels in float64: ḟ_v = −K_v b_v, K_v = Σ_{l≤v} η_l J_vl J_vlᵀ, λ_min/λ_max ≤ cos θ_v ≤ 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call

from featurespeed.contract import Mlp, ResNet, Sgd, Transformer
from featurespeed_workers.architectures import build
from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.losses import cross_entropy, mse
from featurespeed_workers.measurement import Setting, measure_state

MLP = Mlp(family="mlp", input_dim=5, width=6, depth=4, output_dim=3)
RESNET = ResNet(family="resnet", input_dim=5, width=6, depth=5, output_dim=3, activation="gelu", norm="layernorm")
TRANSFORMER = Transformer(
    family="transformer", layers=2, width=8, heads=2, mlp_ratio=1.0, vocab_size=7, context_length=4
)


def problem(architecture, seed):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(architecture, Transformer):
        tokens = torch.randint(7, (2, 5), generator=generator)
        return (tokens[:, :-1], tokens[:, 1:]), cross_entropy
    x, y = (torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    return (x, y), mse


def forward(network, parameters, x):
    """f_1 … f_L, block by block."""
    features = []
    for block in network.blocks:
        own = {name.removeprefix(f"{block.name}."): parameters[name] for name in block.parameters}
        x = functional_call(network.module.get_submodule(block.module), own, (x,))
        features.append(x)
    return features


def kernels(network, parameters, x, rates):
    """K_v for every v, from Jacobians built row by row, of f_v by every parameter."""
    eta = {name: rates[block.name] for block in network.blocks for name in block.parameters}
    return [sum(eta[n] * J @ J.T for n, J in jacobian(f, parameters).items()) for f in forward(network, parameters, x)]


def jacobian(f, parameters):
    """∂f/∂w by parameter name, (size of f, size of w)."""
    tensors = list(parameters.values())
    rows = [
        torch.autograd.grad(e, tensors, retain_graph=True, materialize_grads=True, allow_unused=True)
        for e in f.flatten()
    ]
    return {name: torch.stack([row[i].flatten() for row in rows]) for i, name in enumerate(parameters)}


@pytest.mark.parametrize("architecture", [MLP, RESNET, TRANSFORMER], ids=lambda a: a.family)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rates", ["balanced", "given"])
def test_speed_is_minus_kernel_times_backward(architecture, seed, rates):
    network = build(architecture, seed=seed)
    network.module.double()
    parameters = {n: p.detach().requires_grad_() for n, p in network.module.named_parameters()}
    (x, y), loss_function = problem(architecture, seed)
    features = forward(network, parameters, x)
    loss = loss_function(features[-1], y)
    gradients = dict(
        zip(parameters, torch.autograd.grad(loss, list(parameters.values()), retain_graph=True), strict=True)
    )
    backward = torch.autograd.grad(loss, features)
    L = len(network.blocks)
    if rates == "balanced":  # Eq. 8
        squares = {b.name: sum(float(gradients[n].square().sum()) for n in b.parameters) for b in network.blocks}
        etas = {name: 1 / (L * square) for name, square in squares.items()}
    else:
        etas = {block.name: 0.1 * (i + 1) for i, block in enumerate(network.blocks)}
    plain = UpdateRule.from_contract(Sgd(name="sgd"))
    found = measure_state(
        Setting(network, loss_function, lambda name: plain),
        parameters,
        (x, y),
        "balanced" if rates == "balanced" else etas,
    )

    conditions = []
    for layer, b, K in zip(found.layers, backward, kernels(network, parameters, x, etas), strict=True):
        b = b.flatten()
        speed = -K @ b
        cos = float(-(b @ speed) / (b.norm() * speed.norm()))
        assert layer.size == b.numel()
        assert layer.feature_speed == pytest.approx(float(speed.norm()) / math.sqrt(layer.size), rel=1e-9)
        assert layer.cos == pytest.approx(cos, rel=1e-9)
        eigenvalues = torch.linalg.eigvalsh(K)
        conditions.append(max(0.0, float(eigenvalues[0] / eigenvalues[-1])))
        assert conditions[-1] * (1 - 1e-9) <= layer.cos <= 1
    assert max(conditions) > 1e-6, "every kernel is singular: the lower bound says nothing"
