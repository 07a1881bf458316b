"""Networks of the library ``transformers``, built from plain fields with random weights; nothing is ever downloaded."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from featurespeed.contract import FieldError, SpecError
from featurespeed.contract.architecture import HuggingFace
from featurespeed_workers.architectures.huggingface_blocks import cut_of
from featurespeed_workers.architectures.layers import POSITION_STD, base_stds
from featurespeed_workers.network import Block, Network

_UNUSED = {"bos_token_id": None, "eos_token_id": None}
"""Fields about generating text: their defaults lie outside of a small vocabulary, which transformers warns of."""
_POSITIONS = (
    "wpe.weight",
    "position_embeddings",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "cls_token",
)
"""Learned vectors that are added to what is known of a token, or stand for none."""


def huggingface_network(architecture: HuggingFace) -> Network:
    """The model of ``transformers`` as a user's own would be, in training mode, with that library's initialization.

    Raises SpecError if the library is not installed.
    """
    module = _model(architecture)
    pieces = dict(zip(architecture.block_names, cut_of(architecture), strict=True))
    owners = {path: name for name, piece in pieces.items() for path in (piece.module, *piece.owns)}
    parameters: dict[str, list[str]] = {name: [] for name in pieces}
    for path, _ in module.named_parameters():
        parameters[_owner(path, owners)].append(path)
    blocks = (Block(name, p.module, tuple(parameters[name]), p.scalables) for name, p in pieces.items())
    return Network(module, tuple(blocks), _base_stds(module))


def _model(architecture: HuggingFace) -> nn.Module:
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        bound = "needs the library transformers; pip install featurespeed[huggingface]"
        raise SpecError([FieldError(field="architecture.family", value="huggingface", bound=bound)]) from None
    fields = architecture.config.model_dump()
    if architecture.attention[0]:
        # fused attention draws another mask than its unfused form, which forward-mode differentiation takes
        dropped = any(fields.get(name) for name in ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob"))
        fields["attn_implementation"] = "eager" if dropped else "sdpa"
    if architecture.signature.vocab_size is not None:
        fields |= {**_UNUSED, "use_cache": False}
    config = transformers.AutoConfig.for_model(architecture.model_type, **fields)
    module: nn.Module = _auto_class(transformers, architecture.task).from_config(config)
    _keep_precision(module)
    return module


def _keep_precision(module: nn.Module) -> None:
    """Torch's RMS norm in place of that of transformers: the same formula, which there is always in float32."""
    for path, part in list(module.named_modules()):
        if type(part).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(part.weight.shape, eps=part.variance_epsilon)
            norm.weight = part.weight
            module.set_submodule(path, norm)


def _auto_class(transformers: Any, task: str) -> Any:
    return {
        "causal_lm": transformers.AutoModelForCausalLM,
        "masked_lm": transformers.AutoModelForMaskedLM,
        "sequence_classification": transformers.AutoModelForSequenceClassification,
        "image_classification": transformers.AutoModelForImageClassification,
    }[task]


def _owner(path: str, owners: dict[str, str]) -> str:
    """The block of a parameter: that of the innermost module that a block has."""
    while path not in owners:
        path = path.rpartition(".")[0]
    return owners[path]


def _base_stds(module: nn.Module) -> dict[str, float]:
    """As for the families of our own; GPT-2's ``Conv1D`` is a linear map whose weight is stored as (in, out)."""
    stds = base_stds(module)
    for path, part in module.named_modules():
        if type(part).__name__ == "Conv1D":
            stds[f"{path}.weight"] = 1 / math.sqrt(part.weight.shape[0])
    stds |= {name: POSITION_STD for name, _ in module.named_parameters() if name.endswith(_POSITIONS)}
    return stds
