"""BERT: a post-norm encoder with learned positions."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from featurespeed.contract.architecture.chain import Signature
from featurespeed.contract.architecture.huggingface.base import (
    LABELS,
    Epsilon,
    Heads,
    Hidden,
    HiddenAct,
    Labelled,
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


class BertConfig(Untied, Labelled):
    """Fields of ``transformers.BertConfig``, with its defaults but for ``tie_word_embeddings``, which is false.

    Of ``pad_token_id`` the embedding is zero, and stays so; data draw it as any other token. ``null``: of none.
    """

    vocab_size: Vocabulary = 30522
    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    intermediate_size: Hidden = 3072
    hidden_act: HiddenAct = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: Positions = 512
    type_vocab_size: Annotated[int, Field(ge=1, le=1000)] = 2
    initializer_range: Std = 0.02
    layer_norm_eps: Epsilon = 1e-12
    pad_token_id: Annotated[int, Field(ge=0, le=1_000_000)] | None = 0
    classifier_dropout: Probability | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id: {self.pad_token_id} is not below vocab_size {self.vocab_size}")
        return self


class Bert(Text):
    """``transformers.BertForMaskedLM`` or ``BertForSequenceClassification``.

    Embeddings, ``num_hidden_layers`` residual blocks, one block between (the dense layer before the vocabulary's, or
    the pooler of the first position) and the head. Every position of a masked language model has a target.
    """

    model_type: Literal["bert"]
    config: BertConfig = BertConfig()
    task: Literal["masked_lm", "sequence_classification"] = "masked_lm"

    @property
    def depth(self) -> int:  # type: ignore[override]
        """L: embeddings, residual blocks, the dense layer before the head or the pooler, head."""
        return self.layers + 3

    @property
    def signature(self) -> Signature:
        """Tokens in; logits of every position, or of the whole."""
        if self.task == "masked_lm":
            return super().signature
        labels, vocab_size = self.config.num_labels, self.config.vocab_size
        return Signature((self.positions,), labels, vocab_size, inputs_field="context_length", outputs_field=LABELS)

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly; a masked language model has a second bias, which acts only if it is tied."""
        c = self.config
        m, h, vocabulary = c.hidden_size, c.intermediate_size, c.vocab_size
        embeddings = (vocabulary + c.max_position_embeddings + c.type_vocab_size) * m + 2 * m
        block = 4 * (m + 1) * m + (m + 1) * h + (h + 1) * m + 4 * m
        head = 2 * m + (m + 2) * vocabulary if self.task == "masked_lm" else (m + 1) * c.num_labels
        return embeddings + c.num_hidden_layers * block + (m + 1) * m + head

    @property
    def activations(self) -> int:
        """As of a transformer."""
        c = self.config
        m, n = c.hidden_size, c.num_hidden_layers
        stream = self.positions * ((n + 1) * 3 * m + n * (11 * m + 2 * c.intermediate_size))
        head = self.positions * (5 * m + 5 * c.vocab_size) if self.task == "masked_lm" else 5 * (m + c.num_labels)
        kept = attention_kept(n, c.num_attention_heads, self.positions, c.attention_probs_dropout_prob)
        return stream + head + kept

    @property
    def attention(self) -> tuple[int, int]:
        """One a block."""
        return self.config.num_hidden_layers, self.config.num_attention_heads * self.positions**2
