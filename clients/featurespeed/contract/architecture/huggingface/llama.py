"""LLaMA and Qwen2: pre-norm decoders with rotary positions, RMS norms and gated feed-forward branches."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from featurespeed.contract.architecture.huggingface.base import (
    Epsilon,
    Heads,
    Hidden,
    HiddenAct,
    Layers,
    Positions,
    Probability,
    Std,
    Text,
    Untied,
    Vocabulary,
    attention_kept,
    check_divides,
)
from featurespeed.contract.base import Model, Width


class RopeParameters(Model):
    """Rotary positions: ``rope_theta`` is the base of their wavelengths."""

    rope_theta: Annotated[float, Field(ge=1, le=1e12)] = 10_000.0
    rope_type: Literal["default"] = "default"


class _RotaryConfig(Untied):
    hidden_size: Width = 4096
    num_hidden_layers: Layers = 32
    num_attention_heads: Heads = 32
    hidden_act: HiddenAct = "silu"
    initializer_range: Std = 0.02
    rms_norm_eps: Epsilon = 1e-6
    attention_dropout: Probability = 0.0
    rope_parameters: RopeParameters | None = None
    num_key_value_heads: Heads | None = None

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values, each for a group of queries."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Coordinates of a head."""
        return self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        check_divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        check_divides("num_key_value_heads", self.key_value_heads, "num_attention_heads", self.num_attention_heads)
        if self.head_width % 2:
            raise ValueError(
                f"num_attention_heads: rotary positions need heads of even width, not {self.head_width} "
                f"(hidden_size {self.hidden_size} over {self.num_attention_heads})"
            )
        return self


class LlamaConfig(_RotaryConfig):
    """Fields of ``transformers.LlamaConfig``, with its defaults."""

    vocab_size: Vocabulary = 32000
    intermediate_size: Hidden = 11008
    max_position_embeddings: Positions = 2048
    attention_bias: bool = False
    mlp_bias: bool = False
    head_dim: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] | None = None

    @property
    def head_width(self) -> int:
        """``head_dim``, or the heads' share of ``hidden_size``."""
        return self.head_dim or super().head_width


class Qwen2Config(_RotaryConfig):
    """Fields of ``transformers.Qwen2Config``, with its defaults."""

    vocab_size: Vocabulary = 151936
    intermediate_size: Hidden = 22016
    max_position_embeddings: Positions = 32768
    num_key_value_heads: Heads | None = 32


class _Rotary(Text):
    config: LlamaConfig | Qwen2Config
    task: Literal["causal_lm"] = "causal_lm"

    @property
    def _biases(self) -> int:
        """Of one block."""
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly."""
        c = self.config
        m, queries, keys = c.hidden_size, c.num_attention_heads * c.head_width, c.key_value_heads * c.head_width
        block = 2 * m * queries + 2 * m * keys + 3 * m * c.intermediate_size + 2 * m + self._biases
        return 2 * c.vocab_size * m + c.num_hidden_layers * block + m

    @property
    def activations(self) -> int:
        """As of a transformer; the gate and its product with what it gates besides."""
        c = self.config
        m, n = c.hidden_size, c.num_hidden_layers
        inside = 7 * m + 4 * c.num_attention_heads * c.head_width + 4 * c.intermediate_size
        stream = self.positions * ((n + 1) * 3 * m + n * inside + 5 * c.vocab_size)
        return stream + attention_kept(n, c.num_attention_heads, self.positions, c.attention_dropout)

    @property
    def attention(self) -> tuple[int, int]:
        """One a block."""
        return self.config.num_hidden_layers, self.config.num_attention_heads * self.positions**2


class Llama(_Rotary):
    """``transformers.LlamaForCausalLM``: embedding, ``num_hidden_layers`` residual blocks, norm and head."""

    model_type: Literal["llama"]
    config: LlamaConfig = LlamaConfig()

    @property
    def _biases(self) -> int:
        c = self.config
        attention = (c.num_attention_heads + 2 * c.key_value_heads) * c.head_width + c.hidden_size
        return attention * c.attention_bias + (2 * c.intermediate_size + c.hidden_size) * c.mlp_bias


class Qwen2(_Rotary):
    """``transformers.Qwen2ForCausalLM``: as LLaMA, with biases of queries, keys and values."""

    model_type: Literal["qwen2"]
    config: Qwen2Config = Qwen2Config()

    @property
    def _biases(self) -> int:
        return (self.config.num_attention_heads + 2 * self.config.key_value_heads) * self.config.head_width
