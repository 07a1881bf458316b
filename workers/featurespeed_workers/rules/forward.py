"""SP, step 1 of FSC (paper, Sec 4.2): rescale block by block so that every feature has its target rms.

What responds to a rescaling, and how, is measured: a module behind a norm layer does not respond at all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featurespeed_workers.capture import Batch, Parameters, call, same_randomness
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.network import Network, Scalable
from featurespeed_workers.velocity import norm

IMMATERIAL = 0.1
"""Below this elasticity (d log rms / d log scale) a scale is immaterial; a linear block has 1, a norm layer 0."""
TOLERANCE = 0.005
ROUNDS = 12


@dataclass(frozen=True)
class Forwarded:
    """Parameters after SP, and the blocks whose scale is immaterial."""

    parameters: dict[str, Tensor]
    immaterial: frozenset[str]


def scale_features(
    network: Network, parameters: Parameters, batches: Sequence[Batch], scalables: Sequence[tuple[str, Scalable]]
) -> Forwarded:
    """Rescale ``scalables`` (with their block's name, in forward order) to their target rms over the batches.

    Returns new parameters; the given ones stay. Raises MeasurementError for a feature that is zero or not finite.
    """
    scaled = dict(parameters)
    inputs = torch.cat([inputs for inputs, _ in batches])
    targets = [scalable.target_rms for _, scalable in scalables]
    now = _output_rms(network, scaled, inputs, scalables)
    doubled = dict(scaled)
    for _, scalable in scalables:
        multiply(doubled, scalable, 2.0)
    twice = _output_rms(network, doubled, inputs, scalables)
    elasticity = [math.log2(b / a) for a, b in zip(now, twice, strict=True)]
    material = [i for i, e in enumerate(elasticity) if e >= IMMATERIAL]
    for _ in range(ROUNDS):
        for i in material:
            multiply(scaled, scalables[i][1], (targets[i] / now[i]) ** (1 / elasticity[i]))
        now = _output_rms(network, scaled, inputs, scalables)
        if all(abs(now[i] / targets[i] - 1) <= TOLERANCE for i in material):
            break
    return Forwarded(scaled, frozenset(name for i, (name, _) in enumerate(scalables) if i not in set(material)))


def multiply(parameters: dict[str, Tensor], scalable: Scalable, factor: float) -> None:
    """Multiply the tensors of ``scalable`` by ``factor``, as new tensors in the same dictionary."""
    for name in scalable.parameters:
        parameters[name] = (parameters[name].detach() * factor).requires_grad_(parameters[name].requires_grad)


def _output_rms(
    network: Network, parameters: Parameters, inputs: Tensor, scalables: Sequence[tuple[str, Scalable]]
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
        stack.enter_context(same_randomness(inputs.device))
        call(network, parameters, inputs)
    return found


def _complaint(block: str, rms: float) -> str:
    return f"the features of block {block!r} are {'not finite' if rms else 'zero for every input'}"
