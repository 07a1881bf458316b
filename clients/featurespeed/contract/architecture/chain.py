"""What every family has: a chain of blocks with names, a signature, and its cost in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from featurespeed.contract.base import Model

Activation = Literal["relu", "gelu", "silu", "tanh", "identity"]
Norm = Literal["none", "layernorm", "rmsnorm"]
Depth = Annotated[int, Field(ge=2, le=4096)]


@dataclass(frozen=True)
class Signature:
    """What a network takes and gives, of one example; the last two name the fields that say so, for errors."""

    inputs: tuple[int, ...]
    """(input_dim,), (channels, height, width) of an image, or (positions,) of tokens."""
    outputs: int
    """Number of logits, or of values under mse."""
    vocab_size: int | None = None
    """Tokens are below it; ``None``: the network takes real numbers."""
    per_position: bool = False
    """Whether every position has a target of its own."""
    inputs_field: str = "input_dim"
    outputs_field: str = "output_dim"
    fixed_length: bool = False
    """Whether all sequences of tokens must be as long as ``inputs`` says, not shorter."""


class BlockChain:
    """A chain of ``depth`` blocks: their names, what goes in and out, and the cost of a measurement."""

    if TYPE_CHECKING:  # a mixin: were it seen at run time, a depth that is computed would become a field
        depth: int

    @property
    def block_names(self) -> list[str]:
        """The block names in forward order: ``input``, ``hidden_2``, …, ``output``."""
        return ["input", *(f"hidden_{i}" for i in range(2, self.depth)), "output"]

    @property
    def matrix_blocks(self) -> list[str]:
        """Names of the hidden blocks that have matrices, which is what Muon is for."""
        return self.block_names[1:-1]

    @property
    def couples_examples(self) -> bool:
        """Whether what the network makes of an example depends on the others of its batch, as under batch norm."""
        return False

    @property
    def has_dropout(self) -> bool:
        """Whether it draws at random what it leaves out."""
        return False

    @property
    def signature(self) -> Signature:
        """Shapes of one example."""
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        """Number of parameters, exactly; in closed form, however large the network."""
        raise NotImplementedError

    @property
    def activations(self) -> int:
        """Numbers that one example keeps alive: three at each cut node (f, b, ḟ), and those inside of each block.

        Without the scores of attention, which are counted apart.
        """
        raise NotImplementedError

    @property
    def attention(self) -> tuple[int, int]:
        """Number of attention layers, and how many scores (heads · positions²) each has of one example."""
        return 0, 0


def norm_parameters(norm: Norm, width: int, *, bias: bool) -> int:
    """Number of parameters of a normalisation over ``width`` features; a layer norm has shifts too if ``bias``."""
    return {"none": 0, "layernorm": width * (1 + bias), "rmsnorm": width}[norm]


class Image(Model):
    """An image of real numbers."""

    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    channels: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width
