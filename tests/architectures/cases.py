"""One table of small architectures: every family with every option that changes the module."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from featurespeed.contract import Architecture, ConvNet, DepthPower, Image, Mlp, Patches, ResNet, Transformer

NORMS: tuple[Any, ...] = ("none", "layernorm", "rmsnorm")
ACTIVATIONS: tuple[Any, ...] = ("relu", "gelu", "silu", "tanh", "identity")
IMAGE = Patches(height=4, width=6, channels=2, patch=2)


def mlp(**options: Any) -> Mlp:
    return Mlp(family="mlp", **{"input_dim": 5, "width": 7, "depth": 4, "output_dim": 3, **options})


def resnet(**options: Any) -> ResNet:
    return ResNet(family="resnet", **{"input_dim": 5, "width": 7, "depth": 4, "output_dim": 3, **options})


def language_model(**options: Any) -> Transformer:
    sizes = {"layers": 2, "width": 12, "heads": 3, "vocab_size": 11, "context_length": 6}
    return Transformer(family="transformer", **{**sizes, **options})


def vision_transformer(**options: Any) -> Transformer:
    sizes = {"layers": 2, "width": 12, "heads": 3, "image": IMAGE, "output_dim": 4}
    return Transformer(family="transformer", **{**sizes, **options})


def convnet(**options: Any) -> ConvNet:
    sizes = {"image": Image(height=5, width=6, channels=2), "width": 4, "layers": 2, "output_dim": 3}
    return ConvNet(family="convnet", **{**sizes, **options})


FAMILIES = (mlp, resnet, language_model, vision_transformer)
IMAGE_NORMS: tuple[dict[str, Any], ...] = ({}, {"norm": "batchnorm"}, {"norm": "groupnorm", "groups": 2})
CASES: list[Architecture] = [
    *(convnet(**norm, stages=stages, bias=stages == 2) for norm, stages in product(IMAGE_NORMS, (1, 2))),
    convnet(activation="tanh", shortcut="identity", branch_scale=0.3),
    convnet(kernel=1, branch_scale=1.0),
    convnet(kernel=5, layers=6, stages=3, branch_scale=DepthPower(coefficient=0.5, depth_exponent=-1.0)),
    *(family(norm=norm, bias=bias) for family, norm, bias in product(FAMILIES, NORMS, (False, True))),
    *(family(activation=activation) for family, activation in product(FAMILIES, ACTIVATIONS)),
    mlp(depth=2),
    resnet(shortcut="identity", branch_scale=0.3, norm="layernorm"),
    resnet(branch_scale=1.0),
    language_model(causal=False),
    language_model(output_dim=4),
    language_model(mlp_ratio=1.5, layers=1),
    vision_transformer(causal=True),
]


def case_id(architecture: Architecture) -> str:
    options = architecture.model_dump(exclude_defaults=True)
    return "-".join(str(v).replace(" ", "") for v in options.values())


def example_inputs(architecture: Architecture, batch: int = 3) -> Tensor:
    """Random inputs in float64, or tokens."""
    generator = torch.Generator().manual_seed(1)
    takes = architecture.signature
    if takes.vocab_size is not None:
        return torch.randint(takes.vocab_size, (batch, *takes.inputs), generator=generator)
    return torch.randn(batch, *takes.inputs, generator=generator, dtype=torch.float64)
