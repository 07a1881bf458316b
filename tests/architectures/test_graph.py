"""Family graph: what is refused and how it is said, where a list of layers is cut, and what is built of it."""

from __future__ import annotations

import json
import math
import random
import time
from typing import Any

import networkx as nx
import pytest
import torch
from torch import nn

from featurespeed.contract import Graph, SpecError, parse_request, parse_request_json
from featurespeed.contract.architecture.graph.cuts import on_every_path
from featurespeed.contract.architecture.graph.layer import INPUT
from featurespeed.contract.architecture.graph.plan import RESERVED
from featurespeed_workers import blocks
from featurespeed_workers.architectures import build
from featurespeed_workers.architectures.graph import GraphModule
from featurespeed_workers.modules import network_of

from .cases import example_inputs
from .graph_cases import CASES, HEAD, TEXT, graph, layer


def document(*layers: dict[str, Any], takes: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    architecture = {"family": "graph", "input": takes or {"shape": [2, 6, 4]}, "layers": list(layers), **fields}
    data = {"kind": "tokens" if takes and "vocab_size" in takes else "gaussian"}
    return {"kind": "measure", "architecture": architecture, "data": data, "loss": "cross_entropy"}


FLAT, CONV = layer("flatten", "flat"), layer("conv", "conv", channels=4, kernel=3)
ONE, TWO = layer("linear", "one", width=4), layer("linear", "two", width=4)
TOKENS = layer("embedding", "tokens", width=4)
LINE = {"shape": [4]}
BAD: list[tuple[list[dict[str, Any]], dict[str, Any], str, Any, str]] = [
    # what a layer is
    ([layer("cnv", "a"), HEAD], {}, "layers.0.layer", "cnv", "'linear', 'conv'"),
    ([{"name": "a"}, HEAD], {}, "layers.0.layer", None, "Field required"),
    ([{**CONV, "kernel": 0}, HEAD], {}, "layers.0.kernel", 0, "greater than or equal to 1"),
    ([{**CONV, "kernal": 3}, HEAD], {}, "layers.0.kernal", 3, "Extra inputs"),
    ([FLAT, layer("activation", "a", function="selu"), HEAD], {}, "layers.1.function", "selu", "'relu'"),
    ([], {}, "layers", [], "at least 1 item"),
    # names
    ([FLAT, {**ONE, "name": "a.b"}, HEAD], {}, "layers.1.name", "a.b", "match pattern"),
    ([FLAT, {**ONE, "name": "input"}, HEAD], {}, "layers.1.name", "input", "reserved"),
    ([FLAT, {**ONE, "name": "forward"}, HEAD], {}, "layers.1.name", "forward", "reserved"),
    ([FLAT, ONE, ONE, HEAD], {}, "layers.2.name", "one", "the name of layer 1 too"),
    ([FLAT, {**ONE, "input": "nobody"}, HEAD], {}, "layers.1.input", "nobody", "there is no layer 'nobody'"),
    ([FLAT, ONE, {**HEAD, "input": "flat"}], {}, "layers.1.name", "one", "no layer takes 'one', and the output is"),
    # cycles
    ([FLAT, {**ONE, "input": "one"}, HEAD], {}, "layers.1.input", "one", "a cycle: one → one"),
    ([FLAT, {**ONE, "input": "two"}, TWO, HEAD], {}, "layers.2.input", None, "a cycle: one → two → one"),
    (
        [FLAT, ONE, layer("residual", "sum", input="flat", branch="two"), {**TWO, "input": "sum"}, HEAD],
        {},
        "layers.3.input",
        "sum",
        "a cycle: sum → two → sum",
    ),
    # shapes
    ([CONV, HEAD], {}, "layers.1.input", None, "linear takes (width) or (positions, width), not (4, 6, 4)"),
    ([FLAT, CONV, HEAD], {}, "layers.1.input", None, "conv takes (channels, height, width), not (48,)"),
    ([{**CONV, "kernel": 7}, FLAT, HEAD], {}, None, None, ""),
    ([{**CONV, "kernel": 7, "padding": 1}, FLAT, HEAD], {}, "layers.0.kernel", 7, "more than the 6 pixels"),
    ([{**CONV, "groups": 3}, FLAT, HEAD], {}, "layers.0.groups", 3, "does not divide 2 channels"),
    ([layer("pool", "a", kernel=5), FLAT, HEAD], {}, "layers.0.kernel", 5, "more than the 4 pixels"),
    ([layer("pool", "a", stride=5), FLAT, HEAD], {}, "layers.0.stride", 5, "needs a kernel"),
    ([CONV, layer("norm", "a", norm="layernorm"), FLAT, HEAD], {}, "layers.1.input", None, "norm takes (width)"),
    ([CONV, layer("norm", "a", norm="groupnorm"), FLAT, HEAD], {}, "layers.1.groups", None, "needs them"),
    ([CONV, layer("norm", "a", norm="groupnorm", groups=3), FLAT, HEAD], {}, "layers.1.groups", 3, "not divide 4"),
    ([CONV, layer("norm", "a", norm="batchnorm", bias=True), FLAT, HEAD], {}, "layers.1.bias", True, "a choice"),
    (
        [{**CONV, "kernel": 4, "stride": 4}, layer("norm", "a", norm="groupnorm", groups=4), FLAT, HEAD],
        {"takes": {"shape": [2, 4, 4]}},
        "layers.1.groups",
        4,
        "of a single number",
    ),
    ([ONE, layer("residual", "a", input="input"), HEAD], {"takes": {"shape": [5]}}, "layers.1.branch", None, "(4,)"),
    (
        [ONE, layer("residual", "a", input="input", scale=2, shortcut="variance_preserving"), HEAD],
        {"takes": LINE},
        "layers.1.scale",
        2,
        "above 1",
    ),
    (
        [CONV, layer("pool", "a", kernel=2), layer("concat", "b", inputs=["conv", "a"]), FLAT, HEAD],
        {},
        "layers.2.inputs.1",
        "a",
        "its shape (4, 3, 2) and (4, 6, 4) may differ in axis 0 only",
    ),
    ([ONE, layer("concat", "b", inputs=["one", "input"], axis="positions"), HEAD], {"takes": LINE}, "layers.1.axis",
     "positions", "has positions, not (4,)"),
    ([TOKENS, layer("attention", "a", heads=3), HEAD], {"takes": TEXT}, "layers.1.heads", 3, "not divide width 4"),
    ([CONV, {**CONV, "name": "out"}], {}, "layers.1", {**CONV, "name": "out"}, "the output must be (width), not (4, 6"),
    ([TOKENS, layer("flatten", "a"), ONE, HEAD], {"takes": TEXT}, None, None, ""),
    # tokens
    ([ONE, HEAD], {"takes": TEXT}, "layers.0.input", None, "an embedding, and nothing else, takes the input's tokens"),
    ([FLAT, TOKENS, HEAD], {}, "layers.1.input", None, "an embedding, and nothing else"),
    ([TOKENS, HEAD], {"takes": {"vocab_size": 4}}, "input.shape", None, "vocab_size and length"),
    ([TOKENS, HEAD], {"takes": {**TEXT, "shape": [3]}}, "input.shape", [3], "excludes"),
    # blocks
    ([FLAT, layer("activation", "a", function="relu")], {}, "layers", ..., "no parameter before the loss"),
    ([FLAT, HEAD], {}, "layers", ..., "at least 2 blocks are needed: every path passes 1"),
    ([FLAT, ONE, HEAD], {"cut_nodes": ["one", "tow"]}, "cut_nodes.1", "tow", "there is no layer 'tow'"),
    ([FLAT, ONE, HEAD], {"cut_nodes": ["head", "one"]}, "cut_nodes.1", "one", "does not come after 'head'"),
    ([FLAT, ONE, HEAD], {"cut_nodes": ["flat", "head"]}, "cut_nodes.0", "flat", "no parameter lies between"),
    ([FLAT, ONE, TWO, HEAD], {"cut_nodes": ["one", "two"]}, "cut_nodes", ["one", "two"], "parameters behind"),
    (
        [FLAT, ONE, TWO, layer("residual", "sum", input="one"), HEAD],
        {"cut_nodes": ["two", "head"]},
        "cut_nodes.0",
        "two",
        "not every path",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "fields", "field", "value", "bound"), BAD)
def test_a_fault_is_named_by_layer_and_field(
    layers: list[dict[str, Any]], fields: dict[str, Any], field: str | None, value: Any, bound: str
) -> None:
    asked = document(*layers, **fields)
    if field is None:  # its neighbour is refused, this is not
        parse_request(asked)
        return
    with pytest.raises(SpecError) as caught:
        parse_request(asked)
    [error] = caught.value.errors
    assert error.field == f"architecture.{field}"
    assert bound in error.bound
    assert value is ... or error.value == value


@pytest.mark.parametrize(
    ("changes", "field", "bound"),
    [
        ({"data": {"kind": "digits"}}, "architecture.input.shape", "digits are 8 × 8 × 1, not 6 × 4 × 2"),
        ({"data": {"kind": "tokens"}}, "data.kind", "needs a network of tokens (vocab_size), not family 'graph'"),
        ({"optimizer": {"name": "muon"}}, "optimizer.name", "use 'adamw'"),
        ({"scaling": {"rule": "mup"}}, "scaling.rule", "family 'graph'"),
        ({"data": {"kind": "gaussian", "batch_size": 1}}, "data.batch_size", "at least 2 examples"),
    ],
)
def test_what_does_not_go_with_a_graph_is_said(changes: dict[str, Any], field: str, bound: str) -> None:
    asked = document(CONV, layer("norm", "norm", norm="batchnorm"), {**CONV, "name": "more"}, FLAT, HEAD)
    parse_request(asked)
    with pytest.raises(SpecError) as caught:
        parse_request({**asked, **changes})
    [error] = caught.value.errors
    assert error.field == field
    assert bound in error.bound


@pytest.mark.parametrize(("width", "fits"), [(6, False), (7, True), (8, True)])
def test_the_next_token_must_have_a_logit(width: int, fits: bool) -> None:
    asked = document(TOKENS, {**HEAD, "width": width}, takes={"vocab_size": 7, "length": 3})
    if fits:
        parse_request(asked)
        return
    with pytest.raises(SpecError) as caught:
        parse_request(asked)
    [error] = caught.value.errors
    assert error.field == "architecture.layers.1"
    assert error.bound == "the next token is one of 7 classes, and the output has 6"


def test_reserved_names_are_those_that_a_module_has_already() -> None:
    module = GraphModule(CASES["plain chain"].plan.nodes)
    taken = {name for name in {*dir(module), *dir(nn.Module())} if not name.startswith("_")}
    assert taken - {name for name, _ in module.named_children()} <= RESERVED


@pytest.mark.parametrize("case", CASES)
def test_blocks_partition_the_parameters_and_shapes_are_those_of_the_module(case: str) -> None:
    architecture = CASES[case]
    network = build(architecture, seed=0)
    names = [name for block in network.blocks for name in block.parameters]
    assert names == [name for name, _ in network.module.named_parameters()]
    assert [block.name for block in network.blocks] == architecture.block_names
    assert all(set(s.parameters) <= set(block.parameters) for block in network.blocks for s in block.scalables)
    assert architecture.parameter_count == sum(p.numel() for p in network.module.parameters())
    shapes: dict[str, tuple[int, ...]] = {}
    for node in architecture.plan.nodes:
        part = network.module.get_submodule(node.layer.name)
        part.register_forward_hook(lambda m, a, out, name=node.layer.name: shapes.update({name: tuple(out.shape[1:])}))
    network.module.double()(example_inputs(architecture))
    assert shapes == {node.layer.name: node.shape for node in architecture.plan.nodes}
    assert parse_request_json(json.dumps(request_of(architecture))).architecture == architecture


def request_of(architecture: Graph) -> dict[str, Any]:
    data = {"kind": "gaussian" if architecture.input.shape else "tokens"}
    return {"kind": "measure", "architecture": architecture.model_dump(mode="json"), "data": data,
            "loss": "cross_entropy"}  # fmt: skip


CUTS = {
    "plain chain": ["normed", "rms", "head"],
    "convolutions": ["group", "depthwise", "batch", "head"],
    "residual": ["first", "sum", "more", "head"],
    "text": ["positions", "twice", "head"],
    "language": ["tokens", "mix", "head"],
    "u-net": ["stem", "skip", "merge", "head"],
    "any order": ["first", "sum", "head"],
}


@pytest.mark.parametrize("case", CASES)
def test_cut_nodes_are_those_that_a_person_names_and_that_tracing_finds(case: str) -> None:
    network = build(CASES[case], seed=0)
    assert [block.module for block in network.blocks] == CUTS[case]
    if case == "language":  # attention without a residual layer: tracing looks into it
        traced = list(blocks(network.module.double(), example_inputs(CASES[case])))
        assert traced == ["tokens", "mix.qkv", "mix.projection", "head"]
    else:
        check_traced(CASES[case])


def check_traced(architecture: Graph) -> None:
    network = build(architecture, seed=0)
    inputs = example_inputs(architecture)
    network.module.double()
    assert list(blocks(network.module, inputs)) == [block.module for block in network.blocks]
    traced = network_of(network.module, inputs=inputs)
    assert [set(b.parameters) for b in traced.blocks] == [set(b.parameters) for b in network.blocks]


def drawn(rng: random.Random, size: int) -> list[dict[str, Any]]:
    """Layers on vectors of width 4, each of some before it; what no layer took goes to a last one."""
    layers: list[dict[str, Any]] = []
    loose: list[str] = []
    for i in range(size):
        name, known = f"l{i}", ["input", *(each["name"] for each in layers)]
        near = rng.choice([1, 2, 4])

        def one(known: list[str] = known, near: int = near) -> str:
            return rng.choice(known[-near:])

        kind = rng.choice(["linear", "linear", "activation", "norm", "residual"])
        fields: dict[str, Any] = {
            "linear": {"width": 4}, "activation": {"function": "tanh"}, "norm": {"norm": "rmsnorm"}, "residual": {},
        }[kind]  # fmt: skip
        taken = {"input": one()} if kind != "residual" else {"input": one(), "branch": one()}
        layers.append(layer(kind, name, **fields, **taken))
        loose = [each for each in loose if each not in taken.values()] + [name]
    if len(loose) > 1:
        layers.append(layer("concat", "rest", inputs=loose))
    return [*layers, layer("linear", "out", width=2)]


def graphs(count: int, size: int, seed: int) -> list[Graph]:
    rng, found = random.Random(seed), []
    while len(found) < count:
        layers = drawn(rng, rng.randint(3, size))
        rng.shuffle(layers)  # every layer but "out" names what it takes; that one comes last
        out = next(each for each in layers if each["name"] == "out")
        taken = {name for each in layers for name in (each.get("input"), each.get("branch"), *each.get("inputs", ()))}
        out["input"] = next(each["name"] for each in layers if each is not out and each["name"] not in taken)
        try:
            found.append(graph({"shape": [4]}, *layers))
        except ValueError as error:
            if "at least 2 blocks" not in str(error):
                raise
    return found


def test_every_path_passes_by_dominators_on_random_graphs() -> None:
    """networkx: the dominators of the output are the layers on every path to it."""
    counts = []
    for architecture in graphs(300, 14, seed=0):
        nodes = architecture.plan.nodes
        edges = nx.DiGraph((name, node.layer.name) for node in nodes for name in node.operands)
        dominates = nx.immediate_dominators(edges, INPUT)
        found, name = [], nodes[-1].layer.name
        while name != INPUT:
            found.append(name)
            name = dominates[name]
        assert [nodes[i].layer.name for i in on_every_path(nodes)] == found[::-1]
        counts.append(len(found) / len(nodes))
    assert min(counts) < 0.3
    assert max(counts) > 0.9


def test_cut_nodes_are_those_that_tracing_finds_on_random_graphs() -> None:
    for architecture in graphs(12, 10, seed=1):
        check_traced(architecture)


def test_scalables_are_the_last_weights_of_branches_or_all_of_a_plain_block() -> None:
    def of(case: str) -> list[list[tuple[str, tuple[str, ...], float]]]:
        blocks = build(CASES[case], seed=0).blocks
        return [[(s.module, s.parameters, s.target_rms) for s in block.scalables] for block in blocks]

    assert of("residual") == [
        [("first", ("first.weight",), 1.0)],
        [("outer", ("outer.weight",), 1.0)],
        [("both", ("left.weight", "right.weight"), 1.0)],  # one factor: the branch is their concatenation
        [("head", ("head.weight",), 1.0)],
    ]
    assert of("u-net")[1] == [("skip", ("deep.weight",), 1.0)]
    assert of("text")[:2] == [
        [("positions", ("tokens.weight", "positions.weight"), 1.0)],
        [("mix", ("mix.projection.weight",), 1.0)],  # the one branch that nothing scales: 1/√1
    ]
    nested = graph(
        {"shape": [4]}, ONE, {**TWO, "name": "two"}, {**ONE, "name": "three"}, layer("residual", "inner", input="two"),
        {**ONE, "name": "short", "input": "one"}, layer("residual", "outer", input="short", branch="inner"), HEAD,
    )  # fmt: skip
    rms = 1 / math.sqrt(2)
    assert [(s.module, s.parameters, s.target_rms) for s in build(nested, seed=0).blocks[1].scalables] == [
        ("two", ("two.weight",), 1.0),
        ("three", ("three.weight",), pytest.approx(rms)),
        ("short", ("short.weight",), 1.0),
    ]


def test_a_list_in_any_order_is_the_same_network() -> None:
    architecture = CASES["residual"]
    spec = json.loads(architecture.model_dump_json(exclude_none=True))
    before = "input"
    for each in spec["layers"]:  # say what was left to the order
        if each["layer"] != "concat":
            each.setdefault("branch" if each["layer"] == "residual" else "input", before)
        before = each["name"]
    random.Random(3).shuffle(spec["layers"])
    other = Graph.model_validate_json(json.dumps(spec))
    assert [c.shape for c in other.plan.nodes] != []
    first, second = build(architecture, seed=0), build(other, seed=0)
    assert [(b.module, sorted(b.parameters)) for b in first.blocks] == [
        (b.module, sorted(b.parameters)) for b in second.blocks
    ]
    second.module.load_state_dict(first.module.state_dict())
    x = example_inputs(architecture).float()
    assert torch.equal(first.module(x), second.module(x))


def many(count: int = 4094) -> list[dict[str, Any]]:
    return [FLAT, *(layer("linear", f"l{i}", width=4) for i in range(count))]


HOSTILE: dict[str, tuple[list[dict[str, Any]], str]] = {
    "chain": ([*many(), HEAD], ""),
    "named from behind": (
        [{**each, "input": before["name"]} for before, each in zip([{"name": "input"}, *many(), HEAD], [*many(), HEAD])]  # noqa: B905
        [::-1],
        "",
    ),
    "residual blocks": (
        [FLAT, ONE, *(
            each for i in range(2000) for each in (
                layer("linear", f"l{i}", width=4),
                layer("residual", f"r{i}", input=f"r{i - 1}" if i else "one"),
            )
        ), HEAD],
        "",
    ),
    "long cycle": ([FLAT, layer("linear", "l0", width=4, input="l4000"), *many(4094)[2:], HEAD], "layers.2.input"),
    "doubling": (
        [FLAT, *(layer("concat", f"c{i}", inputs=[f"c{i - 1}" if i else "flat"] * 4) for i in range(4000)), HEAD],
        "layers.13",
    ),
    "one after all": ([*many(), layer("concat", "all", inputs=["l0", "l1"])], "layers.4094.name"),
    "no kinds": ([{"name": f"l{i}", "layer": "x"} for i in range(4096)], "layers.0.layer"),
    "too many": ([*many(), HEAD, {**HEAD, "name": "more"}], "layers"),
    "too much": ([layer("conv", "a", channels=65_536, kernel=1), layer("upsample", "u", factor=64), FLAT, HEAD],
                 "layers.1"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_thousands_of_layers_are_checked_within_a_second(case: str) -> None:
    layers, field = HOSTILE[case]
    text = json.dumps(document(*layers))
    best = float("inf")
    for _ in range(3):  # the machine is shared
        start = time.perf_counter()
        if not field:
            assert parse_request_json(text).architecture.parameter_count > 0
        else:
            with pytest.raises(SpecError) as caught:
                parse_request_json(text)
            assert caught.value.errors[0].field == f"architecture.{field}"
            assert len(str(caught.value)) < 20_000
        best = min(best, time.perf_counter() - start)
    assert best < 1.0
