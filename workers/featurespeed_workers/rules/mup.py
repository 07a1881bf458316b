"""µP, the maximal update parametrization (Yang, Hu et al., Tensor Programs V, arXiv 2203.03466, Table 3).

It says how scales and rates go with width, by tensor. With m̃ = width / base width, and n the base width:

==========  =======================================  ============  ==========  ===========
kind        tensors                                  std           rate, SGD   rate, Adam
==========  =======================================  ============  ==========  ===========
``vector``  input weights, embeddings, biases,       as at base    m̃           1
            gains
``matrix``  hidden weights                           1/√fan_in     1           1/m̃
``output``  output weights                           √n / fan_in   1/m̃         1/m̃
``fixed``   bias of the output                       0             1           1
==========  =======================================  ============  ==========  ===========

The constants are those of the standard parametrization at the base width: weights N(0, 1/fan_in), embeddings and
positions as for rule ``fsc``, one rate for all. Hidden matrices behind a ReLU have He's √2, as in the paper's Table 1:
without it the signal of a deep MLP would vanish. The column of Adam serves all updates that are normalized entry by
entry. Multipliers are 1: of the equivalent forms (Tables 3, 8, 9) this is the one without them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from featurespeed.contract import JobRequest, Mlp, ResNet, Transformer, group_of
from featurespeed.defaults import BASE_WIDTH
from featurespeed_workers.architectures import base_initialize
from featurespeed_workers.network import Network

Widened = Mlp | ResNet | Transformer
"""The families that µP is known for here: those with one width."""
Kind = Literal["vector", "matrix", "output", "fixed"]


def kinds_of(network: Network) -> dict[str, Kind]:
    """What µP takes each parameter of a specification's network for, by parameter name."""
    dimensions = {name: p.ndim for name, p in network.module.named_parameters()}
    return {name: _kind(block.name, name, dimensions[name]) for block in network.blocks for name in block.parameters}


def _kind(block: str, name: str, dimensions: int) -> Kind:
    group = group_of(block)
    if group == "output" and name == f"{block}.bias":
        return "fixed"
    if group == "input" or dimensions < 2:
        return "vector"
    return "matrix" if group == "hidden" else "output"


def mup_stds(request: JobRequest, network: Network) -> dict[str, float]:
    """Std of every tensor that is drawn, by parameter name."""
    architecture = _widened(request)
    kinds, base = kinds_of(network), request.scaling.base_width or BASE_WIDTH
    stds = dict(network.base_stds)
    for name, std in stds.items():
        if kinds[name] == "output":
            stds[name] = std * math.sqrt(base / architecture.width)
        elif kinds[name] == "matrix" and _behind_relu(architecture, name):
            stds[name] = std * math.sqrt(2)
    return stds


def _widened(request: JobRequest) -> Widened:
    assert isinstance(request.architecture, Widened)  # the contract refuses the rule for others
    return request.architecture


def _behind_relu(architecture: Widened, matrix: str) -> bool:
    """Whether a hidden matrix multiplies activations, and these are ReLU's."""
    active = matrix.endswith(".mlp.project.weight") if isinstance(architecture, Transformer) else True
    return active and architecture.activation == "relu"


@torch.no_grad()
def mup_initialize(request: JobRequest, network: Network, *, seed: int) -> None:
    """Draw every parameter, in place: the start of rule ``fsc``, at µP's scales."""
    base_initialize(network, seed=seed)
    parameters, base = dict(network.module.named_parameters()), network.base_stds
    for name, std in mup_stds(request, network).items():
        parameters[name].mul_(std / base[name])


def mup_rates(request: JobRequest, network: Network) -> dict[str, float]:
    """Factor on the base learning rate, by block name for the block's matrices, and by name for all its parameters."""
    wider = _widened(request).width / (request.scaling.base_width or BASE_WIDTH)
    if request.optimizer.name == "sgd":
        factors = {"vector": wider, "matrix": 1.0, "output": 1 / wider, "fixed": 1.0}
    else:
        factors = {"vector": 1.0, "matrix": 1 / wider, "output": 1 / wider, "fixed": 1.0}
    of_group = {"input": factors["vector"], "hidden": factors["matrix"], "output": factors["output"]}
    by_block = {block.name: of_group[group_of(block.name)] for block in network.blocks}
    return by_block | {name: factors[kind] for name, kind in kinds_of(network).items()}
