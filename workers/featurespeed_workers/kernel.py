"""The kernel view (paper, Def 3.1, Thm 3.2): what cos θ_v would be for a b_v that knows nothing of the kernel.

K_v = Σ_{l≤v} η_l (∂f_v/∂w_l)(∂f_v/∂w_l)ᵀ acts on the space of f_v, batch and positions included (m_v coordinates);
ḟ_v = −K_v b_v for gradient descent. With moments M_p = mean(λ^p) of its eigenvalues, cos θ_v → M_1/√M_2 for a
Gaussian b_v independent of K_v as m_v → ∞.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featurespeed_workers import velocity
from featurespeed_workers.balance import rate_of
from featurespeed_workers.capture import Capture, capture
from featurespeed_workers.measurement import Setting
from featurespeed_workers.passes import Batch, Parameters, cut_nodes, norm, same_randomness, under


@dataclass(frozen=True)
class KernelCos:
    """M_1/√M_2 of one layer, and the standard error that a finite number of probes leaves."""

    cos: float
    standard_error: float


Kernels = tuple[KernelCos | None, ...]
"""By layer; ``None`` where the kernel is zero."""


class _ReachedError(Exception):
    """The layer that was asked for has been seen: later ones need not be computed."""


def kernel_cosines(
    setting: Setting,
    parameters: Parameters,
    batch: Batch,
    rates: Mapping[str, float],
    *,
    probes: int,
    seed: int,
    tell: Callable[[float], None] = lambda fraction: None,
) -> Kernels:
    """M_1/√M_2 of K_v for every layer v, at rates η by block or parameter, by ``probes`` ≥ 2 vectors ξ ~ N(0, I).

    K_v ξ is a backward pass of ξ from f_v, times the rates, then a forward-mode pass: M_1 = E ξᵀK_vξ / m_v and
    M_2 = E ‖K_vξ‖² / m_v, without forming K_v. Costs about one training step a probe and layer. ``None`` where K_v is
    zero (no block up to v trains). Probes depend on ``seed`` alone; ``tell`` is given the part that is done.
    Raises NotImplementedError for an operator without a forward-mode rule.
    """
    given = {name: rate_of(rates, b.name, name) for b in setting.network.blocks for name in b.parameters}
    largest = max(map(abs, given.values())) or 1.0  # the cosine knows no unit of time; float32 does
    etas = {name: rate / largest for name, rate in given.items() if rate}
    leaves = {name: p.detach().requires_grad_(name in etas and p.requires_grad) for name, p in parameters.items()}
    device = next(iter(parameters.values())).device
    generator = torch.Generator().manual_seed(seed)
    nodes: list[Tensor] = []
    with same_randomness(device) as rewind:
        captured = capture(setting.network, parameters, batch, setting.loss_function)
        rewind()

        def kernel(layer: int) -> Callable[[Tensor], Tensor]:
            def apply(probe: Tensor) -> Tensor:
                rewind()
                return _tangent(setting, parameters, batch, captured, layer, _pulled(nodes[layer], leaves, etas, probe))

            return apply

        def action(module: nn.Module) -> Kernels:
            with (
                torch.enable_grad(),
                velocity.plain_kernels(),
                cut_nodes(setting.network, lambda _, f: nodes.append(f)),
            ):
                module(batch[0].clone())
            found = []
            for layer, node in enumerate(nodes):
                tell(layer / len(nodes))
                found.append(_estimated(node, probes, generator, kernel(layer)))
            return tuple(found)

        return under(setting.network, leaves, action)


def _estimated(
    node: Tensor, probes: int, generator: torch.Generator, apply: Callable[[Tensor], Tensor]
) -> KernelCos | None:
    """The estimate at one layer; ``apply`` is K_v."""
    if not node.requires_grad:
        return None
    first, second = [], []
    for _ in range(probes):
        probe = torch.randn(node.shape, generator=generator).to(node)
        image = apply(probe)
        size = norm(image)
        first.append(float((probe.double() * image.double()).sum()) / node.numel())
        second.append(size**2 / node.numel())
    return moments_cosine(first, second)


def moments_cosine(first: Sequence[float], second: Sequence[float]) -> KernelCos | None:
    """M_1/√M_2 from estimates of both, a pair a probe; error and removal of the bias 1/probes by the jackknife."""
    n, total1, total2 = len(first), math.fsum(first), math.fsum(second)
    if total2 == 0:
        return None
    whole = total1 / n / math.sqrt(total2 / n)
    left_out = [(total1 - a) / (n - 1) / math.sqrt((total2 - b) / (n - 1)) for a, b in zip(first, second, strict=True)]
    middle = math.fsum(left_out) / n
    error = math.sqrt((n - 1) / n * math.fsum((x - middle) ** 2 for x in left_out))
    return KernelCos(whole + (n - 1) * (whole - middle), error)


def _pulled(node: Tensor, leaves: Parameters, etas: dict[str, float], probe: Tensor) -> dict[str, velocity.Move]:
    """η_l (∂f_v/∂w_l)ᵀ ξ by parameter name, as a move of the parameters."""
    names = [name for name, p in leaves.items() if p.requires_grad]
    wanted = [leaves[name] for name in names]
    gradients = torch.autograd.grad(node, wanted, probe, retain_graph=True, allow_unused=True)
    pairs = zip(names, gradients, strict=True)
    return {name: velocity.Move(-etas[name], g, spare=False) for name, g in pairs if g is not None}


def _tangent(
    setting: Setting,
    parameters: Parameters,
    batch: Batch,
    captured: Capture,
    layer: int,
    moves: velocity.Moves,
) -> Tensor:
    """How f_v changes when the parameters move."""
    found: list[Tensor] = []

    def visit(i: int, x: Tensor | None, factor: float) -> None:
        if i == layer:
            found.append(torch.zeros_like(captured.features[i]) if x is None else x * factor)
            raise _ReachedError

    with contextlib.suppress(_ReachedError):
        velocity.exact(setting.network, parameters, moves, batch, captured, visit)
    return found[0]
