"""Cut nodes that are found: those that a person would name, by a rule that an independent oracle confirms."""

from __future__ import annotations

import random
import time

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from featurespeed_workers import blocks, measure
from featurespeed_workers.dataflow import on_every_path
from tests.measurement.cut_models import CASES, Gpt
from tests.measurement.llama import Llama


def as_named(found) -> list[tuple[str, list[str]]]:
    """In forward order; the order of what a block owns besides has no meaning."""
    return [(name, sorted(extras)) for name, extras in found.items()]


def _through_all(graph: nx.DiGraph, sources: list[int], sinks: list[int]) -> list[int]:
    """By definition: nodes without which no sink can be reached, if one can be with all."""

    def connected(without: list[int]) -> bool:
        rest = graph.subgraph(set(graph) - set(without))
        return any(nx.has_path(rest, a, b) for a in sources for b in sinks if a in rest and b in rest)

    return [node for node in graph if connected([]) and not connected([node])]


def test_every_path_passes_by_brute_force_on_random_graphs() -> None:
    drawn = random.Random(0)
    counts = []
    for _ in range(400):
        size = drawn.randint(1, 14)
        reach = drawn.choice([1, 2, 3, size])  # short edges leave many cut nodes, long ones few
        density = drawn.choice([0.5, 0.95])
        edges = [(a, b) for b in range(size) for a in range(max(0, b - reach), b) if drawn.random() < density]
        graph = nx.DiGraph(edges)
        graph.add_nodes_from(range(size))
        anywhere = drawn.random() < 0.5
        sources = drawn.sample(range(size), drawn.randint(1, min(2, size))) if anywhere else [0]
        sinks = drawn.sample(range(size), drawn.randint(1, min(2, size))) if anywhere else [size - 1]
        operands = [sorted(graph.predecessors(node)) for node in range(size)]
        expected = sorted(_through_all(graph, sources, sinks))
        assert on_every_path(operands, sources, sinks) == expected, (edges, sources, sinks)
        counts.append(len(expected))
    assert 0 in counts
    assert sum(count > 2 for count in counts) > 50


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_they_are_those_that_a_person_names(case: str, training: bool) -> None:
    known = CASES[case]
    assert as_named(blocks(known.make().train(training), known.inputs)) == as_named(known.by_hand)


@pytest.mark.parametrize("case", CASES)
def test_the_formula_holds_at_them(case: str) -> None:
    """In training mode, with dropout, batch norm and changes in place: ≤ 1e-9 in float64, as for blocks by hand."""
    known = CASES[case]
    torch.manual_seed(0)
    model = known.make().double()
    inputs = known.inputs.double() if known.inputs.is_floating_point() else known.inputs
    ask = {"loss": lambda f, y: (f - y).square().mean(), "method": "exact"}
    batch = (inputs, torch.randn_like(model(inputs)))
    found = measure(model, [batch], **ask)
    assert found.measurements[0].formula_residual < 1e-9
    by_hand = measure(model, [batch], blocks=known.by_hand, **ask)
    assert found.measurements[0].layers == by_hand.measurements[0].layers


def test_96_blocks_of_a_llama_on_the_meta_device() -> None:
    """21 billion parameters, which no machine of ours could hold; 20 s of one core (it shares the machine)."""
    with torch.device("meta"):
        model, tokens = Llama(), torch.zeros(2, 2048, dtype=torch.long)
    began = time.process_time()
    found = blocks(model, tokens)
    assert time.process_time() - began < 20
    assert as_named(found) == [
        ("model.embed_tokens", []),
        *((f"model.layers.{i}", []) for i in range(96)),
        ("lm_head", ["model.norm"]),
    ]
    assert str(found).startswith("Llama, 98 blocks")
    assert "21,200,900,096" in str(found)


class Parts(nn.Module):
    """A forward pass made of named parts."""

    def __init__(self, function, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def linear() -> nn.Linear:
    return nn.Linear(6, 6)


def residual() -> Parts:
    return Parts(lambda m, x: x + m.b(torch.relu(m.a(x))), a=linear(), b=linear())


def post_norm() -> Parts:
    return Parts(lambda m, x: m.norm(x + m.b(torch.relu(m.a(x)))), a=linear(), b=linear(), norm=nn.LayerNorm(6))


def gated() -> Parts:
    return Parts(lambda m, x: m.b(x * torch.sigmoid(x)), b=linear())


def _around(m: nn.Module, x: Tensor) -> Tensor:
    """A skip around ``b``, in the module's own forward."""
    f = m.a(x)
    return m.d(f + m.b(f))


def _with_a_column(f: Tensor, x: Tensor) -> Tensor:
    """What was no path becomes one by a change in place: x goes around ``a``, and ``b`` is overwritten."""
    f[:, 0] = x[:, 0]
    return f


def _in_contexts(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = m.a(x)
        with torch.no_grad():
            mean = torch.ones(1)
        f = m.b(torch.relu(f) * mean)
    return m.d(f.float())


SHAPES = {
    "batch norm after a linear map": (
        lambda: nn.Sequential(linear(), nn.BatchNorm1d(6), nn.ReLU(), linear()),
        [("1", ["0"]), ("3", [])],
    ),
    "batch norm after the nonlinearity": (
        lambda: nn.Sequential(linear(), nn.ReLU(), nn.BatchNorm1d(6), linear()),
        [("0", []), ("3", ["2"])],
    ),
    "norm in one module with what follows": (
        lambda: nn.Sequential(linear(), nn.Sequential(nn.LayerNorm(6), linear()), linear()),
        [("0", []), ("1", []), ("2", [])],
    ),
    "norm after residual blocks": (
        lambda: nn.Sequential(linear(), residual(), nn.LayerNorm(6), linear()),
        [("0", []), ("1", []), ("3", ["2"])],
    ),
    "norm at the end": (
        lambda: nn.Sequential(linear(), residual(), nn.LayerNorm(6)),
        [("0", []), ("2", ["1"])],
    ),
    "modules of a map and its nonlinearity": (
        lambda: nn.Sequential(*(nn.Sequential(linear(), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(2)), linear()),
        [("0", []), ("1", []), ("2", [])],
    ),
    "containers": (
        lambda: nn.Sequential(
            nn.Sequential(linear(), nn.ReLU(), nn.Sequential(linear(), nn.ReLU(), linear())), linear()
        ),
        [("0.0", []), ("0.2.0", []), ("0.2.2", []), ("1", [])],
    ),
    "changes in place": (
        lambda: nn.Sequential(linear(), nn.ReLU(inplace=True), linear(), nn.ReLU(inplace=True), linear()),
        [("1", ["0"]), ("3", ["2"]), ("4", [])],
    ),
    "a gate is no branch": (
        lambda: nn.Sequential(gated(), gated()),
        [("0", []), ("1", [])],
    ),
    "a backbone with a skip around residual blocks": (
        lambda: nn.Sequential(
            Parts(_around, a=residual(), b=Parts(lambda m, x: m.c(m.b(x)), b=residual(), c=linear()), d=residual()),
            linear(),
        ),
        [("0.a", []), ("0.d", ["0.b"]), ("1", [])],
    ),
    "one residual block alone is looked into": (
        lambda: Parts(lambda m, x: m.net(x), net=Parts(_around, a=linear(), b=linear(), d=linear())),
        [("net.a", []), ("net.d", ["net.b"])],
    ),
    "a layer of two modules, each with a sum and a norm": (
        lambda: Parts(
            lambda m, x: m.head(m.layers[1](m.layers[0](x))),
            layers=nn.ModuleList(
                Parts(lambda m, x: m.b(m.a(x)), a=post_norm(), b=post_norm()) for _ in range(2)
            ),
            head=linear(),
        ),
        [("layers.0", []), ("layers.1", []), ("head", [])],
    ),
    "stages of residual blocks": (
        lambda: Parts(
            lambda m, x: m.head(m.stages[1](m.stages[0](x))),
            stages=nn.ModuleList(nn.Sequential(residual(), residual()) for _ in range(2)),
            head=linear(),
        ),
        [("stages.0.0", []), ("stages.0.1", []), ("stages.1.0", []), ("stages.1.1", []), ("head", [])],
    ),
    "a module that runs twice": (
        lambda: Parts(lambda m, x: m.d(m.b(m.b(m.a(x)))), a=linear(), b=linear(), d=linear()),
        [("a", []), ("d", ["b"])],
    ),
    "a parameter used twice between cut nodes": (
        lambda: Parts(
            lambda m, x: m.d(m.b(m.a(x))),
            a=linear(), b=Parts(lambda m, x: x @ m.w @ m.w.T, w=nn.Parameter(torch.eye(6))), d=linear(),
        ),
        [("a", []), ("b", []), ("d", [])],
    ),
    "a tuple, of which the first is used": (
        lambda: Parts(lambda m, x: m.d(m.b(m.a(x))[0]), a=linear(), b=nn.LSTM(6, 6), d=linear()),
        [("a", []), ("b", []), ("d", [])],
    ),
    "a tuple, of which the rest is used": (
        lambda: Parts(lambda m, x: m.d(m.b(m.a(x))[1][0][0]), a=linear(), b=nn.LSTM(6, 6), d=linear()),
        [("a", []), ("d", ["b"])],
    ),
    "an element that is set in place": (
        lambda: Parts(lambda m, x: m.d(_with_a_column(m.b(m.a(x)), x)), a=linear(), b=linear(), d=linear()),
        [("d", ["a", "b"])],
    ),
    "under autocast and without gradient": (
        lambda: Parts(_in_contexts, a=linear(), b=linear(), d=linear()),
        [("a", []), ("b", []), ("d", [])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rule_case_by_case(shape: str) -> None:
    make, expected = SHAPES[shape]
    model = make()
    if len(expected) == 1:
        with pytest.raises(ValueError, match="at least 2 are needed, found 1: every path"):
            blocks(model, torch.randn(5, 6))
        return
    found = blocks(model, torch.randn(5, 6))
    assert as_named(found) == expected
    if shape != "under autocast and without gradient":  # which is measured to the precision of bfloat16
        inputs = torch.randn(5, 6).double()
        report = measure(model.double(), [(inputs, inputs)], loss=lambda f, _: f.square().mean(), blocks=found)
        assert report.measurements[0].formula_residual < 1e-9


def test_a_mask_from_the_tokens_is_no_path() -> None:
    """It reaches the last layer around all others, but carries no derivative."""

    class Padded(Gpt):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * (tokens != 0)[..., None].float()

    known = CASES["gpt"]
    assert as_named(blocks(Padded(), known.inputs)) == as_named(known.by_hand)
