"""Names, blocks, seeds and starting points of the networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from featurespeed.contract import Architecture
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.architectures.layers import POSITION_STD
from tests.architectures.cases import CASES, case_id, example_inputs, language_model, mlp, resnet, vision_transformer


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


@pytest.mark.parametrize("architecture", CASES, ids=case_id)
def test_blocks_partition_the_parameters_and_the_chain_follows_their_order(architecture: Architecture) -> None:
    network = build(architecture, seed=0)
    names = [name for block in network.blocks for name in block.parameters]
    assert names == [name for name, _ in network.module.named_parameters()]
    assert [block.name for block in network.blocks] == architecture.block_names
    assert [block.module for block in network.blocks] == [name for name, _ in network.module.named_children()]


@pytest.mark.parametrize("architecture", CASES, ids=case_id)
def test_scalables_name_weights_of_their_block_and_a_submodule_within(architecture: Architecture) -> None:
    network = build(architecture, seed=0)
    shapes = {name: p.shape for name, p in network.module.named_parameters()}
    for block in network.blocks:
        assert block.scalables
        for scalable in block.scalables:
            network.module.get_submodule(scalable.module)
            assert scalable.module == block.module or scalable.module.startswith(f"{block.module}.")
            assert set(scalable.parameters) <= set(block.parameters)
            assert all(len(shapes[name]) in (2, 4) for name in scalable.parameters)


@pytest.mark.parametrize("architecture", [mlp(norm="rmsnorm"), resnet(norm="layernorm"), language_model()], ids=case_id)
def test_a_scalable_module_is_linear_in_its_parameters(architecture: Architecture) -> None:
    """Doubling the parameters doubles the output that is brought to its rms (or, normalised, leaves it)."""
    network = build(architecture, seed=0)
    base_initialize(network, seed=0)
    network.module.double()
    parameters = dict(network.module.named_parameters())
    for block in network.blocks:
        for scalable in block.scalables:
            seen: list[Tensor] = []
            module = network.module.get_submodule(scalable.module)
            with torch.no_grad(), module.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out.clone())):
                network.module(example_inputs(architecture))
                for name in scalable.parameters:
                    parameters[name].mul_(2)
                network.module(example_inputs(architecture))
            normalised = architecture.family == "mlp" and block.name != "output"
            torch.testing.assert_close(seen[1], seen[0] * (1 if normalised else 2), rtol=1e-9, atol=1e-12)


def test_names_are_the_contracts() -> None:
    assert dict(build(mlp(depth=3, norm="layernorm", bias=True), seed=0).module.named_parameters()).keys() == {
        "input.weight",
        "input.bias",
        "input.norm.weight",
        "input.norm.bias",
        "hidden_2.weight",
        "hidden_2.bias",
        "hidden_2.norm.weight",
        "hidden_2.norm.bias",
        "output.weight",
        "output.bias",
    }
    assert [name for name, _ in build(resnet(depth=3, norm="rmsnorm"), seed=0).module.named_parameters()] == [
        "input.weight",
        "hidden_2.branch.weight",
        "hidden_2.branch.norm.weight",
        "output.weight",
        "output.norm.weight",
    ]
    assert [name for name, _ in build(language_model(layers=1, norm="none"), seed=0).module.named_parameters()] == [
        "input.position",
        "input.embedding.weight",
        "hidden_2.attention.qkv.weight",
        "hidden_2.attention.projection.weight",
        "hidden_2.mlp.expand.weight",
        "hidden_2.mlp.project.weight",
        "output.weight",
    ]


@pytest.mark.parametrize(
    "architecture", [mlp(bias=True), resnet(), language_model(), vision_transformer()], ids=case_id
)
def test_building_is_deterministic_in_the_seed_and_leaves_the_global_random_state(architecture: Architecture) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first = build(architecture, seed=4)
    base = build(architecture, seed=4)
    base_initialize(base, seed=9)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)  # another global state, the same network
    again, other = build(architecture, seed=4), build(architecture, seed=5)
    for (name, p), q, r in zip(
        first.module.named_parameters(), again.module.parameters(), other.module.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
        assert "norm" in name or not torch.equal(p, r), name


def test_build_starts_from_pytorchs_defaults() -> None:
    """nn.Linear: uniform within ±1/sqrt(fan_in); nn.Embedding: normal."""
    weight = build(mlp(width=400), seed=0).module.get_parameter("hidden_2.weight")
    assert weight.abs().max() <= 1 / math.sqrt(400)
    assert rms(weight) == pytest.approx(1 / math.sqrt(3 * 400), rel=0.01)
    transformer = build(language_model(width=120, vocab_size=500, context_length=100), seed=0).module
    assert rms(transformer.get_parameter("input.embedding.weight")) == pytest.approx(1, rel=0.02)
    assert rms(transformer.get_parameter("input.position")) == pytest.approx(1, rel=0.02)


def test_base_initialization_is_normal_by_fan_in_with_unit_gains_and_no_biases() -> None:
    for architecture in (
        mlp(width=200, input_dim=90, norm="layernorm", bias=True),
        resnet(width=200, input_dim=90, norm="rmsnorm", bias=True),
        language_model(width=120, vocab_size=300, context_length=200, bias=True),
        vision_transformer(width=240, bias=True),
    ):
        network = build(architecture, seed=0)
        with torch.no_grad():
            for p in network.module.parameters():
                p.fill_(7.0)
        base_initialize(network, seed=3)
        for name, p in network.module.named_parameters():
            if p.ndim == 1:
                assert torch.equal(p, torch.ones_like(p) if name.endswith("norm.weight") else torch.zeros_like(p)), name
                continue
            std = 1 / math.sqrt(p.shape[1])
            if name == "input.position":
                std = POSITION_STD
            elif name == "input.embedding.weight" and getattr(architecture, "image", None) is None:
                std = 1.0
            assert rms(p) == pytest.approx(std, rel=5 / math.sqrt(p.numel())), name
            assert abs(float(p.detach().mean())) < 5 * std / math.sqrt(p.numel()), name


def test_base_initialization_is_the_same_in_every_precision() -> None:
    architecture = language_model()
    single, double = build(architecture, seed=0), build(architecture, seed=0)
    double.module.double()
    base_initialize(single, seed=3)
    base_initialize(double, seed=3)
    for p, q in zip(single.module.parameters(), double.module.parameters(), strict=True):
        assert torch.equal(p.double(), q)


@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_transformer_does_not_see_later_tokens(causal: bool) -> None:
    module = build(language_model(causal=causal), seed=0).module.double()
    x = example_inputs(language_model())
    changed = x.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    with torch.no_grad():
        difference = (module(x) - module(changed)).abs().amax(dim=(0, 2))
    assert (difference[4:] > 0).all()
    assert bool((difference[:4] == 0).all()) is causal


def test_flat_images_are_images() -> None:
    module = build(vision_transformer(), seed=0).module.double()
    x = example_inputs(vision_transformer())
    with torch.no_grad():
        assert torch.equal(module(x), module(x.flatten(1)))


def test_shorter_contexts_are_read_from_the_first_position() -> None:
    module = build(language_model(), seed=0).module.double()
    x = example_inputs(language_model())
    with torch.no_grad():
        torch.testing.assert_close(module(x[:, :4]), module(x)[:, :4])


def test_the_deepest_chain_that_the_contract_allows() -> None:
    architecture = resnet(depth=4096)
    network = build(architecture, seed=0)
    base_initialize(network, seed=0)
    assert len(network.blocks) == 4096
    assert torch.isfinite(network.module.double()(example_inputs(architecture))).all()
