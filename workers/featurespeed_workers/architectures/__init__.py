"""From a specification to a network with named blocks and cut nodes. One file a family."""

from __future__ import annotations

import math

import torch
from torch import nn

from featurespeed.contract import Architecture, Mlp, ResNet
from featurespeed_workers.architectures.layers import Chain
from featurespeed_workers.architectures.mlp import build_mlp, mlp_scalables
from featurespeed_workers.architectures.resnet import build_resnet, resnet_scalables
from featurespeed_workers.architectures.transformer import build_transformer, transformer_scalables
from featurespeed_workers.network import Block, Network, Scalable

__all__ = ["base_initialize", "base_stds", "build"]

POSITION_STD = 0.1
"""Std of learned positions before the joint rescaling, with token embeddings at 1: positions tell tokens apart from the
first step on, yet take 1 % of the mean square, so that the stream starts out saying which token it is (GPT-2 keeps
the same order, 0.01 against 0.02)."""


def build(architecture: Architecture, *, seed: int) -> Network:
    """The network of a specification: on the CPU, float32, with PyTorch's default initialization.

    Deterministic in (architecture, seed); the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: no accelerator's state is touched
        module = _module(architecture)
    return Network(module, tuple(_block(architecture, name, child) for name, child in module.named_children()))


def _module(architecture: Architecture) -> Chain:
    if isinstance(architecture, Mlp):
        return build_mlp(architecture)
    if isinstance(architecture, ResNet):
        return build_resnet(architecture)
    return build_transformer(architecture)


def _block(architecture: Architecture, name: str, module: nn.Module) -> Block:
    parameters = tuple(f"{name}.{parameter}" for parameter, _ in module.named_parameters())
    return Block(name=name, module=name, parameters=parameters, scalables=_scalables(architecture, name))


def _scalables(architecture: Architecture, block: str) -> tuple[Scalable, ...]:
    if isinstance(architecture, Mlp):
        return mlp_scalables(architecture, block)
    if isinstance(architecture, ResNet):
        return resnet_scalables(architecture, block)
    return transformer_scalables(architecture, block)


def base_stds(module: nn.Module) -> dict[str, float]:
    """Std of every tensor that :func:`base_initialize` draws, by parameter name, in the order of drawing."""
    stds = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(part, nn.Linear):
            stds[f"{prefix}weight"] = 1 / math.sqrt(part.in_features)
        elif isinstance(part, nn.Embedding):
            stds[f"{prefix}weight"] = 1.0
        if isinstance(getattr(part, "position", None), nn.Parameter):
            stds[f"{prefix}position"] = POSITION_STD
    return stds


@torch.no_grad()
def base_initialize(network: Network, architecture: Architecture, *, seed: int) -> None:
    """Set the starting point of rule ``fsc``, in place: what the forward normalisation then rescales.

    Weight matrices N(0, 1/fan_in), token embeddings N(0, 1), positions N(0, POSITION_STD²), biases 0, gains 1.
    Values are drawn in float32 on the CPU, hence the same on every device and in every precision; the global random
    state is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(network.module.named_parameters())
    for name, std in base_stds(network.module).items():
        parameters[name].copy_(torch.empty(parameters[name].shape).normal_(0, std, generator=generator))
    for module in network.module.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
