"""Feature velocities from differences of features: no derivative of the forward pass is needed, and none is exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from featurespeed_workers.capture import Capture
from featurespeed_workers.network import Network
from featurespeed_workers.passes import Batch, Parameters, call, cut_nodes, norm
from featurespeed_workers.sharded import like
from featurespeed_workers.velocity import Moves, Visit


def finite_difference(
    network: Network, parameters: Parameters, moves: Moves, batch: Batch, captured: Capture, visit: Visit
) -> None:
    """Visit (f(w + h ẇ) − f(w)) / h in forward order, from one pass.

    h moves the parameters by √ε of their own norm, where rounding (ε/h) and truncation (h) are of the same order.
    """
    h = _unit_step(parameters, moves) * math.sqrt(torch.finfo(captured.precision).eps)
    stepped = {name: moves[name].stepped(p, h) if name in moves else p.detach() for name, p in parameters.items()}
    at = captured.features
    with torch.no_grad(), cut_nodes(network, lambda i, f: visit(i, like(at[i], f) - at[i], 1 / h)):
        call(network, stepped, batch[0])


def central_difference(
    network: Network,
    parameters: Parameters,
    moves: Moves,
    batch: Batch,
    captured: Capture,
    visit: Visit,
    rewind: Callable[[], None],
    *,
    widening: float = 1.0,
) -> None:
    """Visit (f(w + h ẇ) − f(w − h ẇ)) / 2h in forward order, from two passes that ``rewind`` gives the same dropout.

    h moves the parameters by ∛ε / 10 of their own norm, ``widening`` times. Rounding (ε/h) and truncation (h²) are of
    the same order at ∛ε of the length over which a feature curves, which in a network is shorter than the weights.
    """
    h = widening * _unit_step(parameters, moves) * torch.finfo(captured.precision).eps ** (1 / 3) / 10
    ahead: list[Tensor] = []
    with torch.no_grad():
        with cut_nodes(network, lambda _, f: ahead.append(f)):
            call(network, _stepped(parameters, moves, h), batch[0])
        rewind()
        with cut_nodes(network, lambda i, f: visit(i, like(captured.features[i], ahead[i] - f), 1 / (2 * h))):
            call(network, _stepped(parameters, moves, -h), batch[0])


def _stepped(parameters: Parameters, moves: Moves, h: float) -> dict[str, Tensor]:
    """w + h ẇ; the directions are left for another step."""
    return {
        name: torch.add(p.detach(), moves[name].direction, alpha=-h * moves[name].rate) if name in moves else p.detach()
        for name, p in parameters.items()
    }


def _unit_step(parameters: Parameters, moves: Moves) -> float:
    """The h that would move the parameters by their own norm, which of a large tensor is taken from a sample."""
    size = math.hypot(*(_rough_norm(parameters[name]) for name in moves))
    speeds = (move.rate * (norm(move.direction) if move.size is None else move.size) for move in moves.values())
    speed = math.hypot(*speeds)
    return (size or 1.0) / speed if speed else 1.0


SAMPLE = 2**16
"""Numbers of a tensor that tell its norm well enough for the size of a step."""


def _rough_norm(x: Tensor) -> float:
    every = x.numel() // SAMPLE | 1  # odd, so as not to meet the same columns of a matrix again and again
    if every < 2 or not x.is_contiguous():
        return norm(x)
    sample = x.detach().view(-1)[::every]
    return norm(sample) * math.sqrt(x.numel() / sample.numel())
