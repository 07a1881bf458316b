"""From a specification to a network with named blocks and cut nodes. One file a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from featurespeed.contract import Architecture, ConvNet, Graph, Mlp, ResNet, Transformer
from featurespeed.contract.architecture import HuggingFace
from featurespeed_workers.architectures.convnet import convnet
from featurespeed_workers.architectures.graph import graph_network
from featurespeed_workers.architectures.huggingface import huggingface_network
from featurespeed_workers.architectures.mlp import mlp_network
from featurespeed_workers.architectures.resnet import resnet_network
from featurespeed_workers.architectures.transformer import transformer_network
from featurespeed_workers.network import Network
from featurespeed_workers.passes import rms_by_name

__all__ = ["base_initialize", "build"]

_BUILDERS: Mapping[type, Callable[[Any], Network]] = {
    ConvNet: convnet,
    Graph: graph_network,
    Mlp: mlp_network,
    ResNet: resnet_network,
    Transformer: transformer_network,
    HuggingFace: huggingface_network,
}


def build(architecture: Architecture, *, seed: int) -> Network:
    """The network of a specification: on the CPU, float32, with PyTorch's default initialization.

    Deterministic in (architecture, seed); the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: no accelerator's state is touched
        network = _builder(architecture)(architecture)
    return replace(network, default_rms=rms_by_name(network.module))


def _builder(architecture: Architecture) -> Callable[[Any], Network]:
    return next(make for family, make in _BUILDERS.items() if isinstance(architecture, family))


@torch.no_grad()
def base_initialize(network: Network, *, seed: int) -> None:
    """Set the starting point of rule ``fsc``, in place: what the forward normalisation then rescales.

    Tensors of ``network.base_stds`` (weight matrices N(0, 1/fan_in), token embeddings N(0, 1), positions) are drawn,
    biases 0, gains 1, the embedding of padding 0. Values are drawn in float32 on the CPU, hence the same on every
    device and in every precision; the global random state is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(network.module.named_parameters())
    for name, std in network.base_stds.items():
        parameters[name].copy_(torch.empty(parameters[name].shape).normal_(0, std, generator=generator))
    for name, parameter in parameters.items():
        if name not in network.base_stds:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for module in network.module.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
