"""Feature velocities ḟ_l = Σ_k (∂f_l/∂w_k) ẇ_k at every cut node, from one more pass.

``exact`` is forward-mode differentiation. ``finite_difference`` is ``(f(w + h ẇ) − f(w)) / h``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from featurespeed_workers.capture import Capture
from featurespeed_workers.network import Network
from featurespeed_workers.passes import Batch, Parameters, call, cut_nodes, norm
from featurespeed_workers.reuse import ReusedOutputs


@dataclass(frozen=True)
class Move:
    """How one parameter moves: ẇ = −η u."""

    rate: float
    direction: Tensor
    spare: bool
    """Whether nobody else needs the direction, so that it may be overwritten: fresh memory is what costs."""

    def times(self, factor: float) -> Tensor:
        """factor · ẇ."""
        scale = -self.rate * factor
        return self.direction.mul_(scale) if self.spare else self.direction * scale


Moves = Mapping[str, Move]
"""By parameter name; a parameter without an entry does not move."""
Visit = Callable[[int, Tensor | None, float], None]
"""Is given the index i of a block, a tensor x (``None`` if the feature does not move) and a factor a: ḟ_i = a x."""


def exact(
    network: Network, parameters: Parameters, moves: Moves, batch: Batch, captured: Capture, visit: Visit
) -> None:
    """Visit ḟ_l in forward order. Raises NotImplementedError for an operator without a forward-mode rule."""

    def unpack(i: int, feature: Tensor) -> None:
        visit(i, fwad.unpack_dual(feature).tangent, 1.0)  # type: ignore[no-untyped-call]

    with plain_kernels(), fwad.dual_level(), cut_nodes(network, unpack), ReusedOutputs(captured.recording):
        duals = {
            name: fwad.make_dual(p.detach(), moves[name].times(1.0)) if name in moves else p.detach()  # type: ignore[no-untyped-call]
            for name, p in parameters.items()
        }
        call(network, duals, batch[0])


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Keep to kernels with a forward-mode rule and second derivatives: fused attention and encoder layers lack them."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def finite_difference(
    network: Network, parameters: Parameters, moves: Moves, batch: Batch, captured: Capture, visit: Visit
) -> None:
    """Visit the forward difference of f_l along ẇ, in forward order.

    The step h moves the parameters by sqrt(ε) of their own norm, where rounding and truncation are of the same order.
    """
    moved = [parameters[name] for name in moves]
    size = math.hypot(*(norm(p) for p in moved))
    speed = math.hypot(*(move.rate * norm(move.direction) for move in moves.values()))
    h = math.sqrt(torch.finfo(moved[0].dtype).eps) * (size or 1.0) / speed if speed else 1.0
    stepped = {
        name: moves[name].times(h).add_(p.detach()) if name in moves else p.detach() for name, p in parameters.items()
    }
    with torch.no_grad(), cut_nodes(network, lambda i, f: visit(i, f - captured.features[i], 1 / h)):
        call(network, stepped, batch[0])
