"""Features and backward passes at the cut nodes, and gradients: one forward, one backward.

f_l and b_l have the shape of the block's output, batch and position axes included; m_l is its number of elements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.network import Network
from featurespeed_workers.reuse import RecordedOutputs

LossFunction = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]
"""Inputs (the module's one argument, batch axis first) and targets."""
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Capture:
    """One forward and one backward pass; lists run over the blocks in forward order."""

    loss: float
    features: list[Tensor]
    backward: list[Tensor]
    gradients: dict[str, Tensor]
    """∇L by parameter name, for the parameters that train; zero where the loss does not depend on one."""
    outputs: list[Tensor]
    """Outputs of linear maps and attention in the order of the calls: a second pass need not compute them again."""


def call(network: Network, parameters: Parameters, inputs: Any) -> Any:
    """The module's output under other parameters; its own, and its buffers, stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
    return functional_call(network.module, {**parameters, **buffers}, (inputs,), tie_weights=True)


def capture(network: Network, parameters: Parameters, batch: Batch, loss_function: LossFunction) -> Capture:
    """f_l, b_l and gradients at ``parameters``; those that do not require a gradient count as frozen.

    Raises MeasurementError where a feature, the loss or a gradient is not finite, naming the first layer concerned.
    """
    inputs, targets = batch
    leaves = {name: p.detach().requires_grad_(p.requires_grad) for name, p in parameters.items()}
    trained = {name: p for name, p in leaves.items() if p.requires_grad}
    features: list[Tensor] = []
    versions: list[int] = []

    def keep(_: int, output: Tensor) -> None:
        features.append(output if output.requires_grad else output.requires_grad_())
        versions.append(output._version)

    with torch.enable_grad(), cut_nodes(network, keep), RecordedOutputs() as recorded:
        loss = loss_function(call(network, leaves, inputs), targets)
    _check_features(network, features, versions, loss)
    wanted = [*features, *trained.values()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    known = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True)]
    backward, by_parameter = known[: len(features)], dict(zip(trained, known[len(features) :], strict=True))
    return Capture(loss.item(), [f.detach() for f in features], backward, by_parameter, recorded.outputs)


@contextlib.contextmanager
def cut_nodes(network: Network, visit: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``visit(i, f)`` with the output of block i whenever it is computed within the context."""
    handles = []
    try:
        for i, block in enumerate(network.blocks):
            module = network.module.get_submodule(block.module)
            handles.append(module.register_forward_hook(_hook(i, visit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(index: int, visit: Callable[[int, Tensor], None]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        visit(index, output[0] if isinstance(output, tuple) else output)

    return hook


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[Callable[[], None]]:
    """Give back the global random state at the end; the function that it yields rewinds to the beginning (dropout)."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        cpu = torch.get_rng_state()
        accelerator = torch.cuda.get_rng_state(device) if devices else None

        def rewind() -> None:
            torch.set_rng_state(cpu)
            if accelerator is not None:
                torch.cuda.set_rng_state(accelerator, device)

        yield rewind


def _check_features(network: Network, features: list[Tensor], versions: list[int], loss: Tensor) -> None:
    names = [block.name for block in network.blocks]
    if len(features) != len(names):
        raise MeasurementError(
            "not-a-chain", f"{len(names)} blocks gave {len(features)} features; each must run once in a forward pass"
        )
    for name, feature, version in zip(names, features, versions, strict=True):
        if feature._version != version:
            raise MeasurementError("in-place", f"the output of block {name!r} is changed in place afterwards")
    if not torch.isfinite(loss):
        for name, feature in zip(names, features, strict=True):
            if not torch.isfinite(feature).all():
                raise MeasurementError("not-finite", f"the features of block {name!r} are not finite")
        raise MeasurementError("not-finite", f"the loss is {loss.item()}, with finite features in every block")
