"""Feature velocities ḟ_l = Σ_k (∂f_l/∂w_k) ẇ_k at every cut node, from one more pass.

``exact`` is forward-mode differentiation. ``finite_difference`` is ``(f(w + h ẇ) − f(w)) / h``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from featurespeed_workers.capture import Batch, Capture, Parameters, call, cut_nodes
from featurespeed_workers.linears import ReusedLinears
from featurespeed_workers.network import Network

Tangents = Parameters
"""ẇ by parameter name; a parameter without an entry does not move."""
Visit = Callable[[int, Tensor | None], None]
"""Is given the index of a block and ḟ there, ``None`` if the feature does not move."""


def exact(
    network: Network, parameters: Parameters, tangents: Tangents, batch: Batch, captured: Capture, visit: Visit
) -> None:
    """Visit ḟ_l in forward order. Raises NotImplementedError for an operator without a forward-mode rule."""

    def unpack(i: int, feature: Tensor) -> None:
        visit(i, fwad.unpack_dual(feature).tangent)  # type: ignore[no-untyped-call]

    with _forward_mode_kernels(), fwad.dual_level(), cut_nodes(network, unpack), ReusedLinears(captured.linears):
        duals = {
            name: fwad.make_dual(p.detach(), tangents[name]) if name in tangents else p.detach()  # type: ignore[no-untyped-call]
            for name, p in parameters.items()
        }
        call(network, duals, batch[0])


@contextlib.contextmanager
def _forward_mode_kernels() -> Iterator[None]:
    """Keep to kernels that have a forward-mode rule: fused attention and fused encoder layers have none."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def finite_difference(
    network: Network, parameters: Parameters, tangents: Tangents, batch: Batch, captured: Capture, visit: Visit
) -> None:
    """Visit the forward difference of f_l along ẇ, in forward order.

    The step h moves the parameters by sqrt(ε) of their own norm, where rounding and truncation are of the same order.
    """
    moved = [parameters[name] for name in tangents]
    size = math.sqrt(sum(norm(p) ** 2 for p in moved))
    speed = math.sqrt(sum(norm(t) ** 2 for t in tangents.values()))
    h = math.sqrt(torch.finfo(moved[0].dtype).eps) * (size or 1.0) / speed if speed else 1.0
    stepped = {
        name: torch.add(p.detach(), tangents[name], alpha=h) if name in tangents else p.detach()
        for name, p in parameters.items()
    }
    with torch.no_grad(), cut_nodes(network, lambda i, f: visit(i, (f - captured.features[i]) / h)):
        call(network, stepped, batch[0])


def norm(x: Tensor) -> float:
    """‖x‖_2, accumulated in at least float32."""
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.promote_types(x.dtype, torch.float32)))


def inner(x: Tensor, y: Tensor) -> float:
    """⟨x, y⟩, products in at least float32, summed in float64."""
    if x.dtype in (torch.bfloat16, torch.float16):
        x, y = x.float(), y.float()
    return float((x * y).sum(dtype=torch.float64))
