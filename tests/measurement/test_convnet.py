"""The residual CNN where it differs from other families: batch norm sees the whole batch, shortcuts are scaled too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featurespeed.budget import GIB, SECOND_DERIVATIVE_BYTES, stability_examples
from featurespeed.contract import parse_request
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.data import load
from featurespeed_workers.local import answer
from featurespeed_workers.rules.forward import scale_features

BATCHNORM = {
    "family": "convnet", "image": {"height": 8, "width": 8}, "width": 4, "layers": 2, "stages": 2, "output_dim": 10,
    "norm": "batchnorm",
}  # fmt: skip
STEPS = 6


def request(**changes):
    measurement = {"seeds": [0], "steps": STEPS, "every": STEPS, "dtype": "float64"}
    return parse_request(
        {"kind": "recommend", "architecture": BATCHNORM, "data": {"kind": "digits", "batch_size": 16},
         "loss": "cross_entropy", "optimizer": {"name": "adamw"}, "measurement": measurement, **changes}
    )  # fmt: skip


def test_training_under_batch_norm_is_that_of_torch_alone() -> None:
    """By the statistics of each batch, as in training mode; measuring on the way changes none of it."""
    asked = request()
    module = build(asked.architecture, seed=0).module.double()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=asked.optimizer.weight_decay)
    source = load(asked, dataset=None, dtype=torch.float64, device=torch.device("cpu"))
    losses = []
    for step in range(STEPS):
        inputs, targets = source.batch(0, step)
        loss = F.cross_entropy(module(inputs), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 1e-3 * (
            1 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / (STEPS - 1)))
        )
        optimizer.step()
    report = answer(asked)
    assert report.evidence.loss_curves.pytorch_default == pytest.approx(losses, rel=1e-9)
    assert all(m.formula_residual < 1e-10 for m in report.measurements)
    assert report.properties.after.BS.value is not None


def test_branches_and_shortcuts_are_brought_to_rms_1_before_they_are_scaled() -> None:
    asked = request()
    network = build(asked.architecture, seed=0)
    base_initialize(network, seed=0)
    source = load(asked, dataset=None, dtype=torch.float32, device=torch.device("cpu"))
    scalables = [(block.name, scalable) for block in network.blocks for scalable in block.scalables]
    batches = [source.batch(0, step) for step in range(4)]
    parameters = scale_features(network, dict(network.module.named_parameters()), batches, scalables).parameters
    network.module.load_state_dict(parameters, strict=False)
    seen: dict[nn.Module, float] = {}
    for module in network.module.modules():
        module.register_forward_hook(lambda m, a, out: seen.__setitem__(m, float(out.detach().square().mean().sqrt())))
    network.module(torch.cat([inputs for inputs, _ in batches]))
    for path in ("input", "hidden_2.branch", "hidden_3.branch", "hidden_3.projection", "output"):
        assert seen[network.module.get_submodule(path)] == pytest.approx(1, rel=0.01), path


def test_second_derivatives_under_batch_norm_are_of_the_whole_batch_or_none() -> None:
    large = {**BATCHNORM, "image": {"height": 64, "width": 64}, "width": 64}
    changes = {"data": {"kind": "gaussian", "batch_size": 256}, "measurement": {"seeds": [0], "stability": True}}
    alone, coupled = (request(architecture={**large, "norm": norm}, **changes) for norm in ("none", "batchnorm"))
    assert SECOND_DERIVATIVE_BYTES == 2 * GIB
    assert 0 < stability_examples(alone) < 256
    assert stability_examples(coupled) == 0
    assert stability_examples(request()) == 16
