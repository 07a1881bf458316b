"""The branch scale β of a ResNet for a wanted output angle θ_{L-1} (paper, Fig. 1c: the angle rises with β).

β is part of the architecture, so all seeds of a request share it. Each cell finds it anew, over the same seeds and
batches, which the request alone decides: all get the same number.
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch

from featurespeed.contract import BranchScale, JobRequest, ResNet, TargetAngle, group_of
from featurespeed.defaults import RECOMMENDATION_BATCHES
from featurespeed_workers.balance import Balance
from featurespeed_workers.data import Source
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.listening import CellProgress, Listener, ignore
from featurespeed_workers.measurement import measure_state
from featurespeed_workers.rules.angle_search import Unreachable, find_beta
from featurespeed_workers.rules.scaling import BlockScaling
from featurespeed_workers.starts import start

ANGLE_SEEDS = 4
"""The angle is a mean over this many of the request's seeds at most: each cell measures all of them."""
SMALLEST = 0.01
"""Smallest c = √L β that is tried: at one input the angle there is 0.008, less than the tolerance from its limit."""
SLOPE = 0.87
"""tan θ_{L-1} ≈ 0.87 c for one input and large L (our limit of infinite width, to 10 %): where the search begins."""
REMEMBERED = 16

_remembered: OrderedDict[tuple[object, ...], BranchScale] = OrderedDict()
"""Answers of this process, for the next seeds of the same request."""


def wants_angle(request: JobRequest) -> bool:
    """Whether the request leaves β to be found."""
    architecture = request.architecture
    return isinstance(architecture, ResNet) and isinstance(architecture.branch_scale, TargetAngle)


def with_beta(request: JobRequest, beta: float) -> JobRequest:
    """The same request with a branch scale that is a number."""
    assert isinstance(request.architecture, ResNet)
    return request.model_copy(update={"architecture": request.architecture.with_beta(beta)})


def find_branch_scale(
    request: JobRequest, source: Source, device: torch.device, listener: Listener = ignore
) -> BranchScale:
    """β whose output angle, averaged over seeds and batches, is the target to ± 0.02 rad.

    The angle is that of the state from which the request starts (under rule ``fsc``: after scaling), along the
    request's optimizer under balanced rates. Raises MeasurementError ``unreachable-angle``, with the angles that can be
    reached, or what a network that cannot be measured gives.
    """
    key = (request.sha256, str(device), torch.get_num_threads())
    if key not in _remembered:
        _remembered[key] = _find(request, source, device, listener)
        if len(_remembered) > REMEMBERED:
            _remembered.popitem(last=False)
    return _remembered[key]


def with_notes(scaling: BlockScaling, found: BranchScale, blocks: Sequence[str]) -> BlockScaling:
    """The scaling with β in the note of each residual block."""
    notes = dict(scaling.notes)
    for block in [name for name in blocks if group_of(name) == "hidden"]:
        own = f"branch scale β = {found.beta:g}"
        notes[block] = f"{notes[block]}; {own}" if block in notes else own
    return replace(scaling, notes=notes)


def _find(request: JobRequest, source: Source, device: torch.device, listener: Listener) -> BranchScale:
    architecture = request.architecture
    assert isinstance(architecture, ResNet)
    assert isinstance(architecture.branch_scale, TargetAngle)
    target, root = architecture.branch_scale.target_angle, math.sqrt(architecture.depth)
    seeds = request.measurement.seeds[:ANGLE_SEEDS]
    found: dict[float, tuple[float, ...]] = {}

    def angle_at(beta: float) -> float:
        fraction, message = 1 - 0.8 ** len(found), f"branch scale: the angle at β = {beta:.4g}"
        listener(CellProgress(fraction=fraction, message=message))
        found[beta] = tuple(_angle(with_beta(request, beta), seed, source, device) for seed in seeds)
        return statistics.fmean(found[beta])

    try:
        best = find_beta(angle_at, target, smallest=SMALLEST / root, first=math.tan(target) / (SLOPE * root))
    except Unreachable as error:
        raise MeasurementError("unreachable-angle", _refusal(target, error)) from None
    return BranchScale(beta=best.beta, target_angle=target, angle=best.angle, seeds=seeds, angles=found[best.beta])


def _angle(request: JobRequest, seed: int, source: Source, device: torch.device) -> float:
    """θ_{L-1} of one seed, in radians: mean over batches, each under its own balanced rates."""
    begun = start(request, seed, source, device, ignore)
    balance = Balance.requested(request, begun.setting.network)
    angles = []
    for step in range(RECOMMENDATION_BATCHES):
        found = measure_state(begun.setting, begun.scaling.parameters, begun.batch(step), balance)
        if (angle := found.layers[-2].angle) is None:
            raise MeasurementError("no-feature-motion", "the last hidden feature does not move: it has no angle")
        angles.append(angle)
    return statistics.fmean(angles)


def _refusal(target: float, error: Unreachable) -> str:
    low, high = error.low, error.high
    return (
        f"architecture.branch_scale.target_angle: {target:.4g} cannot be reached; "
        f"β from {low.beta:.3g} to {high.beta:.3g} gives angles from {low.angle:.3f} to {high.angle:.3f}"
    )
