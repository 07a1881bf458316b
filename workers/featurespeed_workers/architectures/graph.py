"""A network from a list of layers: a submodule each, under the layer's name, run in topological order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from featurespeed.contract import Graph
from featurespeed.contract.architecture.graph import Residual
from featurespeed.contract.architecture.graph.layer import INPUT, Layer, Node
from featurespeed_workers.architectures.graph_layers import module_of
from featurespeed_workers.architectures.layers import base_stds
from featurespeed_workers.network import Block, Network, Scalable


class GraphModule(nn.Module):
    """Layers that take what others give, by name."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        super().__init__()
        self._operands = {node.layer.name: node.operands for node in nodes}
        for node in nodes:
            self.add_module(node.layer.name, module_of(node))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, …) of the input's shape → (batch, …) of the output's."""
        found = {INPUT: x}
        for name, operands in self._operands.items():
            found[name] = self.get_submodule(name)(*(found[operand] for operand in operands))
        return found[name]


def graph_network(architecture: Graph) -> Network:
    """The network of a graph; its cut nodes are those of the plan."""
    plan = architecture.plan
    module = GraphModule(plan.nodes)
    branch_rms = 1 / math.sqrt(max(1, sum(_adds_all(node.layer) for node in plan.nodes)))
    blocks = []
    for name, nodes, cut in zip(architecture.block_names, plan.blocks, plan.cuts, strict=True):
        end = plan.nodes[cut].layer.name
        owned = [f"{n.layer.name}.{p}" for n in nodes for p, _ in module.get_submodule(n.layer.name).named_parameters()]
        blocks.append(Block(name, end, tuple(owned), _scalables(module, nodes, end, branch_rms)))
    return Network(module, tuple(blocks), base_stds(module))


def _adds_all(layer: Layer) -> bool:
    """Whether a branch is added to the stream as it is: nothing but its own size keeps the stream from growing."""
    return isinstance(layer, Residual) and layer.scale == 1 and layer.shortcut == "identity"


def _scalables(module: nn.Module, nodes: Sequence[Node], end: str, branch_rms: float) -> tuple[Scalable, ...]:
    """What SP rescales in a block.

    Without a residual layer all its matrices together. Else the last weights of each branch, before it is scaled: to
    rms 1, or ``branch_rms`` where nothing scales it, so that all such branches together add a mean square of 1 to the
    stream; and to rms 1 the last weights of what else lies in the block and ends in a stream, or in the cut node.
    """
    place = {node.layer.name: node for node in nodes}
    targets: dict[str, float] = {}
    for node in nodes:
        if isinstance(node.layer, Residual):
            stream, branch = node.operands
            targets.setdefault(branch, branch_rms if _adds_all(node.layer) else 1.0)
            targets.setdefault(stream, 1.0)
    if not targets:
        return _made(end, [name for node in nodes for name in _matrices(module, node)])
    targets.setdefault(end, 1.0)
    found: list[Scalable] = []
    taken: set[str] = set()
    for name in [node.layer.name for node in nodes if node.layer.name in targets]:
        last = [weight for weight in _last_weights(module, place, name) if weight not in taken]
        taken.update(last)
        found += _made(name, last, targets[name])
    return tuple(found)


def _made(path: str, parameters: Sequence[str], rms: float = 1.0) -> tuple[Scalable, ...]:
    return (Scalable(path, tuple(parameters), rms),) if parameters else ()


def _last_weights(module: nn.Module, place: dict[str, Node], name: str) -> list[str]:
    """The weights of a block next before a layer, itself included, but none beyond a residual layer."""
    last, seen, ahead = set(), set(), [name]
    while ahead:
        now = ahead.pop()
        if now in seen or now not in place or isinstance(place[now].layer, Residual):
            continue
        seen.add(now)
        if place[now].layer.maps:
            last.add(now)
        else:
            ahead += place[now].operands
    return [name for now, node in place.items() if now in last for name in _matrices(module, node)[-1:]]


def _matrices(module: nn.Module, node: Node) -> list[str]:
    """Names of a layer's weights; those of attention in the order of use."""
    part = module.get_submodule(node.layer.name)
    return [f"{node.layer.name}.{name}" for name, p in part.named_parameters() if p.ndim > 1]
