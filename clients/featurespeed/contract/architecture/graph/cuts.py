"""Where a list of layers is cut into blocks.

Cut nodes are chosen by the rule for modules of one's own (``featurespeed_workers/block_search.py``), from the list
alone: layers through which every path from the input to the output passes, one a residual block, or one a weight layer
in a plain chain. Errors are ValueErrors that begin with the field.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurespeed.contract.architecture.graph.layer import INPUT, Node


def on_every_path(nodes: Sequence[Node]) -> list[int]:
    """Places of the layers through which every path from the input to the output passes.

    All lie on one such path or another: so these are the layers over which no edge passes, in topological order.
    """
    place = {node.layer.name: i for i, node in enumerate(nodes)}
    reach = {INPUT: 0} | {node.layer.name: i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        for name in node.operands:
            reach[name] = i
    furthest, found = reach[INPUT], []
    for name, i in place.items():
        if furthest <= i:
            found.append(i)
        furthest = max(furthest, reach[name])
    return found


def by_rule(nodes: Sequence[Node], passed: Sequence[int]) -> tuple[int, ...]:
    """Of the layers that all paths pass those that end a block.

    A linear map begins a block, as do branches with parameters; a layer without parameters ends none. Norms and
    positions belong to the block before, or after branches or a nonlinearity to the one behind.
    """
    segments = _segments(nodes, passed)
    last = max((k for k, segment in enumerate(segments) if any(n.parameter_count for n in segment)), default=-1)
    ends: list[tuple[int, bool]] = []
    ahead = bare = False
    for k, segment in enumerate(segments):
        if not any(node.parameter_count for node in segment):
            bare = True
            continue
        branches = any(node.parameter_count for node in segment[:-1])
        if branches or segment[-1].layer.maps or not (ends or k < last):
            ends.append((passed[k], branches))
            ahead = False
        elif k == last or (ends and not (ahead or bare or ends[-1][1])):
            ends[-1] = (passed[k], ends[-1][1])
        else:
            ahead = True
        bare = False
    if last < 0:
        raise ValueError("layers: there is no parameter before the loss")
    if len(ends) < 2:
        raise ValueError(f"layers: at least 2 blocks are needed: every path passes {len(ends)} that could end one")
    return tuple(end for end, _ in ends)


def _segments(nodes: Sequence[Node], ends: Sequence[int]) -> list[Sequence[Node]]:
    return [nodes[a + 1 : b + 1] for a, b in zip([-1, *ends], ends, strict=False)]


def as_asked(nodes: Sequence[Node], passed: Sequence[int], names: Sequence[str]) -> tuple[int, ...]:
    """Cut nodes by name."""
    place, may_end = {node.layer.name: i for i, node in enumerate(nodes)}, set(passed)
    ends: list[int] = []
    before = -1
    for k, name in enumerate(names):
        if name not in place:
            raise ValueError(f"cut_nodes.{k}: there is no layer {name!r}")
        if place[name] not in may_end:
            raise ValueError(f"cut_nodes.{k}: not every path from the input to the output passes through {name!r}")
        if place[name] <= before:
            raise ValueError(f"cut_nodes.{k}: {name!r} does not come after {names[k - 1]!r}")
        if not any(node.parameter_count for node in nodes[before + 1 : place[name] + 1]):
            raise ValueError(f"cut_nodes.{k}: no parameter lies between {name!r} and what comes before")
        before = place[name]
        ends.append(before)
    for node in nodes[before + 1 :]:
        if node.parameter_count:
            raise ValueError(f"cut_nodes: layer {node.layer.name!r} has parameters behind the last, {names[-1]!r}")
    return tuple(ends)
