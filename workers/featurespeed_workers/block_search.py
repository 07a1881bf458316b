"""Which cut nodes of a dataflow a person would name, and the parameters of the blocks between them.

The rule, over the nodes through which every path from an input to the output passes:

1. A *candidate* is one that is the output (of a tuple the first element) of a submodule that runs once, is not changed
   in place afterwards, and has no parameter that trains on both sides: a tied weight belongs to one block.
2. A *residual block* stays whole: candidates within a module are left out if that module's own ``forward`` joins
   branches with parameters (a residual sum, attention, concatenation) and its output is a candidate, unless a module
   within it is such a block itself (a backbone with a long skip around residual blocks). An element of a ``ModuleList``
   counts as the one that joins what its parts join (a layer made of an attention and a feed-forward module).
3. A linear map begins a block, and the nonlinearity before it belongs to it (the paper's pre-activations
   f_l = W_l φ(f_{l-1})): a candidate that adds no parameter is left out; but a module that holds the map of one block
   and what follows it, as ``Sequential(Linear, Tanh)``, is taken whole.
4. Sums, gains and normalisations alone are no block. They join the block before (embedding + positions, convolution +
   batch norm), but after a residual block, after a nonlinearity, or in one module with what follows, the one behind
   (final norm + head).
5. What several modules have as output is named by the outermost of them that holds no other cut node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from featurespeed_workers.dataflow import Dataflow, Node, on_a_path, on_every_path


@dataclass(frozen=True)
class CutNode:
    """A candidate, and what lies between it and the one before."""

    names: tuple[str, ...]
    """The modules that have it as output, the innermost first."""
    position: int
    parameters: frozenset[str] = frozenset()
    maps: bool = False
    """Whether a linear map or a look-up lies there, or only sums, gains and normalisations."""
    branches: bool = False
    """Whether paths with parameters run side by side there."""


@dataclass(frozen=True)
class Found:
    """Cut nodes in forward order, and what the message needs if they are too few."""

    cut_nodes: tuple[CutNode, ...]
    used: frozenset[str]
    """All parameters on the way from the input to the output."""
    tied: tuple[str, ...]
    """Parameters on both sides of what would else be a candidate."""
    behind: tuple[str, ...]
    """Parameters that act after the last candidate."""


def search(flow: Dataflow, trained: Collection[str], layers: Mapping[str, str]) -> Found:
    """The cut nodes by the rule above.

    ``trained``: names of the parameters that require a gradient; ``layers``: the element of a list of which a module is
    a part, by the module's path.
    """
    nodes = flow.nodes
    operands = [node.operands for node in nodes]
    sources = [i for i, node in enumerate(nodes) if node.source]
    path = on_a_path(operands, sources, flow.outputs)
    cuts = on_every_path(operands, sources, flow.outputs)
    joins = _joins(nodes, path, cuts)
    candidates, tied = _candidates(flow, path, cuts, frozenset(trained))
    chosen = _between(nodes, path, _whole(candidates, joins, layers), joins)
    if len(_joined(chosen)) < 2:  # one residual block is all there is: look into it
        chosen = _between(nodes, path, candidates, joins)
    last = candidates[-1].position if candidates else -1
    return Found(
        cut_nodes=_named(_joined(chosen)),
        used=frozenset[str]().union(*(nodes[i].parameters for i in path)),
        tied=tied,
        behind=tuple(sorted(name for i in path if i > last for name in nodes[i].parameters)),
    )


def _candidates(
    flow: Dataflow, path: Sequence[int], cuts: Sequence[int], trained: frozenset[str]
) -> tuple[list[CutNode], tuple[str, ...]]:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i in path:
        for name in flow.nodes[i].parameters & trained:
            first.setdefault(name, i)
            last[name] = i
    found: list[CutNode] = []
    tied: dict[str, None] = {}
    values: list[int] = []
    for i in cuts:
        node = flow.nodes[i]
        if node.output_of is None or flow.calls[node.output_of] > 1 or node.changed:
            continue
        if over := [name for name in first if first[name] <= i < last[name]]:
            tied.update(dict.fromkeys(over))
            continue
        value = _value(flow.nodes, i)
        if values and values[-1] == value:
            found[-1] = replace(found[-1], names=(*found[-1].names, node.output_of))
        else:
            found.append(CutNode((node.output_of,), i))
            values.append(value)
    return found, tuple(tied)


def _value(nodes: Sequence[Node], i: int) -> int:
    """The node whose numbers these are: outputs of modules are passed on as they are."""
    while nodes[i].output_of is not None and len(nodes[i].operands) == 1:
        i = nodes[i].operands[0]
    return i


def _joins(nodes: Sequence[Node], path: Sequence[int], cuts: Sequence[int]) -> dict[int, str]:
    """Where branches with parameters end, and the module whose forward joins them."""
    found, at, branching = {}, set(cuts), False
    for i in path:
        if i not in at:
            branching = branching or bool(nodes[i].parameters)
            continue
        if branching:
            found[i] = nodes[i].module
        branching = False
    return found


def _whole(candidates: Sequence[CutNode], joins: dict[int, str], layers: Mapping[str, str]) -> list[CutNode]:
    """Without what lies within residual blocks."""
    known = {name for c in candidates for name in c.names}
    joining = {layer if (layer := layers.get(module, module)) in known else module for module in joins.values()}
    blocks: list[str] = []
    for module in sorted(joining & known, key=lambda m: -m.count(".")):
        if not any(_within(other, module) for other in blocks):
            blocks.append(module)
    outside = [
        replace(c, names=tuple(name for name in c.names if not any(_within(name, block) for block in blocks)))
        for c in candidates
    ]
    return [c for c in outside if c.names]


def _between(
    nodes: Sequence[Node], path: Sequence[int], candidates: Sequence[CutNode], joins: dict[int, str]
) -> list[CutNode]:
    """Each with what lies between it and the one before."""
    found, before = [], -1
    for c in candidates:
        own = [i for i in path if before < i <= c.position]
        parameters = frozenset[str]().union(*(nodes[i].parameters for i in own))
        found.append(
            replace(
                c, parameters=parameters, maps=any(nodes[i].maps for i in own), branches=any(i in joins for i in own)
            )
        )
        before = c.position
    return found


def _joined(cut_nodes: Sequence[CutNode]) -> list[CutNode]:
    """Blocks with a linear map each (steps 3 and 4 of the rule)."""
    blocks: list[CutNode] = []
    ahead, bare = frozenset[str](), False
    filled = [c for c in cut_nodes if c.parameters]
    for c in cut_nodes:
        if not c.parameters:
            around = tuple(name for name in c.names if _holds_the_last(name, blocks))
            if around:
                blocks[-1] = replace(blocks[-1], names=around, position=c.position)
            bare = bare or not around
            continue
        following = filled[filled.index(c) + 1 :]
        if c.maps or c.branches or not (blocks or following):
            blocks.append(replace(c, parameters=c.parameters | ahead))
            ahead = frozenset()
        elif blocks and not ahead and (not following or not (bare or _belongs_ahead(blocks[-1], c, following[0]))):
            blocks[-1] = replace(c, parameters=c.parameters | blocks[-1].parameters, branches=blocks[-1].branches)
        elif following:
            ahead |= c.parameters
        else:
            blocks[-1] = replace(c, parameters=c.parameters | ahead | blocks[-1].parameters)
        bare = False
    return blocks


def _holds_the_last(module: str, blocks: Sequence[CutNode]) -> bool:
    held = [_within(block.names[0], module) for block in blocks]
    return sum(held) == 1 and held[-1]


def _belongs_ahead(before: CutNode, c: CutNode, after: CutNode) -> bool:
    """Whether sums and gains after a block belong to the one behind."""
    return before.branches or _shared(c, after) > _shared(c, before)


def _shared(a: CutNode, b: CutNode) -> int:
    """How many levels of modules two outputs have in common."""
    count = 0
    for x, y in zip(a.names[0].split("."), b.names[0].split("."), strict=False):
        if x != y:
            break
        count += 1
    return count


def _named(blocks: Sequence[CutNode]) -> tuple[CutNode, ...]:
    """Each by one name."""
    named = []
    for block in blocks:
        others = [name for other in blocks if other is not block for name in other.names[:1]]
        name = block.names[0]
        for wider in block.names[1:]:
            if _within(name, wider) and not any(_within(other, wider) for other in others):
                name = wider
        named.append(replace(block, names=(name,)))
    return tuple(named)


def _within(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")
