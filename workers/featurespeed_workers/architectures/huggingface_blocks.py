"""Where the model types of ``transformers`` are cut, and what SP rescales in each block; paths are the models' own.

The cut nodes are those that :func:`featurespeed_workers.blocks` finds in the same model by tracing it, but known
without building it. Residual branches are brought to rms 1/√n, n the number of branches of the whole network, so that
all together add a mean square of 1 to the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featurespeed.contract.architecture import HuggingFace
from featurespeed.contract.architecture.huggingface import Bert, ConvNext, Gpt2, Llama, Qwen2, ResidualNet, Vit
from featurespeed_workers.network import Scalable


@dataclass(frozen=True)
class Piece:
    """A block: the module whose output is its cut node, what it owns besides, and its scalables."""

    module: str
    owns: tuple[str, ...] = ()
    scalables: tuple[Scalable, ...] = ()


def cut_of(architecture: HuggingFace) -> list[Piece]:
    """The blocks in forward order."""
    return _CUTS[type(architecture)](architecture)


def _piece(module: str, *owns: str, weight: str | None = None) -> Piece:
    """A block of one linear map, whose output is brought to rms 1; ``weight`` if it is not the module itself."""
    path = weight or module
    return Piece(module, owns, (Scalable(path, (f"{path}.weight",)),))


def _embedded(module: str, *tensors: str) -> Piece:
    """An input of embeddings and positions, which have one factor."""
    owns = tuple(name.removesuffix(".weight") for name in tensors)
    return Piece(module, owns, (Scalable(module, tensors),))


def _branches(a: HuggingFace, module: str, *last: str) -> Piece:
    """A residual block, with the last matrix of each of its branches."""
    target = 1 / math.sqrt(a.hidden_branches)
    paths = [f"{module}.{name}" for name in last]
    return Piece(module, (), tuple(Scalable(path, (f"{path}.weight",), target) for path in paths))


def _gpt2(a: Gpt2) -> list[Piece]:
    return [
        _embedded("transformer.drop", "transformer.wte.weight", "transformer.wpe.weight"),
        *(_branches(a, f"transformer.h.{i}", "attn.c_proj", "mlp.c_proj") for i in range(a.config.n_layer)),
        _piece("lm_head", "transformer.ln_f"),
    ]


def _rotary(a: Llama | Qwen2) -> list[Piece]:
    layers = range(a.config.num_hidden_layers)
    return [
        _piece("model.embed_tokens"),
        *(_branches(a, f"model.layers.{i}", "self_attn.o_proj", "mlp.down_proj") for i in layers),
        _piece("lm_head", "model.norm"),
    ]


def _bert(a: Bert) -> list[Piece]:
    """Post-norm: every cut node is behind a norm layer, also that of the embeddings, whose scale is immaterial."""
    names = ("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight")
    layers = range(a.config.num_hidden_layers)
    stream = [
        _embedded("bert.embeddings", *(f"bert.embeddings.{name}" for name in names)),
        *(_branches(a, f"bert.encoder.layer.{i}", "attention.output.dense", "output.dense") for i in layers),
    ]
    if a.task == "masked_lm":
        return [
            *stream,
            _piece("cls.predictions.transform.dense"),
            _piece("cls.predictions.decoder", "cls.predictions"),
        ]
    return [*stream, _piece("bert.pooler", weight="bert.pooler.dense"), _piece("classifier")]


def _vit(a: Vit) -> list[Piece]:
    names = ("cls_token", "position_embeddings", "patch_embeddings.projection.weight")
    layers = range(a.config.num_hidden_layers)
    return [
        _embedded("vit.embeddings", *(f"vit.embeddings.{name}" for name in names)),
        *(_branches(a, f"vit.layers.{i}", "attention.o_proj", "mlp.fc2") for i in layers),
        _piece("classifier", "vit.layernorm"),
    ]


def _convnext(a: ConvNext) -> list[Piece]:
    """Of a branch it is the layer scale that is rescaled, where there is one: that is what it is for."""
    target, tensor = 1 / math.sqrt(a.hidden_branches), "pwconv2.weight"
    if a.config.layer_scale_init_value:
        tensor = "layer_scale_parameter"
    pieces = [_piece("convnext.embeddings", weight="convnext.embeddings.patch_embeddings")]
    for i, depth in enumerate(a.config.depths):
        stage = f"convnext.encoder.stages.{i}"
        if i:
            pieces.append(_piece(f"{stage}.downsampling_layer.1", f"{stage}.downsampling_layer.0"))
        for layer in (f"{stage}.layers.{j}" for j in range(depth)):
            pieces.append(Piece(layer, (), (Scalable(f"{layer}.drop_path", (f"{layer}.{tensor}",), target),)))
    return [*pieces, _piece("classifier", "convnext.layernorm")]


def _resnet(a: ResidualNet) -> list[Piece]:
    """Every convolution is followed by batch norm, so that it is gains which have a scale: the stem's, the last's."""
    target, last = 1 / math.sqrt(a.hidden_branches), 1 if a.config.layer_type == "basic" else 2
    stem = "resnet.embedder"
    pieces = [Piece(stem, (), (Scalable(stem, (f"{stem}.embedder.normalization.weight",)),))]
    for i, depth in enumerate(a.config.depths):
        for layer in (f"resnet.encoder.stages.{i}.layers.{j}" for j in range(depth)):
            gain = f"{layer}.layer.{last}.normalization.weight"
            pieces.append(Piece(layer, (), (Scalable(f"{layer}.layer", (gain,), target),)))
    return [*pieces, _piece("classifier", weight="classifier.1")]


_CUTS: Mapping[type, Callable[[Any], list[Piece]]] = {
    Gpt2: _gpt2,
    Llama: _rotary,
    Qwen2: _rotary,
    Bert: _bert,
    Vit: _vit,
    ConvNext: _convnext,
    ResidualNet: _resnet,
}
