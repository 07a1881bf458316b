"""The start of a run: a request's network under one seed, its scales and rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featurespeed.contract import JobRequest, is_selected, lookup
from featurespeed.defaults import RECOMMENDATION_BATCHES
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.data import Source
from featurespeed_workers.directions import rules_of
from featurespeed_workers.listening import CellProgress, Listener, ignore
from featurespeed_workers.losses import loss_function
from featurespeed_workers.measurement import Setting
from featurespeed_workers.network import Network
from featurespeed_workers.passes import Batch
from featurespeed_workers.rules.closed_form import closed_form
from featurespeed_workers.rules.fsc import fsc
from featurespeed_workers.rules.mup import mup_initialize
from featurespeed_workers.rules.scaling import BlockScaling
from featurespeed_workers.rules.table import table1_of


@dataclass(frozen=True)
class Start:
    """A network at its initial parameters, what is needed to measure it there, and its batches by step."""

    setting: Setting
    scaling: BlockScaling
    batch: Callable[[int], Batch]


def start(request: JobRequest, seed: int, source: Source, device: torch.device, listener: Listener) -> Start:
    """The start of ``request`` under one seed; raises MeasurementError for a network that cannot be scaled."""
    setting = unscaled(request, seed, device)

    def batch(step: int) -> Batch:
        return source.batch(seed, step)

    scaling = _scaled(request, setting, batch, listener)
    parameters = _explicit(request, setting.network, scaling.parameters, seed)
    return Start(setting, replace(scaling, parameters=parameters), batch)


def default_start(request: JobRequest, seed: int, source: Source, device: torch.device) -> Start:
    """The start of the same request under PyTorch's initialization and learning rate."""
    scaling = request.scaling.model_copy(update={"rule": "pytorch_default"})
    return start(request.model_copy(update={"scaling": scaling}), seed, source, device, ignore)


def unscaled(request: JobRequest, seed: int, device: torch.device) -> Setting:
    """The network from which scaling starts, and what is needed to measure it."""
    network = _built(request, seed, getattr(torch, request.measurement.dtype), device)
    rule = rules_of(request.optimizer, network)
    return Setting(network, loss_function(request.loss), rule, method=request.measurement.method)


def _built(request: JobRequest, seed: int, dtype: torch.dtype, device: torch.device) -> Network:
    """The network at the rule's starting point; frozen blocks require no gradient."""
    network = build(request.architecture, seed=seed)
    if request.rule == "fsc":
        base_initialize(network, seed=seed)
    elif request.rule == "mup":
        mup_initialize(request, network, seed=seed)
    network.module.to(device=device, dtype=dtype)
    parameters: dict[str, Tensor] = dict(network.module.named_parameters())
    for block in network.blocks:
        for name in block.parameters:
            parameters[name].requires_grad_(not is_selected(block.name, request.frozen))
    if request.rule in ("ntk", "mf_mup"):
        _draw(network, parameters, table1_of(request).std, seed)
    return network


def _scaled(request: JobRequest, setting: Setting, batch: Callable[[int], Batch], listener: Listener) -> BlockScaling:
    """Scales and rates by the request's rule."""
    network = setting.network
    parameters: dict[str, Tensor] = dict(network.module.named_parameters())
    if request.rule == "fsc":
        return fsc(
            setting,
            parameters,
            [batch(step) for step in range(RECOMMENDATION_BATCHES)],
            relative_sensitivity=request.scaling.relative_sensitivity,
            feature_step=request.feature_step,
            largest_decay=request.largest_decay,
            contributions=request.contributions,
            granularity=request.scaling.granularity,
            zero_output=request.scaling.zero_output,
            tell=lambda fraction, message: listener(CellProgress(fraction=0.8 * fraction, message=message)),
        )
    return closed_form(request, network, parameters)


def _explicit(request: JobRequest, network: Network, parameters: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Parameters with the request's own ``initialization`` on top."""
    parameters = dict(parameters)
    if request.initialization is not None:
        _draw(network, parameters, request.initialization, seed)
    return parameters


def _draw(network: Network, parameters: dict[str, Tensor], stds: dict[str, float], seed: int) -> None:
    """Draw the weight matrices of the blocks that ``stds`` names from N(0, std²), in place; on the CPU, by seed."""
    generator = torch.Generator().manual_seed(seed)
    for block in network.blocks:
        std = lookup(block.name, stds)
        for name in block.parameters:
            noise = torch.randn(parameters[name].shape, generator=generator)  # drawn in any case: blocks independent
            if std is not None and parameters[name].ndim > 1:
                parameters[name].data.copy_(noise * std)
