"""Granularity ``group``: the hidden blocks share the scales of their matrices, as in the paper (σ_hid of Sec 5)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from featurespeed_workers.network import Block, Network
from featurespeed_workers.passes import norm


@dataclass(frozen=True)
class Shared:
    """Parameters whose hidden matrices have common scales; ``stds`` are those, by parameter name."""

    parameters: dict[str, Tensor]
    stds: dict[str, float]
    kinds: int
    """Kinds of hidden blocks: only blocks whose matrices have the same shapes can share a std."""


def share_scales(network: Network, parameters: Mapping[str, Tensor]) -> Shared:
    """Give the matrices (and gains that are scaled) at one place of all hidden blocks of a kind one root mean square,
    the geometric mean of theirs.

    Blocks are of a kind if their matrices, in order, have the same shapes. The geometric mean keeps the product of all
    scales: in a homogeneous chain f_{L-1} keeps its size. Matrices that neither train nor are scaled, and places at
    which one is zero, stay as they are.
    """
    hidden = network.blocks[1:-1]
    scaled = {name for block in hidden for scalable in block.scalables for name in scalable.parameters}

    def matrices(block: Block) -> list[str]:
        named = [(name, parameters[name]) for name in block.parameters]
        return [name for name, p in named if (p.ndim > 1 and p.requires_grad) or name in scaled]

    kinds: dict[tuple[tuple[int, ...], ...], list[list[str]]] = {}
    for block in hidden:
        own = matrices(block)
        kinds.setdefault(tuple(tuple(parameters[name].shape) for name in own), []).append(own)
    found, stds = dict(parameters), {}
    for blocks in kinds.values():
        for names in zip(*blocks, strict=True):
            sizes = [norm(parameters[name]) / math.sqrt(parameters[name].numel()) for name in names]
            if not all(sizes):
                continue
            std = statistics.geometric_mean(sizes)
            for name, size in zip(names, sizes, strict=True):
                p = parameters[name]
                found[name] = (p.detach() * (std / size)).requires_grad_(p.requires_grad)
                stds[name] = std
    return Shared(found, stds, len(kinds))
