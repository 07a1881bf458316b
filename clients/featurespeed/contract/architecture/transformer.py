"""The pre-norm transformer, of tokens or of image patches."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from featurespeed.contract.architecture.chain import Activation, BlockChain, Image, Norm, Signature, norm_parameters
from featurespeed.contract.base import Dim, Model, Width


class Patches(Image):
    """An image cut into square patches, each a token."""

    patch: Annotated[int, Field(ge=1, le=4096)]

    @property
    def count(self) -> int:
        """Number of patches: the sequence length."""
        return (self.height // self.patch) * (self.width // self.patch)

    @model_validator(mode="after")
    def _patch_divides(self) -> Self:
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide height {self.height} and width {self.width}")
        return self


class Transformer(Model, BlockChain):
    """A pre-norm transformer: embedding with learned positions, ``layers`` residual blocks, norm and linear head.

    Token input (``vocab_size``, ``context_length``) or patch input (``image``). Without ``output_dim`` the head is a
    language model's (one logit per vocabulary entry and position); with it, a classifier on the mean over positions.
    """

    family: Literal["transformer"]
    layers: Annotated[int, Field(ge=1, le=4096)]
    width: Width
    heads: Annotated[int, Field(ge=1, le=4096)]
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    causal: bool | None = None
    vocab_size: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    context_length: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    image: Patches | None = None
    output_dim: Dim | None = None
    activation: Activation = "gelu"
    norm: Norm = "layernorm"
    bias: bool = False

    @property
    def depth(self) -> int:  # type: ignore[override]
        """L: embedding, residual blocks, head."""
        return self.layers + 2

    @property
    def is_causal(self) -> bool:
        """Whether position i sees positions ≤ i only; unless stated, true for tokens and false for images."""
        return self.causal if self.causal is not None else self.image is None

    @property
    def sequence_length(self) -> int:
        """Number of positions."""
        return self.image.count if self.image is not None else self.context_length or 0

    @property
    def mlp_width(self) -> int:
        """Width of the hidden layer of each feed-forward branch."""
        return max(1, round(self.width * self.mlp_ratio))

    @property
    def head_dim(self) -> int:
        """Number of logits: ``output_dim``, or the vocabulary of a language model."""
        return self.output_dim or self.vocab_size or 0

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int, info: object) -> int:
        width = getattr(info, "data", {}).get("width")
        if width is not None and width % heads:
            raise ValueError(f"{heads} does not divide width {width}")
        return heads

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if self.image is None and (self.vocab_size is None or self.context_length is None):
            raise ValueError("vocab_size: vocab_size and context_length (tokens), or image (patches), are required")
        if self.image is not None and (self.vocab_size is not None or self.context_length is not None):
            raise ValueError("image: excludes vocab_size and context_length")
        if self.image is not None and self.output_dim is None:
            raise ValueError("output_dim: required with image")
        return self

    @property
    def signature(self) -> Signature:
        """Tokens or an image in; logits of every position, or of the whole."""
        if self.image is not None:
            return Signature(self.image.shape, self.head_dim, inputs_field="image")
        return Signature((self.sequence_length,), self.head_dim, self.vocab_size, per_position=self.output_dim is None)

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly."""
        m, h, norm = self.width, self.mlp_width, norm_parameters(self.norm, self.width, bias=self.bias)
        embedding = m * (self.vocab_size or 0)
        if self.image is not None:
            embedding = m * (self.image.channels * self.image.patch**2 + self.bias)
        attention = norm + (m + self.bias) * 3 * m + (m + self.bias) * m
        mlp = norm + (m + self.bias) * h + (h + self.bias) * m
        head = norm + (m + self.bias) * self.head_dim
        return embedding + self.sequence_length * m + self.layers * (attention + mlp) + head

    @property
    def activations(self) -> int:
        """Of each block: norm, q, k, v, mixed, projected, sum, norm, projected; the MLP's inside twice."""
        m, positions = self.width, self.sequence_length
        inside = 9 * m + 2 * self.mlp_width
        stream = positions * ((self.layers + 1) * 3 * m + self.layers * inside)
        return stream + 5 * self.head_dim * (positions if self.output_dim is None else 1)

    @property
    def attention(self) -> tuple[int, int]:
        """One a block."""
        return self.layers, self.heads * self.sequence_length**2
