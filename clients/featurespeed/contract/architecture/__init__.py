"""Architectures: which network is asked about. One file a family.

Every family is a chain of ``depth`` blocks (weight layers, as the paper counts; a residual block is one block) whose
outputs are the cut nodes f_1 … f_L. Blocks are named ``input``, ``hidden_2`` … ``hidden_{L-1}``, ``output``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from featurespeed.contract.architecture.chain import Activation, Image, Norm, Signature
from featurespeed.contract.architecture.convnet import ConvNet, ImageNorm
from featurespeed.contract.architecture.graph import Graph
from featurespeed.contract.architecture.huggingface import HuggingFace, HuggingFaceModel
from featurespeed.contract.architecture.mlp import Mlp
from featurespeed.contract.architecture.resnet import DepthPower, ResNet, TargetAngle
from featurespeed.contract.architecture.transformer import Patches, Transformer

__all__ = [
    "Activation",
    "Architecture",
    "ConvNet",
    "DepthPower",
    "Graph",
    "HuggingFace",
    "HuggingFaceModel",
    "Image",
    "ImageNorm",
    "Mlp",
    "Norm",
    "Patches",
    "ResNet",
    "Signature",
    "TargetAngle",
    "Transformer",
]

Architecture = Annotated[Mlp | ResNet | Transformer | ConvNet | Graph | HuggingFaceModel, Field(discriminator="family")]
