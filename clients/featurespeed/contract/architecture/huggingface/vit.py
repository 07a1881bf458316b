"""The vision transformer: a pre-norm encoder of patches and one more position, which the head reads."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from featurespeed.contract.architecture.huggingface.base import (
    Channels,
    Epsilon,
    Heads,
    Hidden,
    HiddenAct,
    Images,
    Labelled,
    Layers,
    Pixels,
    Probability,
    Std,
    attention_kept,
    check_divides,
)
from featurespeed.contract.base import Width


class VitConfig(Labelled):
    """Fields of ``transformers.ViTConfig``, with its defaults; images and patches are squares."""

    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    intermediate_size: Hidden = 3072
    hidden_act: HiddenAct = "gelu"
    hidden_dropout_prob: Probability = 0.0
    attention_probs_dropout_prob: Probability = 0.0
    initializer_range: Std = 0.02
    layer_norm_eps: Epsilon = 1e-12
    image_size: Pixels = 224
    patch_size: Pixels = 16
    num_channels: Channels = 3
    qkv_bias: bool = True

    @property
    def positions(self) -> int:
        """Patches, and the one that the head reads."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        check_divides("patch_size", self.patch_size, "image_size", self.image_size)
        return self


class Vit(Images):
    """``transformers.ViTForImageClassification``: embeddings, residual blocks, norm and head."""

    model_type: Literal["vit"]
    config: VitConfig = VitConfig()
    task: Literal["image_classification"] = "image_classification"

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly."""
        c = self.config
        m, h = c.hidden_size, c.intermediate_size
        embeddings = (c.num_channels * c.patch_size**2 + 1) * m + (c.positions + 1) * m
        attention = 4 * m * m + m + 3 * m * c.qkv_bias
        feed_forward = (m + 1) * h + (h + 1) * m
        return embeddings + c.num_hidden_layers * (attention + feed_forward + 4 * m) + 2 * m + (m + 1) * c.num_labels

    @property
    def activations(self) -> int:
        """As of a transformer."""
        c = self.config
        m, n = c.hidden_size, c.num_hidden_layers
        stream = c.positions * ((n + 1) * 3 * m + n * (9 * m + 2 * c.intermediate_size))
        kept = attention_kept(n, c.num_attention_heads, c.positions, c.attention_probs_dropout_prob)
        return c.num_channels * c.image_size**2 + stream + 5 * c.num_labels + kept

    @property
    def attention(self) -> tuple[int, int]:
        """One a block."""
        return self.config.num_hidden_layers, self.config.num_attention_heads * self.config.positions**2
