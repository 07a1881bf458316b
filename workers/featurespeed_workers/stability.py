"""Stability along training (paper, Sec 6): how fast backward passes and gradients change, and Prop 6.1.

b_l and f_l have the shape of the block's output; derivatives are along ẇ, with the batch fixed. d∇_l/dt = (∇²L ẇ)_l.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from featurespeed_workers import formula, sharded
from featurespeed_workers.balance import rate_of
from featurespeed_workers.capture import Capture, capture
from featurespeed_workers.measurement import Setting, StateMeasurement
from featurespeed_workers.network import Network
from featurespeed_workers.passes import (
    Batch,
    Parameters,
    as_real,
    cut_nodes,
    forward,
    inner,
    norm,
    same_randomness,
    under,
)
from featurespeed_workers.velocity import plain_kernels


@dataclass(frozen=True)
class LayerStability:
    """Relative speeds at one layer, each per unit (nat) of loss decay; ``None`` where undefined.

    ``relative_feature_speed`` ‖ḟ_l‖/‖f_l‖ (FS), ``relative_backward_speed`` ‖ḃ_l‖/‖b_l‖ (BS),
    ``relative_gradient_speed`` ‖d∇_l/dt‖/‖∇_l‖ (S; a frozen block has none). ``backward_angle`` is θ̃_l between f_l and
    −ḃ_l, radians, where f_l → f_L is 1-homogeneous.
    """

    name: str
    relative_feature_speed: float | None
    relative_backward_speed: float | None
    relative_gradient_speed: float | None
    backward_angle: float | None


@dataclass(frozen=True)
class Stability:
    """All layers at one state. ``backward_residual`` is the self-check of Prop 6.1: ``None`` unless homogeneous."""

    layers: tuple[LayerStability, ...]
    backward_residual: float | None


def stability(
    setting: Setting, parameters: Parameters, batch: Batch, measured: StateMeasurement, *, examples: int | None = None
) -> Stability | None:
    """Relative speeds of b_l and ∇_l along the ẇ of ``measured``, a measurement of this very state and batch.

    One Hessian-vector product by a double backward pass. Memory grows with the batch, unfused attention included:
    ``examples`` at a time are differentiated, where examples do not see each other (no batch norm, no dropout).
    ``None`` if the loss does not decay. Raises RuntimeError for an operator without a second derivative.
    """
    if setting.network.mesh is not None:
        raise RuntimeError(f"{sharded.REASON}, and cannot be differentiated twice")
    if not measured.loss_decay > 0:
        return None
    device = next(iter(parameters.values())).device
    with same_randomness(device) as rewind:
        captured = replace(capture(setting.network, parameters, batch, setting.loss_function), recording=())
        velocity, unit = _velocity(setting, parameters, captured, measured.all_rates)
        changes = _Changes(captured)
        for start, part, weight in _parts(batch, examples):
            rewind()
            changes.add(*_second_derivatives(setting, parameters, part, velocity, weight), start)
    return _combine(setting.network, captured, changes, measured, unit / measured.loss_decay)


def _velocity(
    setting: Setting, parameters: Parameters, captured: Capture, rates: Mapping[str, float]
) -> tuple[dict[str, Tensor], float]:
    """ẇ by parameter name, in units of the largest ‖ẇ‖ of one (which may be beyond float32), and that unit."""
    found, unit = {}, 0.0
    for block in setting.network.blocks:
        for name in block.parameters:
            rate = rate_of(rates, block.name, name)
            if rate and name in captured.gradients:
                gradient = captured.gradients[name]
                direction = setting.rule(name).direction(parameters[name].detach(), gradient, setting.state(name))
                found[name] = (rate, direction)
                unit = max(unit, abs(rate) * norm(direction))
    unit = unit or 1.0
    return {name: direction * (-rate / unit) for name, (rate, direction) in found.items()}, unit


def _parts(batch: Batch, examples: int | None) -> list[tuple[int, Batch, float]]:
    """The batch in parts: the first example's number, the part, and its weight in the loss, a mean over examples."""
    if examples is None:
        return [(0, batch, 1.0)]
    inputs, targets = batch
    found = []
    for i in range(0, len(inputs), examples):
        part = inputs[i : i + examples]
        found.append((i, (part, targets[i : i + examples]), len(part) / len(inputs)))
    return found


def _second_derivatives(
    setting: Setting, parameters: Parameters, batch: Batch, velocity: Mapping[str, Tensor], weight: float
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """ḃ_l by block, and d∇/dt by parameter, of this part of a batch, ``weight`` times.

    Of L̇ = ⟨∇L, ẇ⟩ as a function of w, the gradient is ∇²L ẇ. Shift a cut node to f_l + δ: then ∂L̇/∂δ at 0 is the
    derivative along ẇ of ∂L/∂δ = b_l, for second derivatives commute. So one backward pass through L̇ gives all.
    """
    network, (inputs, targets) = setting.network, batch
    leaves = {name: p.detach().requires_grad_(p.requires_grad) for name, p in parameters.items()}
    trained = {name: p for name, p in leaves.items() if p.requires_grad}
    nodes: list[Tensor] = []

    def keep(_: int, output: Tensor) -> Tensor:
        # a node of its own: what made the output may have kept it for its backward pass, and δ comes after that
        nodes.append(output.view_as(output) if output.requires_grad else output.detach().requires_grad_())
        return nodes[-1]

    def action(module: nn.Module) -> None:
        with torch.enable_grad(), plain_kernels():
            with cut_nodes(network, keep):  # not when checkpointing runs a part again
                loss = setting.loss_function(forward(module, inputs), targets)
            moving = [trained[name] for name in velocity]
            gradients = torch.autograd.grad(loss, moving, create_graph=True, allow_unused=True)
            pairs = zip(gradients, velocity.values(), strict=True)
            slope = sum(((as_real(g) * as_real(v)).sum() for g, v in pairs if g is not None), torch.zeros_like(loss))
            for node in nodes:
                node.retain_grad()
            if slope.requires_grad:  # else the loss is linear in all that moves
                # to all leaves there are: asked for some of them only, torch would pass by a function that is marked
                # as once differentiable, instead of refusing it
                torch.autograd.backward(slope)

    under(network, leaves, action)
    backward, change = [_change(x, weight) for x in nodes], {n: _change(p, weight) for n, p in trained.items()}
    return backward, change


def _change(x: Tensor, weight: float) -> Tensor:
    if x.grad is None:
        return torch.zeros_like(x, requires_grad=False)
    return x.grad if weight == 1 else x.grad.mul_(weight)


class _Changes:
    """‖ḃ_l‖, ⟨f_l, ḃ_l⟩ and d∇/dt, summed over the parts of a batch."""

    def __init__(self, captured: Capture) -> None:
        self._features = captured.features
        self.backward = [0.0] * len(captured.features)
        self.products = [0.0] * len(captured.features)
        self.gradients: dict[str, Tensor] = {}

    def add(self, backward: Sequence[Tensor], gradients: Mapping[str, Tensor], start: int) -> None:
        """One part, whose first example has the number ``start``."""
        for i, change in enumerate(backward):
            feature = self._features[i]
            if len(change) != len(feature):
                feature = feature[start : start + len(change)]
            self.backward[i] = math.hypot(self.backward[i], norm(change))
            self.products[i] += inner(feature, change)
        for name, change in gradients.items():
            self.gradients[name] = self.gradients[name].add_(change) if name in self.gradients else change


def _combine(
    network: Network, captured: Capture, changes: _Changes, measured: StateMeasurement, scale: float
) -> Stability:
    """``scale`` turns the changes into those per unit of loss decay."""
    homogeneous, residual = _homogeneity(captured, changes, measured, scale)
    layers = []
    for i, (block, layer) in enumerate(zip(network.blocks, measured.layers, strict=True)):
        own = [changes.gradients[name] for name in block.parameters if name in changes.gradients]
        cos = formula.cosine(changes.products[i], norm(captured.features[i]), changes.backward[i])
        layers.append(
            LayerStability(
                name=block.name,
                relative_feature_speed=_ratio(layer.feature_speed / measured.loss_decay, layer.feature_rms),
                relative_backward_speed=_ratio(changes.backward[i] * scale, norm(captured.backward[i])),
                relative_gradient_speed=_ratio(math.hypot(*map(norm, own)) * scale, layer.gradient_norm)
                if own
                else None,
                backward_angle=formula.angle(cos) if homogeneous else None,
            )
        )
    return Stability(tuple(layers), residual if homogeneous else None)


def _ratio(change: float, size: float) -> float | None:
    return change / size if size > 0 and math.isfinite(change) else None


TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5}
"""To this an identity of homogeneous functions must hold to be taken for true (in less precision none is)."""


def _homogeneity(captured: Capture, changes: _Changes, measured: StateMeasurement, scale: float) -> tuple[bool, float]:
    """Whether all f_v → f_L are 1-homogeneous here (Euler: ⟨b_v, f_v⟩ = ⟨b_L, f_L⟩), and the residual of Prop 6.1.

    Prop 6.1 is Euler's identity differentiated: −⟨ḃ_v, f_v⟩ = −f_Lᵀ ∇²loss ḟ_L + Σ_{l>v} C_l, with ∇²loss ḟ_L = ḃ_L.
    A function may satisfy the first by chance (biases that are still zero) and not the second: both are asked for.
    """
    euler = [inner(b, f) for b, f in zip(captured.backward, captured.features, strict=True)]
    sizes = [norm(b) * norm(f) for b, f in zip(captured.backward, captured.features, strict=True)]
    tolerance = TOLERANCES.get(captured.features[0].dtype, 0.0)
    holds = all(abs(e - euler[-1]) <= tolerance * size for e, size in zip(euler, sizes, strict=True))
    shares = [layer.contribution / measured.loss_decay for layer in measured.layers]
    worst = 0.0
    for v, done in enumerate(accumulate(shares)):
        left, right = -changes.products[v] * scale, -changes.products[-1] * scale + 1.0 - done
        size = changes.backward[v] * scale * norm(captured.features[v])
        worst = max(worst, formula.residual(-left, right, size, 1.0))
    return holds and worst <= tolerance, worst
