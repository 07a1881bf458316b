"""What a list of layers amounts to: their order, shapes and cut nodes.

Errors are ValueErrors that begin with the field.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from featurespeed.contract.architecture.graph.cuts import as_asked, by_rule, on_every_path
from featurespeed.contract.architecture.graph.layer import INPUT, Layer, Node, Shape
from featurespeed.contract.architecture.graph.vectors import Embedding

LARGEST = 2**31
"""Numbers that a layer may give of one example."""
_TORCHS = """
T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval
extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half input ipu load_state_dict modules
mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook register_buffer
register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory
state_dict to to_empty train training type xpu zero_grad
"""
RESERVED = frozenset(_TORCHS.split())
"""Names that a layer cannot have: the graph's input, and what torch.nn.Module calls its own."""


@dataclass(frozen=True)
class Plan:
    """The layers in an order in which they can be computed, and the places of the cut nodes in it."""

    nodes: tuple[Node, ...]
    cuts: tuple[int, ...]

    @property
    def blocks(self) -> list[tuple[Node, ...]]:
        """The layers of each block up to its cut node; of the last also those without parameters behind it."""
        ends = [*(cut + 1 for cut in self.cuts[:-1]), len(self.nodes)]
        return [self.nodes[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def make_plan(shape: Shape, *, tokens: bool, layers: Sequence[Layer], cut_nodes: Sequence[str] | None) -> Plan:
    """The plan of ``layers`` on an input of ``shape``; of tokens (length, vocab_size)."""
    operands = _operands(layers)
    order = _order(layers, operands)
    _check_used(layers, operands)
    nodes = _nodes(shape, tokens, layers, operands, order)
    passed = on_every_path(nodes)
    cuts = by_rule(nodes, passed) if cut_nodes is None else as_asked(nodes, passed, cut_nodes)
    return Plan(nodes, cuts)


def _operands(layers: Sequence[Layer]) -> list[dict[str, str]]:
    """What each layer takes, by field; every name is known, and of one layer."""
    index: dict[str, int] = {}
    for i, layer in enumerate(layers):
        if layer.name in RESERVED:
            raise ValueError(f"layers.{i}.name: {layer.name!r} is reserved, for the input or as torch.nn.Module's own")
        if layer.name in index:
            raise ValueError(f"layers.{i}.name: {layer.name!r} is the name of layer {index[layer.name]} too")
        index[layer.name] = i
    found = [layer.operands(layers[i - 1].name if i else INPUT) for i, layer in enumerate(layers)]
    for i, operands in enumerate(found):
        for field, name in operands.items():
            if name != INPUT and name not in index:
                raise ValueError(f"layers.{i}.{field}: there is no layer {name!r}")
    return found


def _check_used(layers: Sequence[Layer], operands: Sequence[Mapping[str, str]]) -> None:
    """One layer is the output, the last in the list that no other takes; all others are taken."""
    used = {name for own in operands for name in own.values()}
    outputs = [i for i, layer in enumerate(layers) if layer.name not in used]
    if len(outputs) > 1:
        i, last = outputs[0], layers[outputs[-1]].name
        raise ValueError(f"layers.{i}.name: no layer takes {layers[i].name!r}, and the output is {last!r}")


def _order(layers: Sequence[Layer], operands: Sequence[Mapping[str, str]]) -> list[int]:
    """Places in the list in an order in which each layer follows what it takes: the list's own where that is one."""
    index = {layer.name: i for i, layer in enumerate(layers)}
    sorter = TopologicalSorter(
        {i: {index[name] for name in own.values() if name != INPUT} for i, own in enumerate(operands)}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(_cycle(layers, operands, error.args[1])) from None
    ready: list[int] = []
    order = []
    while sorter.is_active():
        for i in sorter.get_ready():
            heapq.heappush(ready, i)
        order.append(heapq.heappop(ready))
        sorter.done(order[-1])
    return order


def _cycle(layers: Sequence[Layer], operands: Sequence[Mapping[str, str]], cycle: Sequence[int]) -> str:
    """``cycle``: each is taken by the next; the last is the first again."""
    taken, taking = cycle[0], cycle[1]
    field = next(field for field, name in operands[taking].items() if name == layers[taken].name)
    names = [layers[i].name for i in cycle]
    shown = names if len(names) <= 6 else [*names[:3], "…", *names[-2:]]
    return f"layers.{taking}.{field}: a cycle: {' → '.join(shown)}"


def _nodes(
    shape: Shape, tokens: bool, layers: Sequence[Layer], operands: Sequence[Mapping[str, str]], order: Sequence[int]
) -> tuple[Node, ...]:
    """Every layer with its shapes, in order."""
    shapes = {INPUT: shape}
    found = []
    for i in order:
        layer, names = layers[i], tuple(operands[i].values())
        for field, name in operands[i].items():
            if isinstance(layer, Embedding) != (tokens and name == INPUT):
                raise ValueError(f"layers.{i}.{field}: an embedding, and nothing else, takes the input's tokens")
        inputs = tuple(shapes[name] for name in names)
        try:
            given = layer.shape(*inputs)
        except ValueError as error:
            raise ValueError(f"layers.{i}.{error}") from None
        if math.prod(given) > LARGEST:
            raise ValueError(f"layers.{i}: gives {math.prod(given):,} numbers of one example, more than {LARGEST:,}")
        shapes[layer.name] = given
        found.append(Node(layer, names, inputs, given, i))
    return tuple(found)
