"""One measurement: all layers of a network at one state, on one batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor

from featurespeed.contract.request import Method
from featurespeed_workers import differences, formula, velocity
from featurespeed_workers.balance import Balance, Slope, rate_of
from featurespeed_workers.capture import Capture, capture
from featurespeed_workers.directions import State, UpdateRule
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.losses import LossFunction
from featurespeed_workers.methods import by_first_that_works
from featurespeed_workers.network import Network
from featurespeed_workers.passes import Batch, Parameters, inner, norm, same_randomness
from featurespeed_workers.sharded import is_sharded, like, local

RuleOf = Callable[[str], UpdateRule]
StateOf = Callable[[str], State]


@dataclass(frozen=True)
class LayerValues:
    """What one seed gives for one cut node; the fields are those of the contract's LayerMeasurement."""

    name: str
    size: int
    angle: float | None
    cos: float | None
    feature_rms: float
    feature_speed: float
    backward_rms: float
    sensitivity: float | None
    contribution: float
    gradient_norm: float


@dataclass(frozen=True)
class StateMeasurement:
    """All layers at one state; ``rates`` are the block rates η_l behind ẇ, ``unit_contributions`` ⟨∇_l, u_l⟩.

    ``parameter_rates``: rates of their own of single parameters, by name (granularity ``tensor``); they win.
    """

    loss: float
    loss_decay: float
    formula_residual: float
    layers: tuple[LayerValues, ...]
    rates: tuple[float, ...]
    unit_contributions: tuple[float, ...]
    method: Method
    parameter_rates: dict[str, float] = field(default_factory=dict)
    precision: str | None = None
    """The coarsest dtype that the signal passes through, as autocast decides it."""
    cos_error: float | None = None
    """How far differences are estimated to be off in some cos θ."""
    reason: str | None = None
    """Why the method is not the one that was asked for."""

    @property
    def all_rates(self) -> dict[str, float]:
        """η by name: of every block, and of parameters that have their own."""
        blocks = {layer.name: rate for layer, rate in zip(self.layers, self.rates, strict=True)}
        return {**blocks, **self.parameter_rates}

    @property
    def relative_sensitivity(self) -> float:
        """τ at the last hidden feature f_{L-1}: relative speed per unit of loss decay."""
        last_hidden = self.layers[-2]
        return formula.relative_sensitivity(last_hidden.feature_speed, last_hidden.feature_rms, self.loss_decay)


@dataclass(frozen=True)
class Setting:
    """What a measurement needs beside parameters and batch. ``rule`` and ``state`` are looked up by parameter name."""

    network: Network
    loss_function: LossFunction
    rule: RuleOf
    state: StateOf = field(default=lambda name: {})
    method: Method = "exact"

    def sustained(self) -> Self:
        """The same along the update that a fresh optimizer settles to: see :meth:`UpdateRule.sustained`."""
        rule = self.rule
        return replace(self, rule=lambda name: rule(name).sustained(), state=lambda name: {})

    @property
    def main_optimizer(self) -> str:
        """The name of the optimizer that κ is for: ``muon`` where it has the hidden matrices."""
        names = {self.rule(name).name for name, p in self.network.module.named_parameters() if p.requires_grad}
        return "muon" if "muon" in names else min(names, default="sgd")


Rates = Mapping[str, float] | Literal["balanced"] | Balance
"""η by block name, and by parameter name where one has its own; or such that contributions are equal (Eq. 8) or as a
Balance says, from what is measured here."""


def measure_state(setting: Setting, parameters: Parameters, batch: Batch, rates: Rates) -> StateMeasurement:
    """Measure every layer at ``parameters``, along ẇ_l = −η_l u_l with u the optimizer's direction at its state.

    Nothing that belongs to the user changes: module, gradients, optimizer state, global random state.
    Where an operator has no forward-mode rule, ``exact`` gives way to what ``methods.py`` finds; ``method`` and
    ``reason`` in the result say so. Raises MeasurementError, ``not-differentiable`` for ``double_backward`` that fails.
    """
    return measure_slopes(setting, parameters, batch, rates)[0]


def measure_slopes(
    setting: Setting, parameters: Parameters, batch: Batch, rates: Rates
) -> tuple[StateMeasurement, dict[str, Slope]]:
    """As :func:`measure_state`, with what balanced rates are made of: the Slope of every parameter that trains."""
    found, slopes = by_first_that_works(
        setting.network.fallback,
        setting.method,
        lambda method: _measure(replace(setting, method=method), parameters, batch, rates),
    )
    if not math.isfinite(found.formula_residual):
        raise MeasurementError("not-finite", "the velocities of the features are lost to rounding; try dtype float64")
    return found, slopes


def _measure(
    setting: Setting, parameters: Parameters, batch: Batch, rates: Rates
) -> tuple[StateMeasurement, dict[str, Slope]]:
    device = next(iter(parameters.values())).device
    with same_randomness(device) as rewind:
        captured = capture(setting.network, parameters, batch, setting.loss_function)
        shared = _shared_storage([*captured.features, *captured.backward, *captured.gradients.values()])
        updates = {
            name: _update(setting, name, parameters[name], captured, shared) for name in list(captured.gradients)
        }
        slopes = {name: update.slope for name, update in updates.items()}
        by_name = _rates(setting.network, slopes, rates)
        etas = {n: rate_of(by_name, b.name, n) for b in setting.network.blocks for n in b.parameters if n in updates}
        unit = _speed_unit(updates, etas)
        moves = {
            name: velocity.Move(
                eta / unit,
                updates[name].direction,
                spare=_storage(updates[name].direction) not in shared,
                size=updates[name].direction_norm,
            )
            for name, eta in etas.items()
            if eta != 0
        }
        rewind()
        found = _found(setting, parameters, batch, captured, updates, moves, by_name, unit, rewind)
    return found, slopes


@dataclass(frozen=True)
class _Update:
    """Direction u of one parameter, ‖∇‖_2, and its slope, ⟨∇, u⟩ within."""

    direction: Tensor
    direction_norm: float | None
    """‖u‖_2, where it is known at no cost."""
    gradient_norm: float
    slope: Slope


def _update(setting: Setting, name: str, parameter: Tensor, captured: Capture, shared: set[int]) -> _Update:
    """Takes the gradient out of ``captured``: its memory serves for this direction, or the next parameter's.

    ``shared``: memory that others need too.
    """
    gradient = captured.gradients.pop(name)
    rule, state, size = setting.rule(name), setting.state(name), norm(gradient)
    epsilon = torch.finfo(gradient.dtype).eps
    slope = partial(Slope, gradient_rms=formula.rms(size, max(1, gradient.numel())), epsilon=epsilon)
    if rule.starts_in_place(gradient, state) and 1e-10 < size < 1e10 and _storage(gradient) not in shared:
        contribution, length = rule.start_in_place(gradient)
        return _Update(gradient, length, size, slope(contribution))
    direction = _direction(rule, parameter.detach(), gradient, state)
    if direction is gradient:
        return _Update(direction, size, size, slope(size**2))
    return _Update(direction, None, size, slope(inner(gradient, direction)))


def _direction(rule: UpdateRule, parameter: Tensor, gradient: Tensor, state: State) -> Tensor:
    if not is_sharded(gradient):
        return rule.direction(parameter, gradient, state)
    if rule.name == "muon":
        raise ValueError("optimizer: muon's step is not one of shards; measure the model before it is sharded")
    parts = {key: local(value) if isinstance(value, Tensor) else value for key, value in state.items()}
    return like(gradient, rule.direction(local(parameter), local(gradient), parts))


def _speed_unit(updates: Mapping[str, _Update], etas: Mapping[str, float]) -> float:
    """Of the order of the largest ‖ẇ‖: where gradients vanish, balanced rates and ẇ itself leave the range of float32.

    By Cauchy and Schwarz ‖u‖ ≥ |⟨∇, u⟩| / ‖∇‖, which is an equality for gradient descent.
    """
    speeds = (
        eta * abs(updates[name].slope.contribution) / updates[name].gradient_norm
        for name, eta in etas.items()
        if updates[name].gradient_norm > 0
    )
    return max(speeds, default=0.0) or 1.0


def _storage(tensor: Tensor) -> int:
    return local(tensor).untyped_storage().data_ptr()


def _shared_storage(tensors: Sequence[Tensor]) -> set[int]:
    """The memory that several of the tensors use, or of which a tensor is a view: autograd returns such gradients."""
    tensors = [local(t) for t in tensors]
    uses = Counter(_storage(t) for t in tensors)
    views = {_storage(t) for t in tensors if t.untyped_storage().nbytes() != t.numel() * t.element_size()}
    return views | {storage for storage, count in uses.items() if count > 1}


def _rates(network: Network, slopes: Mapping[str, Slope], rates: Rates) -> dict[str, float]:
    """η by block name and, where parameters have their own, by parameter name; 0 for a frozen block."""
    if not isinstance(rates, Mapping):
        return (Balance.even(network) if rates == "balanced" else rates).rates(slopes)
    found = {name: rates[name] for name in slopes if name in rates}
    for block in network.blocks:
        found[block.name] = rates[block.name] if any(name in slopes for name in block.parameters) else 0.0
    return found


def _found(
    setting: Setting,
    parameters: Parameters,
    batch: Batch,
    captured: Capture,
    updates: Mapping[str, _Update],
    moves: velocity.Moves,
    rates: Mapping[str, float],
    unit: float,
    rewind: Callable[[], None],
) -> StateMeasurement:
    """The measurement by the setting's method, for moves in units of ``unit``; ḟ itself is not kept."""

    def by(along: Callable[[velocity.Visit], None]) -> StateMeasurement:
        speeds: dict[int, tuple[float, float]] = {}

        def visit(i: int, x: Tensor | None, factor: float) -> None:
            scale = unit * factor
            speeds[i] = (0.0, 0.0) if x is None else (scale * norm(x), scale * inner(captured.backward[i], x))

        along(visit)
        return _combine(setting, captured, updates, speeds, rates)

    given = (setting.network, parameters, moves, batch, captured)
    if setting.method == "exact":
        return by(lambda visit: velocity.exact(*given, visit))
    if setting.method == "double_backward":
        return by(lambda visit: velocity.double_backward(*given, visit))
    if setting.method == "finite_difference":
        found = by(lambda visit: differences.finite_difference(*given, visit))
        return replace(found, cos_error=found.formula_residual)
    wide = by(lambda visit: differences.central_difference(*given, visit, rewind, widening=2.0))
    rewind()
    found = by(lambda visit: differences.central_difference(*given, visit, rewind))
    return replace(found, cos_error=_difference_in_cos(found, wide))


def _difference_in_cos(a: StateMeasurement, b: StateMeasurement) -> float:
    """What another step changes (all of the error), or what the formula shows (that along b), whichever is more."""
    pairs = ((x.cos, y.cos) for x, y in zip(a.layers, b.layers, strict=True))
    apart = (abs(x - y) for x, y in pairs if x is not None and y is not None)
    return max(a.formula_residual, *apart, 0.0)


def _combine(
    setting: Setting,
    captured: Capture,
    updates: Mapping[str, _Update],
    speeds: Mapping[int, tuple[float, float]],
    rates: Mapping[str, float],
) -> StateMeasurement:
    decay, worst, layers, units = 0.0, 0.0, [], []
    for i, block in enumerate(setting.network.blocks):
        own = [name for name in block.parameters if name in updates]
        contribution = math.fsum(rate_of(rates, block.name, n) * updates[n].slope.contribution for n in own)
        decay += contribution
        units.append(math.fsum(updates[n].slope.contribution for n in own))
        speed, product = speeds[i]
        size, backward = captured.features[i].numel(), norm(captured.backward[i])
        if not math.isfinite(speed + backward + decay):
            raise MeasurementError("not-finite", f"the backward pass or velocity of block {block.name!r} is not finite")
        cos = formula.cosine(product, backward, speed)
        worst = max(worst, formula.residual(product, decay, backward, speed))
        layers.append(
            LayerValues(
                name=block.name,
                size=size,
                angle=formula.angle(cos),
                cos=cos,
                feature_rms=formula.rms(norm(captured.features[i]), size),
                feature_speed=formula.rms(speed, size),
                backward_rms=formula.rms(backward, size),
                sensitivity=formula.sensitivity(speed, size, decay),
                contribution=contribution,
                gradient_norm=math.hypot(*(updates[n].gradient_norm for n in own)),
            )
        )
    etas = tuple(rates[block.name] for block in setting.network.blocks)
    own_rates = {name: rates[name] for name in updates if name in rates}
    return StateMeasurement(
        captured.loss,
        decay,
        worst,
        tuple(layers),
        etas,
        tuple(units),
        setting.method,
        own_rates,
        str(captured.precision).removeprefix("torch."),
    )
