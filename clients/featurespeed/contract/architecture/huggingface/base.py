"""What the model types have in common: bounds of fields, a context of text, images, and costs of attention."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from featurespeed.contract.architecture.chain import BlockChain, Signature
from featurespeed.contract.base import Dim, Model, Width

Layers = Annotated[int, Field(ge=1, le=1024)]
Heads = Annotated[int, Field(ge=1, le=4096)]
Hidden = Annotated[int, Field(ge=1, le=1_000_000)]
"""Width inside of a feed-forward branch."""
Vocabulary = Annotated[int, Field(ge=2, le=1_000_000)]
Positions = Annotated[int, Field(ge=1, le=1_000_000)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Channels = Annotated[int, Field(ge=1, le=64)]
Stages = Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=8)]
"""Number of blocks of every stage."""
Widths = Annotated[tuple[Annotated[Width, Field(ge=2)], ...], Field(min_length=1, max_length=8)]
"""Number of channels of every stage."""
Probability = Annotated[float, Field(ge=0, lt=1)]
"""Of dropping: the same mask in both passes of a measurement."""
Epsilon = Annotated[float, Field(gt=0, le=1)]
Std = Annotated[float, Field(gt=0, le=1)]
HiddenAct = Literal[
    "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu", "swish", "mish", "tanh"
]

CONTEXT_LENGTH = 128
"""Positions of an example of text, unless stated."""


class HuggingFace(Model, BlockChain):
    """A model type of ``transformers``; ``config`` are fields of its configuration, under its names and defaults."""

    family: Literal["huggingface"]
    model_type: str
    config: Any
    task: str

    @property
    def has_dropout(self) -> bool:
        """Whether a probability of dropping is positive."""
        return any(value for name, value in self.config if "drop" in name)

    @property
    def layers(self) -> int:
        """Number of a transformer's residual blocks."""
        layers: int = self.config.num_hidden_layers
        return layers

    @property
    def depth(self) -> int:  # type: ignore[override]
        """L: embeddings, residual blocks, head."""
        return self.layers + 2

    @property
    def hidden_branches(self) -> int:
        """Number of residual branches of the whole network: attention and feed-forward of every block."""
        return 2 * self.layers


class Labelled(Model):
    """A configuration with classes to tell apart."""

    num_labels: Dim = 2


class Untied(Model):
    """A configuration of text, whose output weights are its own."""

    tie_word_embeddings: bool = False

    @field_validator("tie_word_embeddings")
    @classmethod
    def _untied(cls, tied: bool) -> bool:
        if tied:
            raise ValueError(
                "must be false: a weight of both the first and the last block has no place in a chain of blocks; "
                "make your own model with tie_word_embeddings=False too, or untie it: "
                "lm_head.weight = nn.Parameter(lm_head.weight.detach().clone())"
            )
        return tied


class Text(HuggingFace):
    """A model of tokens; an example has ``context_length`` of them, by default 128 or what ``config`` allows."""

    context_length: Positions | None = None

    @property
    def longest_field(self) -> str:
        """The field of ``config`` that bounds ``context_length``."""
        return "max_position_embeddings"

    @property
    def positions(self) -> int:
        """Positions of one example."""
        return self.context_length or min(CONTEXT_LENGTH, getattr(self.config, self.longest_field))

    @model_validator(mode="after")
    def _context_fits(self) -> Self:
        longest = getattr(self.config, self.longest_field)
        if self.context_length is not None and self.context_length > longest:
            raise ValueError(
                f"context_length: {self.context_length} is more than config.{self.longest_field}, which is {longest}"
            )
        return self

    @property
    def signature(self) -> Signature:
        """Tokens in; logits of every position."""
        vocab_size: int = self.config.vocab_size
        return Signature(
            (self.positions,), vocab_size, vocab_size, True, inputs_field="context_length", outputs_field=VOCABULARY
        )


class Images(HuggingFace):
    """A model that tells classes of square images apart."""

    size_field: ClassVar[str] = "config.image_size"
    """The field that gives the pixels of a side."""

    @property
    def size(self) -> int:
        """Pixels of a side."""
        size: int = self.config.image_size
        return size

    @property
    def signature(self) -> Signature:
        """An image in; logits out."""
        shape = (self.config.num_channels, self.size, self.size)
        return Signature(shape, self.config.num_labels, inputs_field=self.size_field, outputs_field=LABELS)


VOCABULARY, LABELS = "config.vocab_size", "config.num_labels"


def attention_kept(layers: int, heads: int, positions: int, dropout: float) -> int:
    """Numbers of all layers' scores that a backward pass keeps of one example: only where some are dropped.

    Fused attention keeps none. Where weights are dropped they are written out: weights, mask and what is left.
    """
    return 3 * layers * heads * positions**2 if dropout else 0


def check_divides(field: str, number: int, of: str, width: int) -> None:
    """Raise ValueError, beginning with the field, unless ``number`` divides ``width``, the value of field ``of``."""
    if width % number:
        raise ValueError(f"{field}: {number} does not divide {of} {width}")
