"""The dataflow of one forward pass as a graph, and the nodes through which every path from an input to the loss passes.

Nodes are numbered in the order in which they were computed, hence topologically.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One tensor of a pass (or a tuple of them) that depends on an input through real numbers."""

    operands: tuple[int, ...]
    """The nodes that it is computed from, parameters and constants left out."""
    source: bool
    """Whether paths begin here: a real input, or the look-up of an integer one in a parameter."""
    parameters: frozenset[str]
    """Names of those that enter here, directly or through what is computed from parameters alone."""
    maps: bool
    """Whether a parameter enters as more than a sum, a gain or a normalisation: as a linear map or a look-up."""
    module: str
    """Path of the innermost module that computes it."""
    output_of: str | None = None
    """Path of the module whose output this is, of a node that stands for such an output alone."""
    changed: bool = False
    """Whether its values are changed in place afterwards."""


@dataclass(frozen=True)
class Dataflow:
    """The nodes of a pass; ``outputs`` are those that the network returns, ``calls`` counts each module's."""

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    calls: dict[str, int]


def on_every_path(operands: Sequence[Iterable[int]], sources: Iterable[int], sinks: Iterable[int]) -> list[int]:
    """Nodes through which every path from a source to a sink passes, in order; none where there is no path.

    ``operands[i]``: the predecessors of node i, all less than i. Takes time linear in nodes and edges: in topological
    order, such a node is one that no edge passes over, those from a common beginning to each source included.
    """
    relevant = on_a_path(operands, sources, sinks)
    beyond = len(operands)
    reach = {i: beyond if i in set(sinks) else i for i in relevant}
    for i in relevant:
        for operand in operands[i]:
            if operand in reach:
                reach[operand] = max(reach[operand], i)
    furthest = max((i for i in sources if i in reach), default=beyond)
    found = []
    for i in relevant:
        if furthest <= i:
            found.append(i)
        furthest = max(furthest, reach[i])
    return found


def on_a_path(operands: Sequence[Iterable[int]], sources: Iterable[int], sinks: Iterable[int]) -> list[int]:
    """Nodes on some path from a source to a sink, in order."""
    reached = set(sources)
    for i, own in enumerate(operands):
        if any(operand in reached for operand in own):
            reached.add(i)
    needed = set(sinks)
    for i in range(len(operands) - 1, -1, -1):
        if i in needed:
            needed.update(operands[i])
    return sorted(reached & needed)
