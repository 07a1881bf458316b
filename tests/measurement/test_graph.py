"""Graphs are measured as what they spell out: against dense Jacobians, other families and modules written by hand."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featurespeed.contract import AdamW, Architecture, Graph, Muon, Sgd, parse_request
from featurespeed.contract.architecture.graph.layer import INPUT, Node
from featurespeed_workers import measure
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.directions import UpdateRule, hidden_matrices, rules_of
from featurespeed_workers.local import answer
from featurespeed_workers.losses import cross_entropy
from featurespeed_workers.measurement import Setting, measure_state
from featurespeed_workers.network import Network
from tests.architectures import graph_cases
from tests.architectures.cases import convnet, example_inputs, language_model, mlp, resnet, vision_transformer
from tests.architectures.graph_cases import spelled_out

from .cut_models import Gpt
from .oracle import expected, real_update

PLAIN = UpdateRule.from_contract(Sgd(name="sgd"))


class Segment(nn.Module):
    """The layers of one block, run by themselves from the cut node before."""

    def __init__(self, module: nn.Module, nodes: tuple[Node, ...], before: str, end: str) -> None:
        super().__init__()
        for node in nodes:
            self.add_module(node.layer.name, module.get_submodule(node.layer.name))
        self.nodes, self.before, self.end = nodes, before, end

    def forward(self, x: Tensor) -> Tensor:
        known = {self.before: x}
        for node in self.nodes:
            known[node.layer.name] = getattr(self, node.layer.name)(*(known[name] for name in node.operands))
        return known[self.end]


def chain_of(graph: Graph, network: Network) -> nn.ModuleDict:
    """Its blocks as modules that take nothing but the cut node before: no path passes by."""
    ends = [INPUT, *(block.module for block in network.blocks)]
    blocks = zip(network.blocks, graph.plan.blocks, ends, ends[1:], strict=False)
    return nn.ModuleDict({b.name: Segment(network.module, nodes, before, end) for b, nodes, before, end in blocks})


def targets_of(graph: Architecture, inputs: Tensor) -> Tensor:
    takes = graph.signature
    shape = inputs.shape if takes.per_position else inputs.shape[:1]
    return torch.randint(takes.outputs, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("optimizer", [AdamW(name="adamw", weight_decay=0.1), Muon(name="muon")], ids=lambda o: o.name)
@pytest.mark.parametrize("case", graph_cases.CASES)
def test_every_kind_of_layer_against_dense_jacobians(case: str, optimizer: Any) -> None:
    graph = graph_cases.CASES[case]
    network = build(graph, seed=0)
    network.module.double()
    chain, inputs = chain_of(graph, network), example_inputs(graph)
    targets, rate = targets_of(graph, inputs), 0.05
    rest, groups = dict(chain.named_parameters()), []
    if optimizer.name == "muon":
        hidden = {n: p for n, p in rest.items() if n.startswith("hidden") and p.ndim == 2 and "position" not in n}
        rest = {n: p for n, p in rest.items() if n not in hidden}
        options = optimizer.model_dump(exclude={"name", "adamw"})
        groups = [torch.optim.Muon(hidden.values(), lr=rate, **options)] if hidden else []
        settings = optimizer.adamw.model_dump()
    else:
        settings = optimizer.model_dump(exclude={"name"})
    groups.append(torch.optim.AdamW(rest.values(), lr=rate, **settings))
    names = [block.name for block in network.blocks]
    loss = cross_entropy(network.module(inputs), targets)
    truth = expected(chain, names, inputs, targets, cross_entropy, real_update(chain, groups, loss))

    setting = Setting(network, cross_entropy, rules_of(optimizer, network))
    parameters = dict(network.module.named_parameters())
    found = measure_state(setting, parameters, (inputs, targets), dict.fromkeys(names, rate))
    assert found.method == "exact"
    assert found.formula_residual < 1e-9
    scale = max(abs(c) for c in truth.contribution)
    for layer, speed, backward, contribution in zip(
        found.layers, truth.speed, truth.backward, truth.contribution, strict=True
    ):
        cos = float(-(speed * backward).sum() / (speed.norm() * backward.norm()))
        assert layer.feature_speed == pytest.approx(float(speed.norm()) / math.sqrt(speed.numel()), rel=1e-9)
        assert layer.backward_rms == pytest.approx(float(backward.norm()) / math.sqrt(backward.numel()), rel=1e-9)
        assert layer.cos == pytest.approx(cos, rel=1e-9, abs=1e-9)
        assert layer.contribution == pytest.approx(contribution, rel=1e-9, abs=1e-9 * scale)


FAMILIES = [
    mlp(norm="layernorm", bias=True),
    mlp(norm="none", activation="tanh"),
    resnet(norm="rmsnorm", bias=True),
    resnet(shortcut="identity", branch_scale=0.3),
    language_model(norm="layernorm", bias=True),
    language_model(output_dim=4, causal=False),
    vision_transformer(norm="rmsnorm"),
    convnet(norm="batchnorm", stages=2),
    convnet(norm="groupnorm", groups=2, shortcut="identity", branch_scale=0.4, bias=True),
    convnet(stages=2, layers=4, activation="gelu"),
]


def copied(family: Network, graph: Network, names: dict[str, str]) -> dict[str, str]:
    """Give the graph the family's weights; the family's parameter for each of the graph's."""
    found = {}
    theirs = dict(family.module.named_parameters())
    with torch.no_grad():
        for name, p in graph.module.named_parameters():
            prefix = next(x for x in names if name.startswith(x))
            own = names[prefix] + name.removeprefix(prefix)
            found[name] = "input.position" if own == "input.position.weight" else own
            p.copy_(theirs[found[name]].reshape(p.shape))
    return found


@pytest.mark.parametrize("architecture", FAMILIES, ids=lambda a: a.family)
def test_a_family_spelled_out_gives_the_familys_numbers(architecture: Architecture) -> None:
    spelled, names = spelled_out(architecture)
    family, graph = build(architecture, seed=0), build(spelled, seed=1)
    base_initialize(family, seed=0)
    for network in (family, graph):
        network.module.double()
    own = copied(family, graph, names)
    assert sorted(own.values()) == sorted(dict(family.module.named_parameters()))
    assert spelled.parameter_count == architecture.parameter_count
    assert spelled.activations == pytest.approx(architecture.activations, rel=0.15)
    assert spelled.attention == architecture.attention
    for theirs, ours in zip(family.blocks, graph.blocks, strict=True):
        assert ours.name == theirs.name
        assert sorted(own[name] for name in ours.parameters) == sorted(theirs.parameters)
        assert sorted((sorted(own[n] for n in s.parameters), s.target_rms) for s in ours.scalables) == sorted(
            (sorted(s.parameters), s.target_rms) for s in theirs.scalables
        )
    assert {name: graph.base_stds[name] for name in graph.base_stds} == pytest.approx(
        {name: family.base_stds[own[name]] for name in graph.base_stds}
    )
    inputs = example_inputs(architecture)
    batch = inputs, targets_of(architecture, inputs)
    found = []
    for network in (family, graph):
        setting = Setting(network, cross_entropy, lambda name: PLAIN)
        found.append(measure_state(setting, dict(network.module.named_parameters()), batch, "balanced"))
    first, second = found
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    for a, b in zip(first.layers, second.layers, strict=True):
        assert b.angle == pytest.approx(a.angle, abs=1e-12)
        assert astuple(b)[1:] == pytest.approx(astuple(a)[1:], rel=1e-9, abs=1e-12)


def test_a_transformer_of_the_family_is_the_one_that_is_written_by_hand() -> None:
    """As a module of the user's own, its blocks found by tracing: the same numbers from the same weights."""
    spec = language_model(layers=3, width=8, heads=2, vocab_size=11, context_length=7, bias=True, norm="layernorm")
    family, gpt = build(spec, seed=0), Gpt(layers=3, width=8).double().eval()
    family.module.double()
    state = gpt.state_dict()
    for name, p in family.module.named_parameters():
        state[_by_hand(name)] = p.detach()
    head = family.module.get_submodule("output")
    with torch.no_grad():
        head.bias.zero_()  # by hand there is none
    frozen = {name: p for name, p in state.items() if name != "lm_head.bias"}
    gpt.load_state_dict(frozen)
    head.bias.requires_grad_(False)
    tokens = example_inputs(spec)
    batch, ask = (tokens, targets_of(spec, tokens)), {"loss": cross_entropy, "optimizer": "adamw"}
    first, second = measure(family, [batch], **ask).measurements[0], measure(gpt, [batch], **ask).measurements[0]
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    for a, b in zip(first.layers, second.layers, strict=True):
        assert b.angle.mean == pytest.approx(a.angle.mean, abs=1e-10)
        assert b.feature_speed.mean == pytest.approx(a.feature_speed.mean, rel=1e-9)
        assert b.contribution.mean == pytest.approx(a.contribution.mean, rel=1e-9)


def _by_hand(name: str) -> str:
    for ours, theirs in {
        "input.embedding": "transformer.wte",
        "input.position": "transformer.wpe.weight",
        "output.norm": "transformer.ln_f",
        "output.": "lm_head.",
    }.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    block, _, rest = name.partition(".")
    for ours, theirs in {
        "attention.norm": "ln_1",
        "attention.qkv": "attn.qkv",
        "attention.projection": "attn.out",
        "mlp.norm": "ln_2",
        "mlp.expand": "mlp.0",
        "mlp.project": "mlp.2",
    }.items():
        rest = rest.replace(ours, theirs)
    return f"transformer.h.{int(block.removeprefix('hidden_')) - 2}.{rest}"


def test_a_recommendation_for_a_graph_keeps_its_promises() -> None:
    """On digits, trained for some steps: every property that is judged holds, the loss falls."""
    graph = {"family": "graph", "input": {"shape": [1, 8, 8]}, "layers": [
        {"layer": "conv", "name": "stem", "channels": 8, "kernel": 3},
        {"layer": "norm", "name": "norm", "norm": "batchnorm"},
        {"layer": "activation", "name": "act", "function": "relu"},
        {"layer": "conv", "name": "conv", "channels": 8, "kernel": 3},
        {"layer": "residual", "name": "sum", "input": "stem", "scale": 0.7, "shortcut": "variance_preserving"},
        {"layer": "activation", "name": "last", "function": "relu"},
        {"layer": "pool", "name": "mean", "kernel": 2},
        {"layer": "flatten", "name": "flat"},
        {"layer": "linear", "name": "head", "width": 10},
    ]}  # fmt: skip
    spec = {"kind": "recommend", "architecture": graph, "data": {"kind": "digits", "batch_size": 32},
            "loss": "cross_entropy", "optimizer": {"name": "adamw"},
            "measurement": {"seeds": [0], "steps": 20, "every": 20}}  # fmt: skip
    report = answer(parse_request(spec))
    assert [block.module for block in report.recommendation.blocks] == ["stem", "sum", "head"]
    verdicts = {name: getattr(report.properties.after, name) for name in ("SP", "FL", "LD", "BC", "FS", "BS", "S")}
    assert {name for name, verdict in verdicts.items() if not verdict.holds} == set()
    losses = report.evidence.loss_curves.recommended
    assert losses[-1] < losses[0] / 2


def test_muon_has_the_matrices_of_hidden_blocks_alone() -> None:
    found = hidden_matrices(build(graph_cases.CASES["language"], seed=0))
    assert found == {"mix.qkv.weight", "mix.projection.weight"}
    assert hidden_matrices(build(graph_cases.CASES["convolutions"], seed=0)) == frozenset()
