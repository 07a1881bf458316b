"""Feature velocities ḟ_l = Σ_k (∂f_l/∂w_k) ẇ_k at every cut node, by differentiation: forward mode, or twice backward.

Both raise NoRuleError where an operator does not know that kind; ``differences.py`` needs no derivative at all.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from featurespeed_workers import sharded
from featurespeed_workers.capture import Capture
from featurespeed_workers.network import Network
from featurespeed_workers.passes import Batch, Parameters, as_real, call, cut_nodes, forward, under
from featurespeed_workers.reuse import AnotherPassError, ReusedOutputs


@dataclass(frozen=True)
class Move:
    """How one parameter moves: ẇ = −η u."""

    rate: float
    direction: Tensor
    spare: bool
    """Whether nobody else needs the direction, so that it may be overwritten: fresh memory is what costs."""
    size: float | None = None
    """‖u‖_2, if it is known."""

    def times(self, factor: float) -> Tensor:
        """factor · ẇ."""
        scale = -self.rate * factor
        return self.direction.mul_(scale) if self.spare else self.direction * scale

    def stepped(self, parameter: Tensor, h: float) -> Tensor:
        """w + h ẇ, in one pass over the memory."""
        out = self.direction if self.spare and self.direction.dtype == parameter.dtype else None
        return torch.add(parameter.detach(), self.direction, alpha=-self.rate * h, out=out)


Moves = Mapping[str, Move]
"""By parameter name; a parameter without an entry does not move."""
Visit = Callable[[int, Tensor | None, float], None]
"""Is given the index i of a block, a tensor x (``None`` if the feature does not move) and a factor a: ḟ_i = a x."""


class NoRuleError(NotImplementedError):
    """An operator that cannot be differentiated in the way that was tried; the message names it if torch does."""


def exact(
    network: Network, parameters: Parameters, moves: Moves, batch: Batch, captured: Capture, visit: Visit
) -> None:
    """Visit ḟ_l in forward order, by forward-mode differentiation. Raises NoRuleError."""

    def unpack(i: int, feature: Tensor) -> None:
        visit(i, fwad.unpack_dual(feature).tangent, 1.0)  # type: ignore[no-untyped-call]

    # a model may have its inputs require a gradient, as transformers' do under checkpointing
    with (
        torch.no_grad(),
        plain_kernels(),
        fwad.dual_level(),
        cut_nodes(network, unpack),
        ReusedOutputs(captured.recording),
    ):
        duals = {
            name: fwad.make_dual(p.detach(), moves[name].times(1.0)) if name in moves else p.detach()  # type: ignore[no-untyped-call]
            for name, p in parameters.items()
        }
        try:
            call(network, duals, batch[0])
        except RuntimeError as error:
            if (why := _why_not_forward(error)) is None:
                raise
            raise NoRuleError(why) from error


def _why_not_forward(error: RuntimeError) -> str | None:
    """Why another method has to do; ``None`` for what is no matter of differentiation."""
    if isinstance(error, NotImplementedError) or "jvp" in str(error):  # custom functions in C++ raise the plain kind
        return f"{_operator(error)} has no forward-mode rule"
    if isinstance(error, AnotherPassError) or "does not require grad" in str(error):
        return f"the module cannot run in forward mode, without a graph ({str(error).splitlines()[0]})"
    return None


def double_backward(
    network: Network, parameters: Parameters, moves: Moves, batch: Batch, captured: Capture, visit: Visit
) -> None:
    """Visit ḟ_l in forward order, by two backward passes. Raises NoRuleError.

    g(v) = Σ_l (∂f_l/∂w)ᵀ v_l is linear in v, so that ∂⟨g(v), ẇ⟩/∂v_l = (∂f_l/∂w) ẇ = ḟ_l at any v: of all l at once.
    """
    if network.mesh is not None:
        raise NoRuleError(f"{sharded.REASON}, and cannot be differentiated twice")
    leaves = {name: p.detach().requires_grad_(name in moves) for name, p in parameters.items()}
    nodes: list[Tensor] = []

    def action(module: nn.Module) -> list[Tensor | None]:
        with torch.enable_grad(), plain_kernels(), cut_nodes(network, lambda _, f: nodes.append(f)):
            forward(module, batch[0])
        try:
            return _transposed(nodes, {name: leaves[name] for name in moves}, moves)
        except RuntimeError as error:  # torch has a dozen ways to say so; no memory is another reason to go on
            raise NoRuleError(f"{_operator(error)} cannot be differentiated twice") from error

    velocities = under(network, leaves, action)
    if not all(bool(torch.isfinite(x).all()) for x in velocities if x is not None):
        raise NoRuleError("the second derivative of a backward pass is not finite")
    for i, found in enumerate(velocities):
        visit(i, found, 1.0)


def _transposed(nodes: list[Tensor], moving: Parameters, moves: Moves) -> list[Tensor | None]:
    reached = [f for f in nodes if f.requires_grad]
    dummies = [torch.zeros_like(f, requires_grad=True) for f in reached]
    pulled = torch.autograd.grad(reached, list(moving.values()), dummies, create_graph=True, allow_unused=True)
    pairs = zip(pulled, moves.values(), strict=True)
    terms = [(as_real(g) * as_real(move.times(1.0))).sum() for g, move in pairs if g is not None and g.requires_grad]
    slope = torch.stack(terms).sum() if terms else None
    if slope is None:
        return [None] * len(nodes)
    _check_differentiable(slope)
    found = iter(torch.autograd.grad(slope, dummies, allow_unused=True))
    return [next(found) if f.requires_grad else None for f in nodes]


def _check_differentiable(x: Tensor) -> None:
    """Raises RuntimeError where the graph passes a function marked once differentiable: torch would go around it."""
    seen, left = set(), [x.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node.name() == "torch::autograd::Error":
                raise RuntimeError("a function marked with once_differentiable")
            left.extend(parent for parent, _ in node.next_functions)


def _operator(error: BaseException) -> str:
    """The operator that the error is about: as torch names it, or the class of the custom function that raised it."""
    named = re.search(r"forward AD with (\S+) that|derivative for '?(?:aten::)?(\w+)", str(error))
    if named:
        return f"operator {named[1] or named[2]!r}"
    trace = error.__traceback__
    while trace is not None:
        kind = trace.tb_frame.f_locals.get("cls")
        if isinstance(kind, type) and issubclass(kind, torch.autograd.Function):
            return f"custom function {kind.__name__!r}"
        trace = trace.tb_next
    return "an operator"


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
