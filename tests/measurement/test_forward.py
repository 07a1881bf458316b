"""SP: forward rescaling brings every feature to its target, at any depth, seen by a plain forward pass."""

from __future__ import annotations

import pytest
import torch

from featurespeed.contract import parse_request
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.rules.forward import scale_features

CASES = {
    "mlp": {"family": "mlp", "width": 64, "depth": 48},
    "mlp_tanh": {"family": "mlp", "width": 64, "depth": 12, "activation": "tanh"},
    "resnet": {"family": "resnet", "width": 64, "depth": 40},
    "resnet_identity": {"family": "resnet", "width": 64, "depth": 20, "shortcut": "identity", "norm": "layernorm"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_every_output_reaches_its_target(case: str, batch_size: int) -> None:
    spec = {"input_dim": 10, "output_dim": 1, **CASES[case]}
    data = {"kind": "sphere"}
    request = parse_request({"kind": "recommend", "architecture": spec, "data": data, "loss": "mse"})
    network = build(request.architecture, seed=1)
    base_initialize(network, seed=1)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(batch_size, 10, generator=generator), torch.zeros(batch_size, 1)) for _ in range(4)]
    scalables = [(b.name, s) for b in network.blocks[:-1] for s in b.scalables]
    before = {n: p.clone() for n, p in network.module.named_parameters()}
    forward = scale_features(network, dict(network.module.named_parameters()), batches, scalables)

    assert not forward.immaterial
    assert all(torch.equal(p, before[n]) for n, p in network.module.named_parameters())
    network.module.load_state_dict(forward.parameters)
    squares = dict.fromkeys((s.module for _, s in scalables), 0.0)
    for inputs, _ in batches:
        x = inputs
        for name, block in network.module.named_children():
            branch = f"{name}.branch"
            if branch in squares:
                squares[branch] += float(block.branch(x).detach().pow(2).mean()) / 4
            x = block(x)
            if name in squares:
                squares[name] += float(x.detach().pow(2).mean()) / 4
    for _, scalable in scalables:
        assert squares[scalable.module] ** 0.5 == pytest.approx(scalable.target_rms, rel=0.01)


def test_a_scale_behind_a_norm_layer_is_immaterial_and_left_alone() -> None:
    spec = {"family": "mlp", "input_dim": 10, "width": 32, "depth": 4, "output_dim": 3, "norm": "layernorm"}
    request = parse_request(
        {"kind": "recommend", "architecture": spec, "data": {"kind": "gaussian"}, "loss": "cross_entropy"}
    )
    network = build(request.architecture, seed=0)
    parameters = dict(network.module.named_parameters())
    scalables = [(b.name, s) for b in network.blocks[:-1] for s in b.scalables]
    forward = scale_features(network, parameters, [(torch.randn(8, 10), torch.zeros(8))], scalables)
    assert [block for block, _ in forward.immaterial] == ["input", "hidden_2", "hidden_3"]
    assert all(torch.equal(forward.parameters[n], p) for n, p in parameters.items())
