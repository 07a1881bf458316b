"""Scalings of the ReLU MLP from closed forms: Table 1 of the paper (Prop 5.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from featurespeed.contract import Gaussian, JobRequest, Mlp, Sphere


@dataclass(frozen=True)
class GroupScaling:
    """Std of the weights and learning rate of the groups ``input``, ``hidden`` and ``output``."""

    std: dict[str, float]
    rate: dict[str, float]


def table1(rule: Literal["ntk", "mf_mup"], *, depth: int, width: int, inputs: float, outputs: float) -> GroupScaling:
    """Table 1 with every free constant 1, for gradient descent.

    ``inputs`` is d = E‖x‖² and ``outputs`` is k (1 in the sparse setting, cross-entropy).
    """
    L, m, d, k = depth, width, inputs, outputs
    if rule == "ntk":
        output_std = math.sqrt(k / m)
        rate = {"input": 1 / (L * d), "hidden": 1 / (L * m), "output": k / (L * m)}
    else:
        output_std = math.sqrt(k) / m
        rate = {"input": m / (L**1.5 * d), "hidden": L**-1.5, "output": k / (L**1.5 * m)}
    return GroupScaling({"input": 1 / math.sqrt(d), "hidden": math.sqrt(2 / m), "output": output_std}, rate)


def table1_of(request: JobRequest) -> GroupScaling:
    """Table 1 for the network, data and loss of a request (family ``mlp``; rule ``ntk`` or ``mf_mup``)."""
    architecture, data = request.architecture, request.data
    if not isinstance(architecture, Mlp) or request.rule not in ("ntk", "mf_mup"):
        raise ValueError(f"scaling.rule: Table 1 has no row {request.rule!r} for family {architecture.family!r}")
    norm = data.input_norm if isinstance(data, Gaussian | Sphere) else None
    return table1(
        request.rule,
        depth=architecture.depth,
        width=architecture.width,
        inputs=norm**2 if norm is not None else float(architecture.input_dim),
        outputs=1.0 if request.loss == "cross_entropy" else float(architecture.output_dim),
    )
