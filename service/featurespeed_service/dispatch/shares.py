"""What a cell takes of a node, and how many cells the nodes hold. Pure: knows neither Ray nor the store."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

GPU_STEPS = 20
"""A share of a GPU is a whole number of twentieths."""
MEMORY_SAFETY = 1.5
"""A cell gets so many times its estimated memory: peaks exceed the estimate, and CUDA itself takes some."""
GIB = 2**30


@dataclass(frozen=True)
class Node:
    """A living node."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Share:
    """What one cell asks for; ``gpus`` 0 computes on the CPU."""

    cpus: float = 1.0
    gpus: float = 0.0

    def of(self, node: Node) -> int:
        """How many such cells a node holds."""
        parts = [(node.cpus, self.cpus), (node.gpus, self.gpus)]
        return min(math.floor(there / asked + 1e-6) for there, asked in parts if asked > 0)


@dataclass(frozen=True)
class Capacity:
    """The cluster as it is now; ``gpu_bytes`` is the memory of one GPU, ``None`` if nobody knows.

    ``gpus_may_come``: cells ask for GPUs also while no node has one.
    """

    nodes: tuple[Node, ...]
    gpu_bytes: int | None = None
    gpus_per_cell: float | None = None
    gpus_may_come: bool = False

    @property
    def gpu_nodes(self) -> int:
        """How many nodes have GPUs."""
        return sum(node.gpus > 0 for node in self.nodes)

    def share(self, memory_bytes: int) -> Share:
        """The share of a cell with this estimate: on a GPU if there is or may be one, unless ``gpus_per_cell`` is 0."""
        if memory_bytes not in self._shares:
            self._shares[memory_bytes] = self._share(memory_bytes)
        return self._shares[memory_bytes]

    def _share(self, memory_bytes: int) -> Share:
        with_gpu = [node for node in self.nodes if node.gpus > 0]
        if self.gpus_per_cell == 0 or not (with_gpu or self.gpus_may_come):
            return Share()
        gpus = self._gpus(memory_bytes)
        if not with_gpu:
            return Share(min(1.0, gpus), gpus)
        # all CPUs of a node when all of its GPUs are in use, so that CPUs are never what bounds their number
        cpus = min(node.cpus / node.gpus * gpus for node in with_gpu)
        return Share(min(1.0, math.floor(cpus * 1e4) / 1e4), gpus)

    def _gpus(self, memory_bytes: int) -> float:
        if self.gpus_per_cell is not None:
            return self.gpus_per_cell
        if self.gpu_bytes is None:
            return 1.0
        steps = math.ceil(GPU_STEPS * MEMORY_SAFETY * memory_bytes / self.gpu_bytes)
        return min(max(steps, 1), GPU_STEPS) / GPU_STEPS

    def slots(self, share: Share) -> int:
        """How many such cells the cluster holds at once."""
        if share not in self._slots:
            self._slots[share] = sum(share.of(node) for node in self.nodes)
        return self._slots[share]

    @cached_property
    def _slots(self) -> dict[Share, int]:
        return {}

    @cached_property
    def _shares(self) -> dict[int, Share]:
        return {}

    @property
    def most(self) -> int:
        """Cells that it holds at once if all are small."""
        return self.slots(self.share(0))

    def has_room(self, running: Counter[Share], share: Share, surplus: int = 0) -> bool:
        """Whether one more cell fits beside those that run, or waits among at most ``surplus`` others."""
        load = sum(number / self.slots(other) for other, number in running.items() if self.slots(other))
        homeless = sum(number for other, number in running.items() if not self.slots(other))
        slots = self.slots(share)
        if slots == 0:
            return homeless < surplus
        return load + 1 / slots <= 1 + surplus / slots + 1e-6

    def lack(self, share: Share, memory_bytes: int) -> str | None:
        """Why no node can ever hold a cell, in words; ``None`` if one can."""
        if self.slots(share) == 0:
            return f"a cell needs {_named(share.cpus, share.gpus)}; {self._largest(share.gpus > 0)}"
        if share.gpus and self.gpus_per_cell is None and memory_bytes > (self.gpu_bytes or math.inf):
            found = (self.gpu_bytes or 0) / GIB
            return f"a cell needs {memory_bytes / GIB:.2f} GiB of a GPU by estimate; the cluster's have {found:.2f} GiB"
        return None

    def _largest(self, by_gpu: bool) -> str:
        if not self.nodes:
            return "the cluster has no node"
        largest = max(self.nodes, key=lambda node: (node.gpus, node.cpus) if by_gpu else (node.cpus, node.gpus))
        return f"the largest node of the cluster has {_named(largest.cpus, largest.gpus)}"


def _named(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
