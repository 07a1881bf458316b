"""SP, step 1 of FSC (paper, Sec 4.2): rescale block by block so that every feature has its target rms.

What responds to a rescaling, and how, is measured: a module behind a norm layer does not respond at all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.network import Network, Scalable
from featurespeed_workers.passes import Batch, Inputs, Parameters, call, norm, same_randomness

IMMATERIAL = 0.1
"""Below this elasticity (d log rms / d log scale) a scale is immaterial; a linear block has 1, a norm layer 0."""
TOLERANCE = 0.005
ROUNDS = 12
LARGEST_STEP = 1e3
"""Most by which one round may change a scale."""


@dataclass(frozen=True)
class Forwarded:
    """Parameters after SP, and the scalables that were left as they were, with their block's name."""

    parameters: dict[str, Tensor]
    immaterial: tuple[tuple[str, Scalable], ...]
    """Their scale does not show in their output, as behind a norm layer."""
    unreached: tuple[tuple[str, Scalable], ...]
    """No scale brings their output to its target: a residual block without ``branches``, saturation, a bias."""


def scale_features(
    network: Network, parameters: Parameters, batches: Sequence[Batch], scalables: Sequence[tuple[str, Scalable]]
) -> Forwarded:
    """Rescale ``scalables`` (with their block's name, in forward order) to their target rms over the batches.

    Returns new parameters; the given ones stay. Raises MeasurementError for a feature that is zero or not finite, and
    for a module that is not called.
    """
    inputs = _together(batches)
    scaled = dict(parameters)
    now = _output_rms(network, scaled, inputs, scalables)
    elasticity = _elasticity(network, scaled, inputs, scalables, now)
    material = [i for i, e in enumerate(elasticity) if e >= IMMATERIAL]
    for _ in range(ROUNDS):
        for i in material:
            step = (scalables[i][1].target_rms / now[i]) ** (1 / elasticity[i])
            multiply(scaled, scalables[i][1], min(max(step, 1 / LARGEST_STEP), LARGEST_STEP))
        now = _output_rms(network, scaled, inputs, scalables)
        off = {i for i in material if abs(now[i] / scalables[i][1].target_rms - 1) > TOLERANCE}
        if not off:
            break
    after = _elasticity(network, scaled, inputs, scalables, now)
    unreached = [i for i in material if i in off or after[i] < IMMATERIAL]
    for i in unreached:
        scaled.update({name: parameters[name] for name in scalables[i][1].parameters})
    immaterial = [i for i in range(len(scalables)) if i not in material]
    return Forwarded(scaled, tuple(scalables[i] for i in immaterial), tuple(scalables[i] for i in unreached))


def _together(batches: Sequence[Batch]) -> Inputs:
    """The inputs of all batches as those of one; what is no tensor among keyword arguments is the first batch's."""
    first, *_ = inputs = [x for x, _ in batches]
    if not isinstance(first, Mapping):
        return _joined(inputs)
    return {name: _joined([x[name] for x in inputs]) if isinstance(own, Tensor) else own for name, own in first.items()}


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(f"batches: inputs must have one shape beyond the batch axis, got {sorted(shapes)}")
    return torch.cat(list(tensors))


def _elasticity(
    network: Network,
    parameters: Parameters,
    inputs: Inputs,
    scalables: Sequence[tuple[str, Scalable]],
    now: Sequence[float],
) -> list[float]:
    """d log rms / d log scale of every scalable, by doubling all at once; ``now`` is the rms before."""
    doubled = dict(parameters)
    for _, scalable in scalables:
        multiply(doubled, scalable, 2.0)
    twice = _output_rms(network, doubled, inputs, scalables)
    return [math.log2(b / a) for a, b in zip(now, twice, strict=True)]


def multiply(parameters: dict[str, Tensor], scalable: Scalable, factor: float) -> None:
    """Multiply the tensors of ``scalable`` by ``factor``, as new tensors in the same dictionary."""
    for name in scalable.parameters:
        parameters[name] = (parameters[name].detach() * factor).requires_grad_(parameters[name].requires_grad)


def _output_rms(
    network: Network, parameters: Parameters, inputs: Inputs, scalables: Sequence[tuple[str, Scalable]]
) -> list[float]:
    """Rms of every scalable's output, in a pass in which each output is brought to its target on the spot.

    So every module sees the inputs that it will see once all are scaled, and shows its own error alone: the errors of
    a deep chain would else multiply up, and correcting all at once would diverge.
    """
    found = [0.0] * len(scalables)

    def hook(i: int, name: str, target: float) -> Callable[[Any, Any, Any], Any]:
        def visit(module: Any, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            rms = norm(first) / math.sqrt(first.numel())
            if rms == 0 or not math.isfinite(rms):
                raise MeasurementError("not-finite" if rms else "zero-feature", _complaint(name, rms))
            found[i] = rms
            scaled = first * (target / rms)
            return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

        return visit

    with contextlib.ExitStack() as stack:
        for i, (name, scalable) in enumerate(scalables):
            module = network.module.get_submodule(scalable.module)
            stack.callback(module.register_forward_hook(hook(i, name, scalable.target_rms)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(same_randomness(next(iter(parameters.values())).device))
        call(network, parameters, inputs)
    for (block, scalable), rms in zip(scalables, found, strict=True):
        if rms == 0:
            raise MeasurementError("not-called", f"module {scalable.module!r} of block {block!r} is not called")
    return found


def _complaint(block: str, rms: float) -> str:
    return f"the features of block {block!r} are {'not finite' if rms else 'zero for every input'}"
