"""The dataflow in a graph of ``torch.export``, whose nodes are calls of aten operators, each within some module."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from featurespeed_workers.dataflow import Dataflow, Node

_LIBRARY = torch.library.Library("featurespeed", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("output_of(Tensor output, str module) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl(  # type: ignore[no-untyped-call]
    "output_of", lambda output, module: output.clone(), "CompositeExplicitAutograd"
)
OUTPUT_OF = torch.ops.featurespeed.output_of.default
"""Does nothing; leaves in the graph whose output a tensor is."""

_GAINS = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "addcmul",
        "addcdiv",
        "lerp",
        "pow",
        "cat",
        "concat",
        "stack",
        "where",
        "maximum",
        "minimum",
        "prelu",
        "_prelu_kernel",
        "clamp",
        "layer_norm",
        "rms_norm",
        "_fused_rms_norm",
        "native_layer_norm",
        "batch_norm",
        "instance_norm",
        "group_norm",
    ]
)
"""Operators by which a parameter enters without mixing features: sums, gains, normalisations."""


@dataclass(frozen=True)
class _Value:
    """What a node of torch's graph stands for."""

    node: int | None = None
    """Its number, if it is a signal."""
    raw: bool = False
    """Whether it depends on an input, but is no signal."""
    parameters: frozenset[str] = frozenset()
    """What it carries, if it is computed from parameters and constants alone."""
    root: object = None
    """The same for all views of one memory."""


def dataflow_of(graph: fx.GraphModule, parameters: Mapping[str, str], inputs: Collection[Any]) -> Dataflow:
    """The signals of a graph as ``torch.export`` makes it; subgraphs are inlined, changes in place are nodes.

    ``parameters``: name by placeholder; ``inputs``: the placeholders of the module's inputs. A signal is a tensor of
    real numbers that depends on an input; one that is computed from an integer input without a parameter is none.
    """
    return _Reader(parameters, inputs).read(graph)


class _Reader:
    def __init__(self, parameters: Mapping[str, str], inputs: Collection[Any]) -> None:
        self._parameters = parameters
        self._inputs = inputs
        self._nodes: list[Node] = []
        self._calls: Counter[str] = Counter()
        self._written: dict[object, int] = {}
        """The latest change in place, by memory: whoever reads it later, by another name, reads the change."""
        self._roots: list[object] = []

    def read(self, graph: fx.GraphModule) -> Dataflow:
        placeholders = [self._placeholder(n) for n in graph.graph.nodes if n.op == "placeholder"]
        returned = self._run(graph, placeholders)
        outputs = tuple(v.node for v in returned if v.node is not None)
        return Dataflow(tuple(self._with_changes()), outputs, dict(self._calls))

    def _placeholder(self, node: fx.Node) -> _Value:
        if node.name in self._parameters:
            return _Value(parameters=frozenset({self._parameters[node.name]}), root=node)
        if node.name not in self._inputs:
            return _Value(root=node)
        if not _is_real(node):
            return _Value(raw=True, root=node)
        return _Value(self._add(Node((), True, frozenset(), False, ""), node), root=node)

    def _run(self, graph: fx.GraphModule, operands: Sequence[_Value]) -> list[_Value]:
        given = iter(operands)
        known: dict[fx.Node, _Value] = {}
        results: dict[fx.Node, list[_Value]] = {}
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(given)
            elif node.op == "output":
                return [known.get(n, _Value()) for n in node.args[0]]
            elif node.op == "call_function":
                inner = _subgraph(graph, node)
                if inner is not None:
                    body, arguments = inner
                    results[node] = self._run(body, [known.get(a, _Value()) for a in arguments])
                    known[node] = results[node][0] if results[node] else _Value()
                elif node.target is operator.getitem and node.args[0] in results:
                    known[node] = results[node.args[0]][node.args[1]]
                else:
                    known[node] = self._call(node, [known[n] for n in node.all_input_nodes if n in known], known)
        return []

    def _call(self, node: fx.Node, operands: Sequence[_Value], known: Mapping[fx.Node, _Value]) -> _Value:
        signals = {v.node for v in operands if v.node is not None}
        signals |= {self._written[v.root] for v in operands if self._written.get(v.root, -1) > (v.node or 0)}
        carried = frozenset[str]().union(*(v.parameters for v in operands))
        raw = any(v.raw for v in operands)
        root = _root(node, known)
        mark = node.args[1] if node.target is OUTPUT_OF else None
        if mark is not None:
            self._calls[str(mark)] += 1
        begins = not signals and raw and bool(carried)
        if not _is_real(node) or not (signals or begins):
            depends = raw or bool(signals)
            return _Value(raw=depends, parameters=frozenset() if depends else carried, root=root)
        maps = bool(carried) and _name(node).rstrip("_") not in _GAINS
        made = Node(tuple(sorted(signals)), begins, carried, maps, _module(node), None if mark is None else str(mark))
        number = self._add(made, root)
        for changed in _changed(node):
            memory = known[changed].root if changed in known else None
            self._written[memory] = number
        return _Value(number, root=root)

    def _add(self, node: Node, root: object) -> int:
        self._nodes.append(node)
        self._roots.append(root)
        return len(self._nodes) - 1

    def _with_changes(self) -> Iterator[Node]:
        for i, (node, root) in enumerate(zip(self._nodes, self._roots, strict=True)):
            yield replace(node, changed=self._written.get(root, -1) > i)


def _subgraph(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, list[Any]] | None:
    """The body and arguments of a call under a context (autocast, no_grad), which torch.export keeps as a subgraph."""
    if not _name(node).startswith("wrap_with_"):
        return None
    for i, argument in enumerate(node.args):
        body = getattr(graph, str(argument.target), None) if isinstance(argument, fx.Node) else None
        if isinstance(body, fx.GraphModule):
            return body, list(node.args[i + 1 :])
    return None


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    parts = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) for x in parts)


def _name(node: fx.Node) -> str:
    target = node.target
    path = target.overloadpacket if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", target)
    return str(path).rpartition(".")[2]


def _module(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(list(stack.values())), ("",))[0]
    return str(path).partition("@")[0]


def _changed(node: fx.Node) -> list[fx.Node]:
    """The arguments that an operator writes to."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    named = zip(schema.arguments, node.args, strict=False)
    written = [
        argument for declared, argument in named if declared.alias_info is not None and declared.alias_info.is_write
    ]
    return [argument for argument in written if isinstance(argument, fx.Node)]


def _root(node: fx.Node, known: Mapping[fx.Node, _Value]) -> object:
    """The memory of the result: that of the first argument for views and changes in place, else its own."""
    schema = getattr(node.target, "_schema", None)
    first = node.args[0] if node.args else None
    shares = schema is not None and any(result.alias_info is not None for result in schema.returns)
    # ours stands for the output itself, dropout in eval mode returns its input, and getitem takes one of several views
    shares = shares or _name(node) in ("output_of", "dropout", "feature_dropout", "alpha_dropout", "getitem")
    return known[first].root if shares and isinstance(first, fx.Node) and first in known else node
