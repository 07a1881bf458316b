"""GPT-2: a pre-norm decoder with learned positions."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

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
from featurespeed.contract.base import Width


class Gpt2Config(Untied):
    """Fields of ``transformers.GPT2Config``, with its defaults but for ``tie_word_embeddings``, which is false."""

    vocab_size: Vocabulary = 50257
    n_positions: Positions = 1024
    n_embd: Width = 768
    n_layer: Layers = 12
    n_head: Heads = 12
    n_inner: Hidden | None = None
    activation_function: HiddenAct = "gelu_new"
    resid_pdrop: Probability = 0.1
    embd_pdrop: Probability = 0.1
    attn_pdrop: Probability = 0.1
    layer_norm_epsilon: Epsilon = 1e-5
    initializer_range: Std = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False

    @property
    def inner(self) -> int:
        """Width inside of a feed-forward branch."""
        return self.n_inner or 4 * self.n_embd

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        check_divides("n_head", self.n_head, "n_embd", self.n_embd)
        return self


class Gpt2(Text):
    """``transformers.GPT2LMHeadModel``: embedding and positions, ``n_layer`` residual blocks, norm and head."""

    model_type: Literal["gpt2"]
    config: Gpt2Config = Gpt2Config()
    task: Literal["causal_lm"] = "causal_lm"

    @property
    def layers(self) -> int:
        """As GPT-2 calls them."""
        return self.config.n_layer

    @property
    def longest_field(self) -> str:
        """As GPT-2 calls it."""
        return "n_positions"

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly."""
        c = self.config
        m, h = c.n_embd, c.inner
        attention = (m + 1) * 3 * m + (m + 1) * m
        feed_forward = (m + 1) * h + (h + 1) * m
        return (2 * c.vocab_size + c.n_positions) * m + c.n_layer * (attention + feed_forward + 4 * m) + 2 * m

    @property
    def activations(self) -> int:
        """As of a transformer; the polynomial in ``gelu_new`` keeps more of what is inside of the feed-forward."""
        c = self.config
        m, inside = c.n_embd, 9 * c.n_embd + (6 if c.activation_function == "gelu_new" else 2) * c.inner
        stream = self.positions * ((c.n_layer + 1) * 3 * m + c.n_layer * inside + 5 * c.vocab_size)
        return stream + attention_kept(c.n_layer, c.n_head, self.positions, c.attn_pdrop)

    @property
    def attention(self) -> tuple[int, int]:
        """One a block."""
        return self.config.n_layer, self.config.n_head * self.positions**2
