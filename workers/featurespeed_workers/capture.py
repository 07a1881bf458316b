"""Features and backward passes at the cut nodes, and gradients: one forward, one backward.

f_l and b_l have the shape of the block's output, batch and position axes included; m_l is its number of elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from featurespeed_workers import sharded
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.losses import LossFunction, checked
from featurespeed_workers.network import Network
from featurespeed_workers.passes import Batch, Parameters, cut_nodes, forward, under
from featurespeed_workers.reuse import RecordedOutputs, Recording

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Capture:
    """One forward and one backward pass; lists run over the blocks in forward order."""

    loss: float
    features: list[Tensor]
    backward: list[Tensor]
    gradients: dict[str, Tensor]
    """∇L by parameter name, for the parameters that train; zero where the loss does not depend on one."""
    recording: Recording
    """Outputs of linear maps, convolutions and attention: a second pass need not compute them again."""
    precision: torch.dtype
    """The coarsest that the signal passes through: under autocast, not that of the parameters."""


def capture(network: Network, parameters: Parameters, batch: Batch, loss_function: LossFunction) -> Capture:
    """f_l, b_l and gradients at ``parameters``; those that do not require a gradient count as frozen.

    Raises MeasurementError where a feature, the loss or a gradient is not finite, naming the first layer concerned;
    ValueError for a loss that is not one real number with a gradient.
    """
    if network.mesh is not None:
        return _capture_sharded(network, network.mesh, parameters, batch, loss_function)
    inputs, targets = batch
    leaves = {name: p.detach().requires_grad_(p.requires_grad) for name, p in parameters.items()}
    trained = {name: p for name, p in leaves.items() if p.requires_grad}
    if not trained:
        raise MeasurementError("nothing-trains", "no parameter requires a gradient: nothing moves")
    features: list[Tensor] = []
    versions: list[int] = []

    def keep(_: int, output: Tensor) -> Tensor | None:
        feature = output if output.requires_grad else output.detach().requires_grad_()
        features.append(feature)
        versions.append(feature._version)
        return None if feature is output else feature

    def action(module: nn.Module) -> Capture:
        with torch.enable_grad(), cut_nodes(network, keep), RecordedOutputs() as recorded:
            loss = checked(loss_function(forward(module, inputs), targets))
        _check_features(network, features, versions, loss)
        wanted = [*features, *trained.values()]
        foreign = _passes_custom_function(loss)
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        known = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True)]
        by_parameter = dict(zip(trained, known[len(features) :], strict=True))
        _check_dense(by_parameter)
        if foreign:
            by_parameter = {name: g.clone() for name, g in by_parameter.items()}
        return Capture(
            loss=loss.item(),
            features=[f.detach() for f in features],
            backward=known[: len(features)],
            gradients=by_parameter,
            recording=recorded.recording,
            precision=max({loss.dtype, *recorded.dtypes, *(f.dtype for f in features)}, key=_coarseness),
        )

    return under(network, leaves, action)


def _capture_sharded(
    network: Network, mesh: DeviceMesh, parameters: Parameters, batch: Batch, loss_function: LossFunction
) -> Capture:
    """As :func:`capture`, by FSDP's own backward pass. All processes raise the same error, or none would return."""
    inputs, targets = batch
    if not any(p.requires_grad for p in parameters.values()):
        raise MeasurementError("nothing-trains", "no parameter requires a gradient: nothing moves")
    features: list[Tensor] = []
    versions: list[int] = []

    def keep(_: int, output: Tensor) -> Tensor:
        feature = output if output.requires_grad else output.detach().requires_grad_()
        feature.retain_grad()
        features.append(feature)
        versions.append(feature._version)
        return feature

    def action(module: nn.Module) -> Capture:
        with torch.enable_grad(), cut_nodes(network, keep), RecordedOutputs() as recorded:
            loss = checked(loss_function(forward(module, inputs), targets))
        whole = [sharded.over_ranks(f.detach(), mesh) for f in features]
        mean = sharded.summed(loss.item(), whole[-1]) / mesh.size()
        _check_features(network, features, versions, torch.tensor(mean))
        found = sharded.gradients(module, loss)
        if all(g is None for g in found.values()):
            raise MeasurementError("nothing-trains", "FSDP gives no gradient; is set_requires_gradient_sync(False) on?")
        return Capture(
            loss=mean,
            features=whole,
            backward=[sharded.over_ranks(_grad(f) / mesh.size(), mesh) for f in features],
            gradients={
                name: torch.zeros_like(p) if (g := found[name]) is None else g
                for name, p in parameters.items()
                if p.requires_grad
            },
            recording=(),
            precision=max({loss.dtype, *recorded.dtypes, *(f.dtype for f in features)}, key=_coarseness),
        )

    return under(network, parameters, action)


def _grad(feature: Tensor) -> Tensor:
    return torch.zeros_like(feature.detach()) if feature.grad is None else feature.grad


def _coarseness(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _check_features(network: Network, features: list[Tensor], versions: list[int], loss: Tensor) -> None:
    names = [block.name for block in network.blocks]
    for name, feature, version in zip(names, features, versions, strict=True):
        if feature._version != version:
            raise MeasurementError("in-place", f"the output of block {name!r} is changed in place afterwards")
    if not torch.isfinite(loss):
        for name, feature in zip(names, features, strict=True):
            if not torch.isfinite(feature).all():
                raise MeasurementError("not-finite", f"the features of block {name!r} are not finite")
        raise MeasurementError("not-finite", f"the loss is {loss.item()}, with finite features in every block")


def _passes_custom_function(loss: Tensor) -> bool:
    """Whether a gradient may be a tensor that the user keeps: gradients' memory is written to later."""
    seen: set[Any] = set()
    left: list[Any] = [loss.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            if isinstance(node, BackwardCFunction):
                return True
            seen.add(node)
            left.extend(before for before, _ in node.next_functions)
    return False


def _check_dense(gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        if gradient.layout != torch.strided:
            raise MeasurementError("sparse-gradient", f"the gradient of {name!r} is sparse; use sparse=False")
