"""A network as the science sees it: a module, cut into a chain of blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from featurespeed.contract.request import Method

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Scalable:
    """Weight matrices rescaled together until the output of ``module`` has rms ``target_rms`` (property SP)."""

    module: str
    """Path of the submodule whose output is brought to ``target_rms``."""
    parameters: tuple[str, ...]
    """Names, as in ``named_parameters()``, of the tensors that are multiplied by one common factor."""
    target_rms: float = 1.0


@dataclass(frozen=True)
class Block:
    """One block ``f_l = T_l(f_{l-1}, w_l)``: a cut node and the parameters between it and the cut node before."""

    name: str
    module: str
    """Path of the submodule whose output is the cut node f_l (the first element of a tuple)."""
    parameters: tuple[str, ...]
    """Names of all parameters w_l, as in ``named_parameters()``."""
    scalables: tuple[Scalable, ...]
    """What SP rescales, in forward order."""


@dataclass
class Fallback:
    """What stands in for forward mode on a network, found at its first measurement: see ``methods.py``."""

    method: Method = "exact"
    reason: str | None = None
    """Which operator makes it necessary, in words."""
    settled: bool = False
    largest_residual: float = math.inf
    """Beyond it the method is looked for anew: another operator has come up, which loses the tangent."""
    cos_error: float | None = None
    """The residual that differences have where double backward is chosen, if it is large."""


@dataclass(frozen=True)
class Network:
    """A module and its blocks in forward order; the output of the last block is the output of the module."""

    module: nn.Module
    blocks: tuple[Block, ...]
    base_stds: Mapping[str, float] = field(default_factory=dict)
    """Std of every tensor that the start of rule ``fsc`` draws, by name in the order of drawing; empty for a module of
    the user's, which starts from its own weights."""
    default_rms: Mapping[str, float] = field(default_factory=dict)
    """Root mean square of every tensor in the default initialization of what was built; empty for a module of the
    user's, whose own weights are its default."""
    fallback: Fallback = field(default_factory=Fallback, compare=False, repr=False)
    mesh: DeviceMesh | None = None
    """The processes over which the parameters are sharded, each with its part of the batch: see ``sharded.py``."""


def check_module(module: nn.Module) -> None:
    """Raises ValueError for a module that cannot be measured as it is, since it changes its own weights."""
    for path, part in module.named_modules():
        if getattr(part, "max_norm", None) is not None:
            raise ValueError(f"model: {path or 'it'} changes its own weights when called (max_norm)")
